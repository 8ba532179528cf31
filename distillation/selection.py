"""From what a layer gives (tuple, dict, Hugging Face `ModelOutput`) to the one tensor meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from distillation.errors import ConfigError, unknown

Selector = int | str | tuple | Callable[[Any], Any] | None


class LayerInput(NamedTuple):
    """What a layer was called with: positional and keyword arguments."""

    args: tuple
    kwargs: dict[str, Any]


def as_tensor(value: Any, select: Selector = None, *, what: str = "output") -> Tensor:
    """The tensor in `value` that `select` names.

    `select` is an index, a key or attribute name, a tuple of these followed one after the other
    (`("hidden_states", -1)`), or a function of the value. Without it a tensor is taken as it is,
    and so is the only tensor of a tuple, list, dict, `ModelOutput` or `LayerInput`; when there are
    several, there is no right guess.

    Raises `ConfigError`, which lists the choices, when nothing or no tensor is selected. `what`
    names the value in the message.
    """
    if select is None:
        if isinstance(value, Tensor):
            return value
        tensors = [v for v in choices(value).values() if isinstance(v, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        problem = "holds several tensors" if tensors else "holds no tensor at its first level"
        raise ConfigError(f"{_describe(what, value)} {problem}. {_advice(value)}")
    chosen = value
    if callable(select):
        chosen = select(value)
    else:
        for step in select if isinstance(select, tuple) else (select,):
            chosen = _step(chosen, step, what)
    if not isinstance(chosen, Tensor):
        raise ConfigError(
            f"selecting {select!r} from {_describe(what, value)} gives {_kind(chosen)}, not a "
            f"tensor. {_advice(chosen)}"
        )
    return chosen


def choices(value: Any) -> dict[str | int, Any]:
    """What an index, key or attribute can reach in `value`, one level deep."""
    if isinstance(value, LayerInput):
        return {**dict(enumerate(value.args)), **value.kwargs}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return dict(enumerate(value))
    if isinstance(value, Tensor):
        return {}
    return dict(getattr(value, "__dict__", {}))


def _step(value: Any, step: int | str, what: str) -> Any:
    if isinstance(value, LayerInput):
        found = choices(value)
        if step in found:
            return found[step]
    elif isinstance(step, int):
        if isinstance(value, Sequence) and -len(value) <= step < len(value):
            return value[step]
        if isinstance(value, Mapping) and step in value:
            return value[step]
        if _is_model_output(value) and -len(value) <= step < len(value):
            return value.to_tuple()[step]
    elif isinstance(value, Mapping):
        if step in value:
            return value[step]
    elif isinstance(step, str) and not isinstance(value, Tensor) and hasattr(value, step):
        return getattr(value, step)
    valid = choices(value)
    raise ConfigError(
        unknown(f"part of {_describe(what, value)}", step, map(str, valid))
        + (" Select by index, name, a tuple of these, or a function." if valid else "")
    )


def _is_model_output(value: Any) -> bool:
    return isinstance(value, Mapping) and callable(getattr(value, "to_tuple", None))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"a {type(value).__name__}"


def _describe(what: str, value: Any) -> str:
    return f"the {what} ({_kind(value)})"


def _advice(value: Any) -> str:
    listed = ", ".join(f"{key!r}: {_kind(v)}" for key, v in choices(value).items())
    if not listed:
        return "Choose another layer, or give a selector function that returns a tensor."
    return f"Give a selector; the choices are {{{listed}}}."
