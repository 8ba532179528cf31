"""`_target_` in a recipe: what a name in a file may make, checked before anything is made.

    teacher_input_adapter:
      _target_: distillation.NormalizationAdapter
      mean_original: [0.485, 0.456, 0.406]

A recipe is read by people who did not write it. Without `allow` a target reaches the classes of
`ROOTS` and the functions of `FUNCTIONS`, judged by where they are defined and not only by how
their names are spelled. `_args_` and `_partial_` mean what they mean in Hydra.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

from distillation.errors import ConfigError, TrustError, nearest

# Where classes may be defined
ROOTS = (
    *("distillation.losses", "distillation.models", "distillation.data", "distillation.kd_module"),
    *("distillation.trainer", "torch.nn", "torch.optim", "torch.utils.data", "torchmetrics"),
    *("torchvision.transforms", "torchvision.datasets", "torchvision.models", "torchvision.ops"),
    *("timm.models", "timm.layers", "timm.loss", "timm.optim", "timm.scheduler"),
)
# Where functions may be defined
FUNCTIONS = (
    *("distillation.models", "distillation.data", "distillation.losses.functional"),
    *("torch.nn.functional", "torchvision.models", "torchvision.transforms"),
)
# Under which names they may be reached
NAMES = ("distillation", "torch", "torchvision", "timm", "torchmetrics")
_KEYS = ("_target_", "_args_", "_partial_")


def check_targets(config: Any, allow: Iterable[str | Callable] = ()) -> None:
    """Raise unless every `_target_` at any depth of `config` may be called; nothing is made.

    `allow` adds module names (with their submodules), "package.module.name" names, and
    callables.

    Raises `TrustError` naming the target, the nearest of ours and what to say to allow it;
    `ConfigError` for a target that is allowed but is not there.
    """
    allow = _allowed(allow)
    for where, node in _nodes(config, ""):
        for key in node:
            if isinstance(key, str) and key.startswith("_") and key not in _KEYS:
                raise ConfigError(f"{where or 'recipe'}: {key!r} is not known; {_KEYS} are")
        _resolve(node["_target_"], where, allow)


def make(config: Any, allow: Iterable[str | Callable] = ()) -> Any:
    """`config` with every dict that has a `_target_` replaced by what it makes, inside out.

    Call `check_targets` on the whole recipe first. Raises as it does, and `ConfigError` where a
    target does not take its arguments.
    """
    return _made(config, "", _allowed(allow))


def _made(value: Any, where: str, allow: tuple) -> Any:
    if isinstance(value, list):
        return [_made(v, f"{where}[{i}]", allow) for i, v in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    made = {k: _made(v, f"{where}.{k}".lstrip("."), allow) for k, v in value.items()}
    if "_target_" not in value:
        return made
    function = _resolve(made.pop("_target_"), where, allow)
    args, partial = made.pop("_args_", []), made.pop("_partial_", False)
    if partial:
        return functools.partial(function, *args, **made)
    try:
        return function(*args, **made)
    except TypeError as error:
        raise ConfigError(f"{where}: {value['_target_']} cannot be made: {error}") from error


def _nodes(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield where, value
        for key, item in value.items():
            yield from _nodes(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _nodes(item, f"{where}[{i}]")


def _allowed(allow: Iterable[str | Callable]) -> tuple:
    if isinstance(allow, str) or callable(allow):
        allow = (allow,)
    return tuple(item if isinstance(item, str) else _name_of(item) for item in allow)


def _name_of(item: Callable) -> str:
    return f"{item.__module__}.{item.__qualname__}"


def _resolve(target: Any, where: str, allow: tuple) -> Callable[..., Any]:
    """What a target names, if it may be called."""
    if callable(target):
        return target  # an object that the caller put there
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{where}: _target_ must be 'package.module.name', not {target!r}")
    trusted = _within(target, allow)
    if not trusted and target.partition(".")[0] not in NAMES:
        raise TrustError(_refusal(target, where))
    found = _located(target, where)
    defined = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if trusted:
        if not callable(found):
            raise ConfigError(f"{where}: {target} is a {type(found).__name__}, nothing to call")
        return found
    private = any(part.startswith("_") for part in target.split("."))
    roots = ROOTS if inspect.isclass(found) else FUNCTIONS
    kind = inspect.isclass(found) or type(found) is FunctionType
    if private or not kind or not (_within(defined, roots) or _within(defined, allow)):
        raise TrustError(_refusal(target, where))
    if type(found) is FunctionType and _fetches(found):
        raise TrustError(_refusal(target, where))
    return found


def _fetches(function: FunctionType) -> bool:
    """Helpers of torchvision that download or register instead of making something."""
    name = function.__name__
    return function.__module__.startswith("torchvision.models._") or name.startswith("register")


def _located(target: str, where: str) -> Any:
    parts = target.split(".")
    if parts[0] in ("torchvision", "timm", "torchmetrics"):
        importlib.import_module("distillation.torchvision_guard")
    found: Any = None
    for depth, name in enumerate(parts):
        if depth and hasattr(found, name):
            found = getattr(found, name)
            continue
        try:
            found = importlib.import_module(".".join(parts[: depth + 1]))
        except ImportError as error:
            close = " or ".join(_ours(parts[-1]))
            meant = f"; did you mean {close}?" if close else ""
            raise ConfigError(f"{where}: there is no {target}{meant} ({error})") from error
    return found


def _refusal(target: str, where: str) -> str:
    close = _ours(target.rpartition(".")[2])
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    module = target.rpartition(".")[0] or target
    return (
        f"{where}: the recipe's _target_ {target!r} is not called: a recipe may make what is "
        f"defined in {', '.join(NAMES)} to make models, losses, data and metrics.{meant} If you "
        f"trust it, say so: allow_targets=[{target!r}] (on the command line +trust={module})."
    )


def _ours(name: str) -> list[str]:
    import distillation
    from distillation import data, losses

    public = {n: f"distillation.{n}" for n in distillation.__all__ if n[0].isupper()}
    public |= {n: f"distillation.losses.{n}" for n in losses.__all__ if n[0].isupper()}
    public |= {n: f"distillation.data.{n}" for n in data.__all__}
    public |= {"CrossEntropyLoss": "torch.nn.CrossEntropyLoss"}
    return [public[n] for n in nearest(name, public, n=1)]


def _within(name: str, roots: Iterable[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)
