"""`torch.compile`, and the way back when it cannot."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException


class CompiledCall:
    """Calls `module` compiled; when compiling fails, says so once and calls it as it is.

    Only failures to compile are caught; an error of the model itself is raised by the plain call.
    Compilation happens on the first call of each shape and mode. `options` are those of
    `torch.compile`.
    """

    def __init__(self, module: nn.Module, **options: Any):
        self.module = module
        self._compiled: Any = torch.compile(module, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            return self.module(*args, **kwargs)
        try:
            return self._compiled(*args, **kwargs)
        except TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:2])
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {reason}); "
                "the model runs uncompiled",
                stacklevel=2,
            )
            self._compiled = None
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> CompiledCall:
        """Training or evaluation mode of the module."""
        self.module.train(mode)
        return self

    def eval(self) -> CompiledCall:
        """Evaluation mode of the module."""
        return self.train(False)
