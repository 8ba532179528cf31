"""The student's optimizer: parameter groups by name, weight decay where it belongs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from distillation.errors import ConfigError, unknown
from distillation.fused import fused_options
from distillation.trainer.params import TrainingParams

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)
DEFAULT = "default"


def make_optimizer(
    student: nn.Module,
    params: TrainingParams,
    extra: Iterable[tuple[str, nn.Parameter]] = (),
) -> torch.optim.Optimizer:
    """An optimizer over the student's trainable parameters and `extra` (of losses and adapters).

    Groups carry their `initial_lr` prefix as `name`. What a balancer learns has no weight decay,
    which would pull its weights towards 1. On CUDA it is fused where torch has a fused
    kernel, unless `optimizer_params` say otherwise. Raises `ConfigError` for an unknown
    optimizer or argument, an optimizer that needs a closure, a prefix that matches no parameter of
    the student, parameters without a learning rate, and an instance over other parameters than
    the student's.
    """
    named = dict(student.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    extra = [(name, p) for name, p in extra if p.requires_grad]
    if isinstance(params.optimizer, torch.optim.Optimizer):
        _refuse_closures(type(params.optimizer))
        return _instance(params, named, extra)
    if not trained and not extra:
        raise ConfigError(
            "the student has no parameter that requires grad, so there is nothing to train."
        )
    cls, options = _class(params)
    groups = _groups(student, trained, extra, params)
    free = {id(p) for name, p in extra if name.startswith("balancer.")}
    if params.zero_weight_decay_on_bias_and_bn:
        free |= _biases_and_norms(student, groups)
    groups = _split_decay(groups, free)
    for group in groups:
        group["params"] = [p for _, p in group["params"]]
    lr = max(group["lr"] for group in groups)
    parameters = [p for group in groups for p in group["params"]]
    if options.get("fused") and not all(p.is_floating_point() for p in parameters):
        raise ConfigError(
            "optimizer_params 'fused' needs floating-point parameters. Leave it out: it is taken "
            "by itself where it fits."
        )
    options |= fused_options(cls, parameters, options)
    return cls(groups, **_lr_argument(cls, lr), **options)


def freeze_for_finetune(student: nn.Module, params: TrainingParams) -> dict[str, float] | None:
    """Freeze what `finetune` leaves out; gives learning rates by prefix where the model names them.

    Raises `ConfigError` for a prefix that matches nothing, and for `finetune=True` with a model
    that has no `get_finetune_lr_dict`.
    """
    if params.finetune is False:
        return None
    rates = None
    if params.finetune is True:
        give = getattr(student, "get_finetune_lr_dict", None)
        if give is None:
            raise ConfigError(
                f"finetune=True needs {type(student).__name__}.get_finetune_lr_dict(lr), which "
                "gives the learning rate of each part that is trained. Or give a list of "
                "parameter-name prefixes, for example finetune=['classifier']."
            )
        if isinstance(params.initial_lr, Mapping):
            raise ConfigError("finetune=True needs initial_lr as one number.")
        rates = {k: v for k, v in give(params.initial_lr).items() if v and k != DEFAULT}
        prefixes = list(rates)
    else:
        prefixes = list(params.finetune)
    names = [name for name, _ in student.named_parameters()]
    _all_match(prefixes, names, "finetune")
    for name, parameter in student.named_parameters():
        if not any(name.startswith(prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    return rates


def _instance(
    params: TrainingParams, named: Mapping[str, nn.Parameter], extra: list
) -> torch.optim.Optimizer:
    if params.optimizer_params:
        raise ConfigError(
            "training parameter 'optimizer_params' needs an optimizer's name or class; "
            "an instance has its options already."
        )
    if params.zero_weight_decay_on_bias_and_bn:
        raise ConfigError(
            "training parameter 'zero_weight_decay_on_bias_and_bn' needs an optimizer's name or "
            "class; an instance has its parameter groups already."
        )
    ours = {id(p) for p in [*named.values(), *(p for _, p in extra)]}
    held = [p for group in params.optimizer.param_groups for p in group["params"]]
    strangers = sum(id(p) not in ours for p in held)
    if strangers:
        raise ConfigError(
            f"the optimizer holds {strangers} parameters (of {len(held)}) that are not the "
            "student's. Make it over student.parameters()."
        )
    return params.optimizer


def _optimizers() -> dict[str, type]:
    base = torch.optim.Optimizer
    return {
        name: cls
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base
    }


def _class(params: TrainingParams) -> tuple[Any, dict[str, Any]]:
    cls, options = params.optimizer, dict(params.optimizer_params)
    if isinstance(cls, str):
        known = _optimizers()
        folded = {name.lower(): name for name in known}
        name = folded.get(cls.lower(), cls)
        if name not in known:
            raise ConfigError(unknown("optimizer", cls, known, "torch.optim"))
        cls = known[name]
    if not callable(cls):
        raise ConfigError(
            f"training parameter 'optimizer' must be a name, a class or an instance, not {cls!r}."
        )
    _refuse_closures(cls)
    if "lr" in options:
        raise ConfigError("the learning rate is 'initial_lr'; take 'lr' out of optimizer_params.")
    takes = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        for name in options:
            if name not in takes:
                valid = set(takes) - {"params", "lr"}
                what = f"optimizer_params of {getattr(cls, '__name__', cls)}:"
                raise ConfigError(unknown(what, name, valid))
    return cls, options


def _refuse_closures(cls: Any) -> None:
    """Raise for an optimizer that evaluates the loss itself, several times a step (LBFGS)."""
    if not inspect.isclass(cls):
        return
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"optimizer {cls.__name__} needs a closure that computes the loss again, which the "
            "training loop does not give; choose one that steps on gradients."
        )


def _lr_argument(cls: Any, lr: float) -> dict[str, float]:
    takes = inspect.signature(cls).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    return {"lr": lr} if "lr" in takes or open_ended else {}


def _groups(
    student: nn.Module,
    trained: Mapping[str, nn.Parameter],
    extra: list[tuple[str, nn.Parameter]],
    params: TrainingParams,
) -> list[dict[str, Any]]:
    rates = params.initial_lr
    if not isinstance(rates, Mapping):
        return [{"params": [*trained.items(), *extra], "lr": float(rates), "name": DEFAULT}]
    prefixes = [name for name in rates if name != DEFAULT]
    _all_match(prefixes, [name for name, _ in student.named_parameters()], "initial_lr")
    members: dict[str, list] = {prefix: [] for prefix in rates}
    homeless = []
    for name, parameter in trained.items():
        mine = [prefix for prefix in prefixes if name.startswith(prefix)]
        home = max(mine, key=len) if mine else DEFAULT
        members.get(home, homeless).append((name, parameter))
    if homeless:
        shown = ", ".join(repr(name) for name, _ in homeless[:5])
        raise ConfigError(
            f"initial_lr gives no learning rate for {len(homeless)} parameters of the student "
            f"({shown}). Add a 'default'."
        )
    groups = [
        {"params": members[prefix], "lr": float(rates[prefix]), "name": prefix}
        for prefix in rates
        if members[prefix]
    ]
    if extra:
        lr = float(rates.get(DEFAULT, max(rates.values())))
        groups.append({"params": extra, "lr": lr, "name": DEFAULT})
    return groups


def _all_match(prefixes: Iterable[str], names: list[str], what: str) -> None:
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            firsts = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)}
            raise ConfigError(
                unknown(
                    f"prefix in {what} (it matches no parameter of the student)", prefix, firsts
                )
            )


def _biases_and_norms(student: nn.Module, groups: list[dict[str, Any]]) -> set[int]:
    norms = {
        id(p)
        for module in student.modules()
        if isinstance(module, NORMS)
        for p in module.parameters(recurse=False)
    }
    named = [member for group in groups for member in group["params"]]
    # `in_proj_bias` of attention and `bias_ih_l0` of an LSTM, too
    return norms | {id(p) for name, p in named if "bias" in name.split(".")[-1]}


def _split_decay(groups: list[dict[str, Any]], free: set[int]) -> list[dict[str, Any]]:
    """The groups, each without the parameters of these ids, which follow without weight decay."""
    split = []
    for group in groups:
        decayed = [(name, p) for name, p in group["params"] if id(p) not in free]
        rest = [(name, p) for name, p in group["params"] if id(p) in free]
        if decayed:
            split.append({**group, "params": decayed})
        if rest:
            split.append({**group, "params": rest, "weight_decay": 0.0})
    return split
