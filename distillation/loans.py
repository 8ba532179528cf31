"""Flags of a caller's model, borrowed and given back.

`training` (of each submodule) and `requires_grad` (of each parameter) belong to whoever made the
model. A `Loan` changes them for as long as it lasts. Loans are counted per submodule and per
parameter, so models that overlap can be lent to several borrowers, and the flags come back as they
were before the first loan when the last one ends, in whatever order they end.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from distillation.errors import ConfigError, TeacherError, unknown

MODES = ("eval", "follow", "train")


@dataclass
class _Entry:
    """One lent object: the flag it had, how it is lent, and to how many."""

    original: bool
    mode: str
    count: int = 0


# Keys are compared by identity and held weakly: a lent model may die, its entries go with it.
_modules = WeakIdKeyDictionary()
_parameters = WeakIdKeyDictionary()
_lock = threading.RLock()
_depth = 0
_ended: deque[Loan] = deque()


class Loan:
    """`model` in `mode`, until `end()`.

    "eval": every submodule in evaluation mode, every parameter frozen. "follow": frozen, the
    `training` flags are the borrower's to set. "train": not frozen either. A submodule can be
    lent many times, but in one mode only; otherwise `TeacherError`, and nothing is changed.

    Holds the model weakly.
    """

    def __init__(self, model: nn.Module, mode: str = "eval"):
        if mode not in MODES:
            raise ConfigError(unknown("teacher mode", mode, MODES))
        self.mode = mode
        modules = list(model.modules())
        parameters = list(model.parameters()) if mode != "train" else []
        with _open():
            for name, module in model.named_modules():
                entry = _modules.get(module)
                if entry is not None and entry.mode != mode:
                    raise TeacherError(
                        f"{type(model).__name__}{f' (its {name!r})' if name else ''} is in use as "
                        f"a teacher with mode {entry.mode!r}, and cannot have mode {mode!r} at "
                        "the same time. Use one mode for all its students, or a copy of it."
                    )
            self._root = weakref.ref(model)
            self._modules = [weakref.ref(module) for module in modules]
            self._parameters = [weakref.ref(parameter) for parameter in parameters]
            self._open = True
            for module in modules:
                _modules.setdefault(module, _Entry(module.training, mode)).count += 1
            for parameter in parameters:
                entry = _parameters.setdefault(parameter, _Entry(parameter.requires_grad, mode))
                entry.count += 1
            try:
                if mode == "eval":
                    model.eval()  # the model's own method: some do more than set flags
                    for module in modules:
                        module.training = False
                for parameter in parameters:
                    parameter.requires_grad_(False)
            except BaseException:
                self._give_back()
                raise

    def end(self) -> None:
        """Give the flags back, unless another loan needs them. Ending twice is harmless."""
        with _open():
            self._give_back()

    def end_later(self) -> None:
        """`end()` for finalizers, which may run in the middle of any loan's bookkeeping."""
        _ended.append(self)
        _settle()

    def _give_back(self) -> None:
        if not self._open:
            return
        self._open = False
        root = self._root()
        entry = None if root is None else _modules.get(root)
        if entry is not None and entry.count == 1 and root.training != entry.original:
            root.train(entry.original)
        for reference in self._modules:
            module = reference()
            entry = None if module is None else _modules.get(module)
            if entry is None:
                continue
            entry.count -= 1
            if entry.count == 0:
                del _modules[module]
                module.training = entry.original
            elif entry.mode == "eval":
                module.training = False
        for reference in self._parameters:
            parameter = reference()
            entry = None if parameter is None else _parameters.get(parameter)
            if entry is None:
                continue
            entry.count -= 1
            if entry.count == 0:
                del _parameters[parameter]
                parameter.requires_grad_(entry.original)


@contextlib.contextmanager
def _open() -> Iterator[None]:
    """The books, open for this thread; what ended meanwhile is settled afterwards."""
    global _depth
    with _lock:
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
    _settle()


def _settle() -> None:
    global _depth
    while _ended and _lock.acquire(blocking=False):
        try:
            if _depth:  # a finalizer inside our own bookkeeping: whoever opened it settles
                return
            _depth += 1
            try:
                while _ended:
                    _ended.popleft()._give_back()
            finally:
                _depth -= 1
        finally:
            _lock.release()
