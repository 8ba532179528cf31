"""What a written-down name may call: the rules behind `references.resolve`.

A file is read by people who did not write it. So a name in it reaches only what the reader already
has imported or has named in `trust`, and of that only what makes models: no module is imported
because a file says so, no module's `__getattr__` runs, and nothing from Python's builtins or
standard library is ever returned. The rules look at where the object found was defined, not only
at how its name is spelled, since modules re-export each other (`package.models:os.system`).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from distillation.errors import TrustError

ZOO = "distillation.models"
# Libraries whose functions are never the user's own, whatever module the student comes from.
LIBRARIES = {
    *("accelerate", "distillation", "numpy", "timm", "torch", "torchmetrics", "torchvision"),
    *("transformers", "hydra", "omegaconf", "labml", "labml_helpers", "safetensors"),
}
# Arguments by which timm reads other files or addresses than the ones it ships.
TIMM_FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
_MODEL_NAME = re.compile(r"[A-Za-z0-9_]+([.\-][A-Za-z0-9_]+)*")


def split(target: object) -> tuple[str, list[str]]:
    """("package.module", ["Outer", "name"]) of "package.module:Outer.name"; else `TrustError`."""
    if not isinstance(target, str):
        raise TrustError(f"a target is a string, not {type(target).__name__}")
    module, colon, qualname = target.partition(":")
    names = qualname.split(".")
    parts = [*module.split("."), *names]
    if not colon or not all(part.isidentifier() for part in parts):
        raise TrustError(
            f"{_short(target)} is not of the form 'package.module:name'; only classes and "
            "functions with a name at the top of a module, or in a class, can be referred to"
        )
    if any(name.startswith("__") for name in names):
        raise TrustError(f"{_short(target)} names a special attribute; these are never called")
    return module, names


def is_standard(module: str) -> bool:
    """Whether `module` belongs to Python's builtins or standard library."""
    top = module.partition(".")[0]
    return top == "builtins" or top in sys.stdlib_module_names


def walk(module: ModuleType, names: list[str]) -> Any:
    """What `names` lead to from `module`, through classes only and without running any code."""
    found: Any = None
    for depth, name in enumerate(names):
        if depth == 0:
            found = object.__getattribute__(module, "__dict__").get(name, _MISSING)
        elif issubclass(type(found), type):
            found = inspect.getattr_static(found, name, _MISSING)
        else:
            raise TrustError(
                f"'{module.__name__}:{'.'.join(names)}' goes through a {type(found).__name__}; "
                "only classes are looked into"
            )
        if found is _MISSING:
            raise TrustError(f"module {module.__name__!r} has no {'.'.join(names[: depth + 1])!r}")
    return found


def resolve(
    target: str,
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    trust: Iterable[str | Callable],
    home_module: str | ModuleType | None,
) -> Callable[..., Any]:
    """See `references.resolve`."""
    spelled, names = split(target)
    modules, targets, callables = _trusted(trust)
    if target in callables:
        return callables[target]
    if is_standard(spelled):
        raise TrustError(f"{target} is Python's own; a model does not come from there")
    exact, prefixed = target in targets, _within(spelled, modules)
    module = _module(spelled, target, may_import=exact or prefixed or _in_zoo(spelled))
    found = walk(module, names)
    if exact or prefixed:
        found = _bound(found, module, names)
    elif not issubclass(type(found), type) and type(found) is not FunctionType:
        raise TrustError(
            f"{target} is a {type(found).__name__}; without trust only classes and plain "
            f"functions are called. {_advice(target)}"
        )
    if not callable(found):
        raise TrustError(f"{target} is a {type(found).__name__}, which cannot be called")
    defined = str(getattr(found, "__module__", None) or "")
    if is_standard(defined) or not defined:
        raise TrustError(f"{target} is Python's own {defined}; a model does not come from there")
    if exact or (prefixed and _within(defined, {m.partition(".")[0] for m in modules})):
        return found
    home = home_module.__name__ if isinstance(home_module, ModuleType) else home_module
    if type(found) is FunctionType and len(names) > 1:
        refusal = "is a method, which makes no model"
    else:
        refusal = _refusal(found, spelled, defined, home, args, kwargs)
    if refusal:
        raise TrustError(f"{target} {refusal}. {_advice(target)}")
    return found


def _refusal(
    found: Any, spelled: str, defined: str, home: str | None, args: tuple, kwargs: Mapping
) -> str | None:
    """Why `found` is not to be called without trust; None when it may be."""
    top = defined.partition(".")[0]
    if issubclass(type(found), type):
        if not issubclass(found, nn.Module):
            return "is a class, but no nn.Module"
        if top == "torch" and not defined.startswith("torch.nn."):
            return "is one of torch's own tools rather than a model"
        return None
    if top == "timm" or (_in_zoo(spelled) and _in_zoo(defined) and found.__name__ == "get"):
        return _by_name_refusal(found, args, kwargs, top)
    if top == "torchvision":
        if _is_torchvision_model(found):
            return None
        return "is not one of torchvision's model functions"
    if _in_zoo(defined):
        return "is a tool of the zoo, whose models are classes and what `get` makes"
    if defined == spelled == "__main__":
        return None
    if home is not None and defined == spelled == home and top not in LIBRARIES:
        return None
    if home is None:
        return "is a function, and not one of __main__ or of a known model library"
    return f"is a function, and not one of __main__, of {home!r} or of a known model library"


def _by_name_refusal(found: Any, args: tuple, kwargs: Mapping, top: str) -> str | None:
    """timm's functions, and our `get`, which both take names that could also be addresses."""
    creates = found.__name__ == "get"
    if top == "timm":
        from timm import create_model, is_model, model_entrypoint

        creates = found is create_model
        name = found.__name__
        if not creates and not (is_model(name) and model_entrypoint(name) is found):
            return "is not one of timm's model functions"
        files = sorted(TIMM_FILES & set(kwargs))
        if files or len(args) > 2:
            return f"would read other files ({', '.join(files) or 'positional arguments'})"
    if creates:
        name = args[0] if args else kwargs.get("model_name", kwargs.get("name"))
        if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name):
            return f"takes a plain model name, not {name!r}"
    return None


def _is_torchvision_model(found: Any) -> bool:
    models = sys.modules.get("torchvision.models")
    if models is None:
        return False
    if found is models.get_model:
        return True
    name = found.__name__
    return name in models.list_models() and models.get_model_builder(name) is found


def _module(name: str, target: str, *, may_import: bool) -> ModuleType:
    module = sys.modules.get(name)
    if module is None and may_import:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise TrustError(f"{target}: module {name!r} cannot be imported: {error}") from error
    if not isinstance(module, ModuleType):
        raise TrustError(
            f"{target}: module {name!r} is not imported, and no module is imported because a file "
            f"names it. Import it first if you know it. {_advice(target)}"
        )
    return module


def _in_zoo(module: str) -> bool:
    """Whether `module` is our zoo or one of the modules that really lie in its folder."""
    if module == ZOO:
        return True
    folder, _, name = module.rpartition(".")
    if folder != ZOO:
        return False
    path = importlib.import_module(ZOO).__path__
    return any(found.name == name for found in pkgutil.iter_modules(path))


def as_tuple(trust: Any) -> tuple:
    """What was given as `trust`, where one name, callable or module may stand for itself."""
    if isinstance(trust, str | ModuleType) or callable(trust):
        return (trust,)
    if not isinstance(trust, Iterable):
        raise TrustError(
            f"trust takes module names, 'package.module:name' names and callables, not {trust!r}"
        )
    return tuple(trust)


def _trusted(
    trust: Iterable[str | Callable],
) -> tuple[set[str], set[str], dict[str, Callable[..., Any]]]:
    """Module names, targets, and callables by the target they answer to."""
    modules, targets, callables = set(), set(), {}
    for item in as_tuple(trust):
        if isinstance(item, str):
            (targets if ":" in item else modules).add(item)
        elif isinstance(item, ModuleType):
            modules.add(item.__name__)
        elif callable(item) and hasattr(item, "__qualname__"):
            callables[f"{item.__module__}:{item.__qualname__}"] = item
        else:
            raise TrustError(
                f"trust takes module names, 'package.module:name' names and callables with a "
                f"name, not {item!r}"
            )
    return modules, targets, callables


def _bound(found: Any, module: ModuleType, names: list[str]) -> Any:
    """A trusted classmethod or staticmethod as its class gives it."""
    if not isinstance(found, classmethod | staticmethod):
        return found
    return getattr(walk(module, names[:-1]), names[-1])


def _within(module: str, roots: Iterable[str]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


def _advice(target: str) -> str:
    module = target.partition(":")[0]
    return f"If you trust it, pass trust=({target!r},) or trust=({module!r},)."


def _short(target: str) -> str:
    return repr(target if len(target) <= 120 else target[:117] + "...")


_MISSING = object()
