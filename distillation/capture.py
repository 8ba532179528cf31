"""Outputs and inputs of named layers, taken by forward hooks while a forward pass runs.

A `Capture` sits on several models at once (a student and its teacher, say). Its hooks record only
while it is armed, and only in the thread that armed it, so

* two threads that forward the same models get their own records;
* a layer that runs again during backward (activation checkpointing) is not recorded again;
* several captures can sit on one teacher without seeing each other.

What was recorded is held until `take()`, `clear()` or the next `arm()` of the same thread. Arming,
recording and disarming are traced by `torch.compile` without a graph break. (Two limits there:
changes in place are found in eager mode only, and for a layer inside a checkpointed block dynamo
wants `torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True`.)
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils._pytree import tree_leaves

from distillation.errors import ConfigError, DistillationError, unknown
from distillation.record import Record, Tap
from distillation.selection import LayerInput

__all__ = ["Capture", "DeadHook", "LayerInput", "Record", "Tap", "find_layer", "purge"]

KINDS = ("output", "input")


class Capture:
    """Hooks on the layers `taps` of `models`, which record while armed.

    `models` maps a name to a model; `taps` are `Tap`s (or plain tuples), repeated ones count once.
    `clone=True` copies each tensor when it is recorded, for layers that are followed by an
    in-place operation. `trained` names the models whose recorded tensors must carry a gradient
    when grad mode is on (by default "student", where there is one): for these, a layer inside a
    reentrant checkpoint is an error (see `arm`), since its part of the loss would silently train
    nothing.

    Raises `ConfigError` for unknown models, layers and kinds; then no hook is left behind.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        taps: Iterable[Tap | tuple],
        *,
        clone: bool = False,
        trained: Iterable[str] | None = None,
    ):
        self.models = dict(models)
        self.taps = tuple(dict.fromkeys(map(_tap, taps)))
        self.clone = clone
        self.trained = tuple(trained if trained is not None else {"student"} & set(self.models))
        for name in self.trained:
            if name not in self.models:
                raise ConfigError(unknown("model", name, self.models))
        self._slot = _Slot()
        layers = [(tap, self._layer(tap)) for tap in self.taps]
        handles = [_register(tap, layer, self._hook(tap)) for tap, layer in layers]
        # The hooks know the slot, not the capture: a dropped capture takes its hooks along.
        self._finalizer = weakref.finalize(self, _remove, handles)
        self._finalizer.atexit = False

    def _layer(self, tap: Tap) -> nn.Module:
        if tap.model not in self.models:
            raise ConfigError(unknown("model", tap.model, self.models))
        if tap.kind not in KINDS:
            raise ConfigError(unknown("kind of tap", tap.kind, KINDS))
        return find_layer(self.models[tap.model], tap.layer, what=f"{tap.model} layer")

    def _hook(self, tap: Tap) -> _Hook:
        root = weakref.ref(self.models[tap.model]) if tap.model in self.trained else None
        return (_OutputHook if tap.kind == "output" else _InputHook)(self._slot, tap, root)

    def arm(self) -> Record:
        """Start recording in this thread; what this thread still held is dropped first.

        While armed with grad mode on, a layer of a trained model that runs under a reentrant
        activation checkpoint, or without grad though it has trainable parameters, raises
        `DistillationError`: what it gives has no graph, and its loss would train nothing.
        """
        cell = self._slot.cell
        cell.held = None
        cell.armed = Record(self.taps, self.clone)
        return cell.armed

    def disarm(self) -> Record | None:
        """Stop recording in this thread; the record is held until `take()` or `clear()`."""
        cell = self._slot.cell
        if cell.armed is not None:
            cell.held = cell.armed
            cell.armed = None
        return cell.held

    @property
    def is_armed(self) -> bool:
        """Whether this thread is recording."""
        return self._slot.cell.armed is not None

    @contextlib.contextmanager
    def recording(self) -> Iterator[Record]:
        """`arm` and `disarm` around a block. After an error nothing is held."""
        outer = self._slot.cell.armed
        record = self.arm()
        try:
            yield record
        except BaseException:
            self.clear()
            raise
        finally:
            self.disarm()
            self._slot.cell.armed = outer

    @property
    def record(self) -> Record | None:
        """This thread's record: the one being filled, else the one held, else None."""
        cell = self._slot.cell
        return cell.armed if cell.armed is not None else cell.held

    def take(self) -> Record:
        """Hand over the record this thread holds, and forget it here.

        Raises `DistillationError` when there is none: no forward pass since the last `take`.
        """
        cell = self._slot.cell
        record = cell.held
        if record is None:
            raise DistillationError(
                "no forward pass has been recorded in this thread since the last loss. "
                "Run the student's forward first, once for each loss."
            )
        cell.held = None
        return record

    def clear(self) -> None:
        """Drop whatever this thread has recorded, and stop recording in it."""
        cell = self._slot.cell
        if cell.armed is not None:
            cell.armed.clear()
        cell.armed = None
        cell.held = None

    def remove(self) -> None:
        """Take every hook off and drop this thread's record. Removing twice is harmless."""
        self._finalizer()
        self.clear()

    def rebind(self, models: Mapping[str, nn.Module]) -> Capture:
        """The same taps on other models, as after a deepcopy. This capture stays as it is."""
        for model in models.values():
            purge(model)
        return Capture(models, self.taps, clone=self.clone, trained=self.trained)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict) -> Capture:
        raise DistillationError(
            "a Capture cannot be copied or pickled, it belongs to the models it hooks: use "
            "rebind(models)"
        )

    def __reduce__(self) -> tuple:
        return self.__deepcopy__({})


def find_layer(model: nn.Module, name: str, *, what: str = "layer") -> nn.Module:
    """The submodule `name` of `model`; "" is the model. Unknown: `ConfigError` with the nearest."""
    layers = dict(model.named_modules(remove_duplicate=False))
    if name not in layers:
        listed = f"[n for n, _ in {type(model).__name__}.named_modules()]"
        raise ConfigError(unknown(what, name, filter(None, layers), listed))
    return layers[name]


def purge(model: nn.Module) -> int:
    """Take off the dead hooks that a deepcopy or an unpickling left; returns their number."""
    count = 0
    for layer in model.modules():
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, DeadHook)]:
                count += 1
                for table in _HOOK_TABLES:
                    getattr(layer, table).pop(key, None)
    return count


_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class _Cell:
    """The state of one thread: a plain object, because dynamo can write to one."""

    def __init__(self) -> None:
        self.armed: Record | None = None
        self.held: Record | None = None


class _Slot(threading.local):
    def __init__(self) -> None:
        self.cell = _Cell()


class DeadHook:
    """What a capture's hook becomes when the module it sits on is copied or pickled."""

    def __call__(self, *_: object) -> None:
        return None


class _Hook:
    def __init__(self, slot: _Slot, tap: Tap, root: weakref.ref[nn.Module] | None):
        self.slot, self.tap, self.root = slot, tap, root

    def __deepcopy__(self, memo: dict) -> DeadHook:
        return DeadHook()

    def __reduce__(self) -> tuple:
        return DeadHook, ()


class _OutputHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        record = self.slot.cell.armed
        if record is None:
            return
        if not torch.compiler.is_compiling():
            _check_graph(self, record, module, output)
        record.add(self.tap, output)


class _InputHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        record = self.slot.cell.armed
        if record is None:
            return
        if not torch.compiler.is_compiling():
            _check_graph(self, record, module, (args, kwargs))
        record.add(self.tap, LayerInput(args, dict(kwargs)))


def _tap(tap: Any) -> Tap:
    fields = tuple(tap) if isinstance(tap, tuple | list) else ()
    if len(fields) not in (2, 3) or not all(isinstance(field, str) for field in fields):
        raise ConfigError(f"a tap is (model, layer) or (model, layer, kind), all str; got {tap!r}")
    return Tap(*fields)


def _register(tap: Tap, layer: nn.Module, hook: _Hook) -> torch.utils.hooks.RemovableHandle:
    if tap.kind == "input":
        return layer.register_forward_pre_hook(hook, with_kwargs=True)
    return layer.register_forward_hook(hook)


def _remove(handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _check_graph(hook: _Hook, record: Record, layer: nn.Module, value: Any) -> None:
    """Raise when a trained model's tensor is recorded where autograd cannot see it."""
    if hook.root is None or not record.grad_enabled or torch.is_grad_enabled():
        return
    root = hook.root()
    if root is None or not root.training:
        return
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(value)):
        return  # made before grad mode went off: a checkpointed block's own input
    where = None
    if any(parameter.requires_grad for parameter in layer.parameters()):
        where = "ran without grad although it has trainable parameters"
    if inside_autograd_function(sys._getframe(2)) and any(
        parameter.requires_grad for parameter in root.parameters()
    ):
        where = "ran inside an autograd function, as a reentrant activation checkpoint is"
    if where:
        raise DistillationError(
            f"the {hook.tap} {where}: what it gives there has no gradient, so its loss would "
            "train nothing. Use checkpoint(..., use_reentrant=False), or capture a layer outside "
            "the checkpointed block. If no gradient is meant, freeze the layer with "
            "requires_grad_(False)."
        )


def inside_autograd_function(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, FunctionCtx):
                return True
        frame = frame.f_back
    return False
