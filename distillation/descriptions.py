"""How a loss or balancer is made, written down, so that a file need not hold a pickle of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillation.errors import ConfigError, DistillationError, TrustError
from distillation.losses.interface import Remembers
from distillation.references import Reference, resolve

_TORCH_OWN = frozenset(vars(nn.Module())) | {"constructor_arguments"}
_REMAINING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def describe(module: nn.Module) -> dict[str, Any] | None:
    """A recipe for `module` that `remade` follows, plain enough for JSON; None when there is none.

    A class that can be imported by its name and whose constructor got plain values (or modules
    that have recipes) has one. Classes derived from `DistillationLoss` and
    `DistillationLossBalancer` remember what they got; of others the constructor's parameters are
    read from attributes of the same name. Either way the recipe is tried out, and dropped unless
    it gives a module with the same attributes.
    """
    arguments = _remembered(module) if isinstance(module, Remembers) else _read(module)
    if arguments is None:
        return None
    parts: dict[str, Any] = {}
    args, kwargs = arguments
    plain_args = [_without_module(value, str(i), parts) for i, value in enumerate(args)]
    plain = {name: _without_module(value, name, parts) for name, value in kwargs.items()}
    if None in parts.values():
        return None
    reference = Reference.of(type(module), *plain_args, **plain)
    if reference is None:
        return None
    recipe = {"reference": reference.to_json(), "parts": parts}
    return recipe if _gives(recipe, module) else None


def remade(
    recipe: Mapping[str, Any],
    *,
    trust: Iterable[str | Callable] = (),
    home_module: str | None = None,
) -> nn.Module:
    """The module that a recipe describes, without its weights.

    Raises `TrustError` as `references.resolve` does, and when the class is no `nn.Module`;
    `ConfigError` when the class does not take these arguments (any more).
    """
    if not isinstance(recipe, Mapping) or not {"reference", "parts"} <= set(recipe):
        raise TrustError(f"{recipe!r} describes no module")
    reference = Reference.from_json(recipe["reference"])
    made = resolve(reference, trust=trust, home_module=home_module)
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise TrustError(f"{reference.target} is no nn.Module class; losses and balancers are")
    args, kwargs = list(reference.args), dict(reference.kwargs)
    parts = recipe["parts"]
    if not isinstance(parts, Mapping) or not all(_is_place(p, args, kwargs) for p in parts):
        raise TrustError(f"{recipe!r} describes no module")
    for place, inner in parts.items():
        part = remade(inner, trust=trust, home_module=home_module)
        if place.isdecimal():
            args[int(place)] = part
        else:
            kwargs[place] = part
    try:
        return made(*args, **kwargs)
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{reference} cannot be made any more: {error}") from error


def _is_place(place: object, args: list, kwargs: dict[str, Any]) -> bool:
    """Whether `place` is the number of a positional argument, or the name of another."""
    if not isinstance(place, str):
        return False
    return int(place) < len(args) if place.isdecimal() else place in kwargs


def _without_module(value: Any, place: str, parts: dict[str, Any]) -> Any:
    if not isinstance(value, nn.Module):
        return value
    parts[place] = describe(value)
    return None


def _remembered(module: Remembers) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = module.constructor_arguments
    return args, kwargs


def _read(module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The constructor's arguments, as far as attributes tell them; the rest keep their defaults."""
    kwargs: dict[str, Any] = {}
    try:
        parameters = inspect.signature(type(module)).parameters
    except (TypeError, ValueError):
        return None
    for name, parameter in parameters.items():
        if parameter.kind in _REMAINING:
            continue
        if hasattr(module, name):
            kwargs[name] = getattr(module, name)
        elif parameter.default is inspect.Parameter.empty:
            return None
    return (), kwargs


def _gives(recipe: dict[str, Any], module: nn.Module) -> bool:
    """Whether the recipe makes a module like this one, weights aside."""
    try:
        with torch.random.fork_rng(devices=[]):
            made = remade(recipe, trust=[type(m) for m in module.modules()])
    except (DistillationError, TypeError, ValueError, RuntimeError, AttributeError):
        return False
    return _alike(made, module)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    ones, others = dict(one.named_modules()), dict(other.named_modules())
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (one, other)]
    return (
        ones.keys() == others.keys()
        and shapes[0] == shapes[1]
        and all(type(ones[n]) is type(others[n]) for n in ones)
        and all(_same(_attributes(ones[n]), _attributes(others[n])) for n in ones)
    )


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _TORCH_OWN and not name.startswith(("_fsdp", "_is_fsdp"))
    }


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, nn.Module):
        return _alike(one, other)
    if one is None or isinstance(one, bool | int | float | str | bytes | torch.dtype):
        return one == other
    return one is other
