"""The loss of a training: made from a name, a class or a module, and called per batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distillation import losses as library
from distillation.errors import ConfigError, ShapeError, unknown
from distillation.trainer.metrics import slug


def make_loss(loss: Any, options: Mapping[str, Any], *, distilling: bool) -> Any:
    """A callable loss from a module, function, class or name.

    None gives `CrossEntropyLoss`, and `KDLogitsLoss` when distilling. `KDLogitsLoss` without
    `task_loss_fn` takes cross-entropy; a task loss may be given by name. Raises `ConfigError` for
    an unknown name, or arguments that the constructor does not take.
    """
    if loss is None:
        loss = "KDLogitsLoss" if distilling else "CrossEntropyLoss"
    if isinstance(loss, str):
        loss = _class(loss)
    if not inspect.isclass(loss):
        if options:
            raise ConfigError(
                "training parameter 'criterion_params' needs 'loss' as a name or a class; "
                "an instance has its arguments already."
            )
        return loss
    options = dict(options)
    if loss in (library.KDLogitsLoss,):
        task = options.get("task_loss_fn") or "CrossEntropyLoss"
        options["task_loss_fn"] = _class(task)() if isinstance(task, str) else task
        kd = options.get("distillation_loss_fn")
        if isinstance(kd, str):
            options["distillation_loss_fn"] = _class(kd)()
    takes = inspect.signature(loss).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        for name in options:
            if name not in takes:
                what = f"argument of {loss.__name__} in criterion_params:"
                raise ConfigError(unknown(what, name, takes))
    return loss(**options)


def check_takes_pairs(loss: Any) -> None:
    """Raise `ConfigError` for a loss of torch's own, which cannot take a KDOutput."""
    if getattr(loss, "__module__", None) in ("torch.nn.modules.loss", "torch.nn.functional"):
        title = type(loss).__name__ if isinstance(loss, nn.Module) else _title(loss)
        raise ConfigError(
            f"{title} compares one model's output with the target, and a distillation loss gets a "
            f"KDOutput of two. Give KDLogitsLoss(task_loss_fn={title}) for both, or train without "
            "a teacher by Trainer."
        )


def loss_names() -> list[str]:
    """The names that `loss` takes: losses of `distillation.losses` and of `torch.nn`."""
    return sorted(_classes())


def _class(name: str) -> type:
    known = _classes()
    if name not in known:
        raise ConfigError(unknown("loss", name, known, "distillation.trainer.loss_names()"))
    return known[name]


def _classes() -> dict[str, type]:
    ours = {n: getattr(library, n) for n in dir(library) if n.endswith("Loss")}
    torchs = {n: getattr(nn, n) for n in dir(nn) if n.endswith("Loss")}
    known = {n: c for n, c in {**torchs, **ours}.items() if inspect.isclass(c)}
    return {**known, "cross_entropy": nn.CrossEntropyLoss}


class LossCall:
    """Calls a loss and names what it gives.

    A loss returns a scalar, or `(scalar, items)` with `items` a vector of detached components,
    which the loss's `component_names` name. `names` are `<Class>/Loss` for the total, then the
    other components.
    """

    def __init__(self, loss: Any):
        self.loss = loss
        self.title = type(loss).__name__ if isinstance(loss, nn.Module) else _title(loss)
        self.components = [str(name) for name in getattr(loss, "component_names", None) or []]
        self.names = [f"{self.title}/Loss"]
        self.names += [f"{self.title}/{c}" for c in self.components if c != "Loss"]
        self._slots = [(i, slug(f"{self.title}/{c}")) for i, c in enumerate(self.components)]
        self._slots = [(i, name) for i, name in self._slots if name != "loss"]

    def slugs(self) -> dict[str, str]:
        """Full name of each component -> its name in the run store."""
        return {name: slug(name) for name in self.names}

    def __call__(self, output: Any, target: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`(total, {name in the run store: value})`; nothing is read from the device.

        Raises `ShapeError` when the loss is no scalar, `ConfigError` when there are not as many
        items as names.
        """
        result = self.loss(output, target)
        total, items = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        if not torch.is_tensor(total) or total.numel() != 1:
            what = f"shape {tuple(total.shape)}" if torch.is_tensor(total) else repr(total)
            raise ShapeError(
                f"{self.title} must give a scalar, or (scalar, items); it gave {what}. Reduce it, "
                "for example with reduction='mean'."
            )
        values = {"loss": total}
        if items is not None and self._slots:
            if len(items) != len(self.components):
                raise ConfigError(
                    f"{self.title} gives {len(items)} items but names {len(self.components)} "
                    f"({', '.join(self.components)})."
                )
            parts = items.unbind() if isinstance(items, torch.Tensor) else items
            for i, name in self._slots:
                values[name] = parts[i]
        return total, values


def _title(loss: Any) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


def single(value: Any) -> Any:
    """Floating tensors of less than 32 bits as float32, also inside tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        small = value.element_size() < 4 and value.is_floating_point()
        return value.float() if small else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(single(v) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(single(v) for v in value)
    if type(value) is dict:
        return {key: single(v) for key, v in value.items()}
    return value
