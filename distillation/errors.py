"""Errors that name the offender, the nearest valid names, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class DistillationError(Exception):
    """Base of every error this library raises on purpose."""


class ConfigError(DistillationError, ValueError):
    """A key, option, value or argument that is not valid."""


class ShapeError(DistillationError, ValueError):
    """Tensors whose shapes or class counts do not fit together."""


class RunError(DistillationError, LookupError):
    """A run that cannot be found, or that cannot be used as asked."""


class CheckpointError(DistillationError, RuntimeError):
    """A checkpoint that is missing, damaged, or does not fit the model."""


class DataError(DistillationError, RuntimeError):
    """Data that is missing, damaged, or not what it should be."""


class TeacherError(DistillationError, RuntimeError):
    """A teacher that is missing, changed, or must not be used here."""


class TrustError(DistillationError, ValueError):
    """A written-down reference that cannot, or must not, be called."""


def nearest(name: str, valid: Iterable[str], n: int = 3) -> list[str]:
    """The at most `n` names in `valid` that look most like `name`, best first.

    Beside a name that is much more like it, another one is left out.
    """
    names = [str(v) for v in valid]
    word, *known = (_compared(v) for v in [str(name), *names])
    folded = dict(zip(reversed(known), reversed(names), strict=True))
    close = difflib.get_close_matches(word, list(folded), n=n, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, c, word).ratio() for c in close]
    return [folded[c] for c, like in zip(close, likeness, strict=True) if like > likeness[0] - 0.2]


def _compared(name: str) -> str:
    """What of a name is compared: not its case, and not the dashes that all options begin with."""
    return name.casefold().lstrip("-")


def unknown(kind: str, name: object, valid: Iterable[str], listed: str | None = None) -> str:
    """Message for a name that is not among the valid ones.

    `kind` is what the name stands for ("option", "layer", "run"), `listed` says where all of
    them can be seen (a command or a page) when there are too many to print.

    >>> unknown("option", "temprature", ["temperature", "loss"])
    "unknown option 'temprature'; did you mean 'temperature'? Valid: 'loss', 'temperature'."
    """
    names = sorted({str(v) for v in valid})
    message = f"unknown {kind} {str(name)!r}"
    close = nearest(str(name), names)
    if close:
        message += "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    else:
        message += "."
    if not names:
        message += " There are none."
    elif len(names) <= 24:
        message += " Valid: " + ", ".join(repr(v) for v in names) + "."
    else:
        message += f" {len(names)} are valid" + (f"; {listed} lists them." if listed else ".")
    return message


def no_other(module: str, names: Iterable[str]) -> Callable[[str], object]:
    """The `__getattr__` of a package that has `names` and no more: it names the nearest."""

    def __getattr__(name: str) -> object:
        raise AttributeError(unknown(f"name in {module}:", name, names, f"{module}.__all__"))

    return __getattr__
