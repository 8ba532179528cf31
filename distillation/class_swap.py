"""Swapping the class of one instance for a subclass of its own class, and undoing exactly that.

`fully_shard` of torch's FSDP2 does the same. Both may be applied to one module, in either order:
the newest class stands leftmost, and `without` takes ours out of the middle.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

_MADE = "_is_shared"  # in the __dict__ of every class that is made here


def swapped_class(mixin: type, original: type, like: Callable | None = None) -> type:
    """A subclass of (mixin, original), the same one each time for the same two.

    Its `forward` calls `mixin.distil` and has the signature of `original.forward`, or that of
    `like` (then the class is a new one). Methods of `mixin.STUDENT_ONLY` run within its
    `only_student_forward`. Nothing is registered anywhere: a made class lives as long as its
    instances, and classes of one name do not know of each other.
    """
    if like is None:
        for known in original.__subclasses__():
            if known.__bases__ == (mixin, original) and vars(known).get(_MADE):
                return known
    body = {
        "__module__": original.__module__,
        "__doc__": original.__doc__,
        "original_cls": original,
        "forward": _forward(mixin, original, like),
        _MADE: like is None,
    }
    for name in getattr(mixin, "STUDENT_ONLY", ()):
        if inspect.isfunction(getattr(original, name, None)):
            body[name] = _student_only(mixin, getattr(original, name))
    return type(original)(f"Distillation{original.__name__}", (mixin, original), body)


def _forward(mixin: type, original: type, like: Callable | None) -> Callable:
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, mixin):  # a tool that wrapped it has kept it beyond the export
            return original.forward(self, *args, **kwargs)
        return self.distil(*args, **kwargs)

    shown = original.forward if like is None else like
    signature = inspect.signature(shown)
    if like is not None:  # called without self
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = signature.replace(parameters=[own, *signature.parameters.values()])
    forward.__signature__ = signature
    forward.__doc__ = shown.__doc__
    forward.__annotations__ = dict(getattr(shown, "__annotations__", {}))
    return forward


def _student_only(mixin: type, method: Callable) -> Callable:
    @functools.wraps(method)
    def alone(self, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, mixin):
            return method(self, *args, **kwargs)
        with self.only_student_forward():
            return method(self, *args, **kwargs)

    return alone


def made_class(cls: type) -> type | None:
    """The class made here that `cls` is, or inherits from."""
    return next((base for base in cls.__mro__ if _MADE in vars(base)), None)


def without(cls: type) -> type:
    """`cls` with the class that was made here taken out, wherever it stands."""
    made = made_class(cls)
    if made is None:
        return cls
    if made is cls:
        return made.original_cls
    bases = tuple(without(base) for base in cls.__bases__)
    name = cls.__name__.replace(made.__name__, made.original_cls.__name__)
    for known in bases[-1].__subclasses__():  # what the other tool made of the plain class
        if known.__bases__ == bases and known.__name__ == name and _body(known) == _body(cls):
            return known
    return type(cls)(name, bases, _body(cls))


def _body(cls: type) -> dict[str, Any]:
    own = ("__dict__", "__weakref__", "__qualname__", "__static_attributes__", "__firstlineno__")
    return {name: value for name, value in vars(cls).items() if name not in own}
