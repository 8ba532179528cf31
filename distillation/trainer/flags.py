"""The caller's objects get their flags back: `training` and `requires_grad`."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from torch import nn


class KeepFlags:
    """Remembers the flags of modules on entry and gives them back on exit, also after an error.

    Submodules that were exchanged meanwhile are put back as well.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self.modules = list(modules)

    def __enter__(self) -> KeepFlags:
        self._training = [(m, m.training) for top in self.modules for m in top.modules()]
        self._grad = [(p, p.requires_grad) for top in self.modules for p in top.parameters()]
        self._children = [
            (m, name, child)
            for top in self.modules
            for m in top.modules()
            for name, child in m._modules.items()
        ]
        self._calls = [(m, m._compiled_call_impl) for top in self.modules for m in top.modules()]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for module, name, child in self._children:
            module._modules[name] = child
        for module, flag in self._training:
            module.training = flag
        for parameter, flag in self._grad:
            parameter.requires_grad_(flag)
        for module, call in self._calls:
            module._compiled_call_impl = call
