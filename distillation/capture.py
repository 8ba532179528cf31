"""Outputs and inputs of named layers, taken by forward hooks while a forward pass runs.

A `Capture` sits on several models at once (a student and its teacher, say). Its hooks record only
between `arm()` and `disarm()`, and only in the thread that armed it, so

* two threads that forward the same models get their own records;
* a layer that runs again during backward (activation checkpointing) is not recorded again;
* several captures can sit on one teacher without seeing each other.

What was recorded is held until `take()`, `clear()` or the next `arm()` of the same thread. Arming,
recording and disarming are traced by `torch.compile` without a graph break.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from distillation.errors import ConfigError, DistillationError, unknown

KINDS = ("output", "input")
Selector = int | str | tuple | Callable[[Any], Any] | None


class Tap(NamedTuple):
    """One place to record: the `kind` ("output" or "input") of `layer` in the model `model`.

    `layer` is a dotted name as in `named_modules()`; the empty name is the whole model.
    """

    model: str
    layer: str
    kind: str = "output"

    def __str__(self) -> str:
        layer = repr(self.layer) if self.layer else "(the whole model)"
        return f"{self.kind} of {self.model} layer {layer}"


class LayerInput(NamedTuple):
    """What a layer was called with: an "input" tap records one of these for each call."""

    args: tuple
    kwargs: dict[str, Any]


class Record:
    """What one armed stretch of one thread saw: for each tap, every call in order."""

    def __init__(self, taps: Iterable[Tap] = (), clone: bool = False):
        self._calls: dict[Tap, list[Any]] = {tap: [] for tap in taps}
        self._versions: dict[Tap, list[list[tuple[Tensor, int]]]] = {}
        self._clone = clone
        self.grad_enabled = torch.is_grad_enabled()

    def __contains__(self, tap: Tap) -> bool:
        return bool(self._calls.get(tap))

    @property
    def taps(self) -> list[Tap]:
        """The places this record has, called or not."""
        return list(self._calls)

    def add(self, tap: Tap, value: Any) -> None:
        """Append one call. Hooks do this; a caller may add what no hook can see."""
        if self._clone:
            value = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, value)
        if tap not in self._calls:
            self._calls[tap] = []
        self._calls[tap].append(value)
        if not torch.compiler.is_compiling():
            self._versions.setdefault(tap, []).append(_versions(value))

    def calls(self, tap: Tap) -> list[Any]:
        """Everything recorded at `tap`, one item per call of the layer, unselected.

        Raises `DistillationError` when the layer was not called, `ConfigError` when this record
        has no such tap, `DistillationError` when a recorded tensor was changed in place since.
        """
        if tap not in self._calls:
            raise ConfigError(unknown("tap", tap, map(str, self._calls)))
        calls = self._calls[tap]
        if not calls:
            raise DistillationError(
                f"nothing was recorded for the {tap}: the layer was not called in this forward "
                "pass (skipped by the model, replaced by a fused path, or called through "
                "`.forward` directly, which runs no hooks). Choose a layer that runs."
            )
        for seen in self._versions.get(tap, ()):
            if any(tensor._version != version for tensor, version in seen):
                raise DistillationError(
                    f"the {tap} was changed in place after it was recorded (an `inplace=True` "
                    "activation behind it, most likely), so it no longer is what the layer gave. "
                    "Record it with clone=True, use inplace=False, or choose the layer that "
                    "comes after."
                )
        return list(calls)

    def tensor(self, tap: Tap, *, call: int | str = -1, select: Selector = None) -> Any:
        """The tensor recorded at `tap` in call number `call` (default: the last).

        `call="all"` gives the list of all calls' tensors. `select` as in `as_tensor`.
        """
        calls = self.calls(tap)
        if call == "all":
            return [as_tensor(value, select, what=str(tap)) for value in calls]
        if not isinstance(call, int):
            raise ConfigError(f"call must be an integer or 'all', not {call!r}")
        if not -len(calls) <= call < len(calls):
            raise ConfigError(f"the {tap} has {len(calls)} call(s), there is no call {call}")
        return as_tensor(calls[call], select, what=str(tap))

    def clear(self) -> None:
        """Forget every value; the tensors are free to go."""
        self._calls.clear()
        self._versions.clear()


class _Cell:
    """The state of one thread. A plain object, so that dynamo can write to it."""

    def __init__(self) -> None:
        self.armed: Record | None = None
        self.held: Record | None = None


class _Slot(threading.local):
    def __init__(self) -> None:
        self.cell = _Cell()
