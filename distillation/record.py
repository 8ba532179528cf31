"""What a capture records: places (`Tap`) and, for each, every call of the layer (`Record`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from distillation.errors import ConfigError, DistillationError, unknown
from distillation.selection import Selector, as_tensor


class Tap(NamedTuple):
    """One place to record: the `kind` ("output" or "input") of `layer` in the model `model`.

    `layer` is a dotted name as in `named_modules()`; the empty name is the whole model.
    """

    model: str
    layer: str
    kind: str = "output"

    def __str__(self) -> str:
        layer = f"layer {self.layer!r}" if self.layer else "model itself"
        return f"{self.kind} of the {self.model} {layer}"


class Record:
    """What one armed stretch of one thread saw: for each tap, every call in order."""

    def __init__(self, taps: Iterable[Tap] = (), clone: bool = False):
        self._calls: dict[Tap, list[Any]] = {tap: [] for tap in taps}
        self._seen: dict[Tap, list[tuple[Tensor, int]]] = {}
        self._clone = clone
        self.grad_enabled = torch.is_grad_enabled()

    def __contains__(self, tap: Tap) -> bool:
        return bool(self._calls.get(tap))

    def add(self, tap: Tap, value: Any) -> None:
        """Append one call of `tap`. Hooks do this; callers may add what no hook can see."""
        if self._clone:
            value = tree_map(_cloned, value)
        if tap not in self._calls:
            self._calls[tap] = []
        self._calls[tap].append(value)
        if not torch.compiler.is_compiling():
            self._seen.setdefault(tap, []).extend(_versions(value))

    def calls(self, tap: Tap) -> list[Any]:
        """Everything recorded at `tap`, one item for each call of the layer, unselected.

        Raises `ConfigError` when this record has no such tap, `DistillationError` when the layer
        was not called, or when what it gave was changed in place since.
        """
        if tap not in self._calls:
            raise ConfigError(unknown("tap", tap, map(str, self._calls)))
        calls = self._calls[tap]
        if not calls:
            raise DistillationError(
                f"nothing was recorded for the {tap}: it was not called in this forward pass "
                "(skipped by the model, replaced by a fused path, or called as `.forward`, which "
                "runs no hooks). Choose a layer that is called."
            )
        if any(tensor._version != version for tensor, version in self._seen.get(tap, ())):
            raise DistillationError(
                f"the {tap} was changed in place after it was recorded (most likely by an "
                "activation with inplace=True behind it), so it no longer is what the layer "
                "gave. Pair the layer behind it, use inplace=False there, or, in a Capture of your "
                "own, clone=True."
            )
        return list(calls)

    def tensor(self, tap: Tap, *, call: int | str = -1, select: Selector = None) -> Any:
        """The tensor of call number `call` of `tap` (default: the last call).

        `call="all"` gives a list with the tensor of each call. `select` as in `as_tensor`.
        """
        calls = self.calls(tap)
        if call == "all":
            return [as_tensor(value, select, what=str(tap)) for value in calls]
        if not isinstance(call, int):
            raise ConfigError(f"call must be an integer or 'all', not {call!r}")
        if not -len(calls) <= call < len(calls):
            raise ConfigError(f"the {tap} was called {len(calls)} time(s): no call {call}")
        return as_tensor(calls[call], select, what=str(tap))

    def clear(self) -> None:
        """Forget every value, so that the tensors are free to go."""
        self._calls.clear()
        self._seen.clear()


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _versions(value: Any) -> list[tuple[Tensor, int]]:
    leaves = (value,) if isinstance(value, Tensor) else tree_leaves(value)
    return [
        (leaf, leaf._version)
        for leaf in leaves
        if isinstance(leaf, Tensor) and not leaf.is_inference()
    ]
