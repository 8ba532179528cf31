"""How an object was made, written down: `"package.module:qualname"` and plain arguments.

A checkpoint, a run and a converted model keep a `Reference` where others keep a pickle. Nothing
runs when one is read; `resolve` decides what may be called, by the rules in `distillation.trust`.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from distillation import trust as rules
from distillation.errors import ConfigError, TrustError, unknown

T = TypeVar("T", bound=nn.Module)

_TUPLE = "__tuple__"
_FIELDS = ("target", "args", "kwargs")
_DEPTH = 64


@dataclass(frozen=True)
class Reference:
    """`target` is "package.module:qualname"; it is to be called with `args` and `kwargs`.

    Arguments are plain: None, bool, int, finite float, str, and lists, tuples and dicts (with
    string keys) of these. Raises `TrustError` for a malformed target, `ConfigError` for others.
    """

    target: str
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules.split(self.target)
        if not isinstance(self.args, list | tuple) or not isinstance(self.kwargs, Mapping):
            raise ConfigError(
                f"a reference takes a tuple of args and a dict of kwargs, not {self.args!r} and "
                f"{self.kwargs!r}"
            )
        what = f"the reference to {self.target}"
        args = tuple(_decoded(_encoded(arg, what)) for arg in self.args)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kwargs", _decoded(_encoded(dict(self.kwargs), what)))

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json(), sort_keys=True))

    def __str__(self) -> str:
        given = [repr(arg) for arg in self.args]
        given += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.target}({', '.join(given)})"

    @classmethod
    def of(cls, function: Callable, /, *args: Any, **kwargs: Any) -> Reference | None:
        """The reference to a call of `function`, or None when it cannot be written down.

        A class, a function or a classmethod that can be found again by its module and name can
        be; lambdas, local functions, instances, builtins and arguments that are not plain cannot.
        A `functools.partial` is written as the call it stands for, a path as text.
        """
        while type(function) is functools.partial:
            args = (*function.args, *args)
            kwargs = {**function.keywords, **kwargs}
            function = function.func
        if not isinstance(function, type | FunctionType | MethodType):
            return None
        module = sys.modules.get(function.__module__ or "")
        target = f"{function.__module__}:{function.__qualname__}"
        if isinstance(function, MethodType):
            if not isinstance(function.__self__, type):
                return None
            module = sys.modules.get(function.__self__.__module__)
            owner = function.__self__
            target = f"{owner.__module__}:{owner.__qualname__}.{function.__name__}"
        try:
            _, names = rules.split(target)
            if module is None or rules.is_standard(module.__name__):
                return None
            if _plain(rules.walk(module, names)) is not _plain(function):
                return None
            return cls(target, _texts(args), _texts(kwargs))
        except (TrustError, ConfigError):
            return None

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold; nested tuples survive the round trip."""
        what = f"the reference to {self.target}"
        return {
            "target": self.target,
            "args": [_encoded(arg, what) for arg in self.args],
            "kwargs": _encoded(dict(self.kwargs), what),
        }

    @classmethod
    def from_json(cls, obj: Any) -> Reference:
        """Read back what `to_json` gave. Raises `TrustError` for anything else."""
        if not isinstance(obj, Mapping):
            raise TrustError(f"a reference is a dict with {_FIELDS}, not {type(obj).__name__}")
        for name in obj:
            if name not in _FIELDS:
                raise TrustError(unknown("key in a reference", name, _FIELDS))
        if "target" not in obj:
            raise TrustError("a reference without 'target' names nothing to call")
        args, kwargs = obj.get("args", []), obj.get("kwargs", {})
        if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
            raise TrustError("a reference holds a list of args and a dict of kwargs")
        try:
            return cls(obj["target"], tuple(map(_decoded, args)), _decoded(dict(kwargs)))
        except ConfigError as error:
            raise TrustError(str(error)) from error


def resolve(
    reference: Reference,
    *,
    trust: Iterable[str | Callable] = (),
    home_module: str | ModuleType | None = None,
) -> Callable[..., Any]:
    """The class or function that `reference` names, not called.

    Without `trust` these are allowed, when they are imported already: `nn.Module` classes,
    functions defined in `__main__` or in `home_module` (the module of the user's own student
    class), `distillation.models`, and the model functions of torchvision and timm. `trust` adds
    module names (with their submodules; these may be imported), "package.module:name" names, and
    callables themselves. Nothing of Python's builtins or standard library is ever resolved.

    Raises `TrustError`, which says what to import or to trust.
    """
    return rules.resolve(
        reference.target,
        reference.args,
        reference.kwargs,
        trust=trust,
        home_module=home_module,
    )


def build(
    reference: Reference,
    *,
    trust: Iterable[str | Callable] = (),
    home_module: str | ModuleType | None = None,
) -> nn.Module:
    """Resolve and call: the module that `reference` describes, noted as made by it.

    Raises `TrustError` as `resolve` does, and when what was made is no `nn.Module`.
    """
    made = resolve(reference, trust=trust, home_module=home_module)(
        *reference.args, **reference.kwargs
    )
    if not isinstance(made, nn.Module):
        raise TrustError(f"{reference} made a {type(made).__name__}, not an nn.Module")
    return note(made, reference)


_notes = WeakIdKeyDictionary()


def note(model: T, reference: Reference | None) -> T:
    """Remember how `model` was made (None: forget it), as long as it lives; returns `model`."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"note takes an nn.Module, not {type(model).__name__}")
    if reference is None:
        _notes.pop(model, None)
    elif isinstance(reference, Reference):
        _notes[model] = (reference, _changes(model))
    else:
        raise ConfigError(f"note takes a Reference or None, not {type(reference).__name__}")
    return model


def noted(model: object) -> Reference | None:
    """How this very model was made, if it was noted. A copy is another object."""
    return _notes.get(model, (None,))[0] if isinstance(model, nn.Module) else None


def noted_as_made(model: object) -> Reference | None:
    """`noted`, unless its weights were changed since, so that making it again gives others."""
    reference, changes = _notes.get(model, (None, None)) if noted(model) else (None, None)
    return reference if changes is not None and changes == _changes(model) else None


_runs = WeakIdKeyDictionary()


def note_run(model: T, uuid: str, step: int | None = None) -> T:
    """Remember which run (and which checkpoint of it) the weights of `model` come from."""
    _runs[model] = (uuid, step, _changes(model))
    return model


def forget_run(model: nn.Module) -> None:
    """The weights of `model` are about to become others: they are of no run."""
    _runs.pop(model, None)


def noted_run(model: object) -> tuple[str, int | None] | None:
    """(UUID, step) of the run that this very object has its weights from.

    None where that was not noted, or where the weights were changed in place since (trained on,
    or loaded anew). Torch counts such changes, but not those through `tensor.data` or by a fused
    optimizer.
    """
    uuid, step, changes = _runs.get(model, (None, None, None))
    return (uuid, step) if uuid is not None and changes == _changes(model) else None


def _changes(model: nn.Module) -> list[int]:
    # A move to another device or dtype is no change; in inference mode nothing is counted
    return [-1 if p.is_inference() else p._version for p in model.parameters()]


def _texts(value: Any) -> Any:
    """`value` with texts in the place of paths, in tuples, lists and dicts."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (tuple, list):
        return type(value)(map(_texts, value))
    return {k: _texts(v) for k, v in value.items()} if type(value) is dict else value


def _plain(function: Any) -> Any:
    """The function behind a method, classmethod or staticmethod; anything else is itself."""
    if isinstance(function, classmethod | staticmethod | MethodType):
        return function.__func__
    return function


def _encoded(value: Any, what: str, depth: int = 0) -> Any:
    if depth > _DEPTH:
        raise ConfigError(f"{what}: arguments are nested more than {_DEPTH} deep")
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise ConfigError(f"{what}: {value!r} cannot be written as JSON")
    if type(value) is list:
        return [_encoded(v, what, depth + 1) for v in value]
    if type(value) is tuple:
        return {_TUPLE: [_encoded(v, what, depth + 1) for v in value]}
    if type(value) is dict and _TUPLE not in value and all(type(k) is str for k in value):
        return {k: _encoded(v, what, depth + 1) for k, v in value.items()}
    raise ConfigError(
        f"{what}: {value!r} is a {type(value).__name__}; arguments are None, bool, int, finite "
        "float, str, and lists, tuples and dicts with string keys of these"
    )


def _decoded(value: Any, depth: int = 0) -> Any:
    if depth > _DEPTH:
        raise ConfigError(f"arguments of a reference are nested more than {_DEPTH} deep")
    if isinstance(value, list):
        return [_decoded(v, depth + 1) for v in value]
    if isinstance(value, dict):
        if set(value) == {_TUPLE} and isinstance(value[_TUPLE], list):
            return tuple(_decoded(v, depth + 1) for v in value[_TUPLE])
        return {k: _decoded(v, depth + 1) for k, v in value.items()}
    return value
