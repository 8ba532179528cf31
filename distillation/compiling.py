"""`torch.compile`, and the way back when it cannot.

`mode` is torch's: "default"; "reduce-overhead", which on a GPU records the call as CUDA graphs, so
that a step no longer waits for Python (possible with a teacher table, since no teacher runs in the
step); "max-autotune", which tries kernels out as well. A CUDA graph writes each result over the
last one's memory: what must outlive the next call has to be cloned. On a CPU "reduce-overhead" is
"default". The modes of a GPU are torch's own and were not tried here, for want of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from distillation.errors import ConfigError, unknown

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
OPTIONS = ("fullgraph", "dynamic", "backend", "mode", "options", "disable")


class WithFallback:
    """Calls `function` compiled; when compiling fails, says so once and calls it as it is.

    Only failures to compile are caught; an error of the function itself is raised by the plain
    call. Compilation happens on the first call of each shape and mode. `options` are those of
    `torch.compile`.

    Raises `ConfigError` for options, modes and backends that torch does not have.
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        # Only here: to import it takes as long as all the rest of torch
        from torch._dynamo.exc import InvalidBackend

        check_options(options)
        self.function = function
        self._compiled: Any = None
        try:
            self._compiled = torch.compile(function, **options)
        except InvalidBackend as error:
            known = torch._dynamo.list_backends()
            raise ConfigError(unknown("backend", options.get("backend"), known)) from error
        except RuntimeError as error:  # not on this system, or not under this Python
            self._give_up(error)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            return self.function(*args, **kwargs)
        try:
            return self._compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._give_up(error)
            return self.function(*args, **kwargs)

    def _give_up(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])
        warnings.warn(
            f"torch.compile failed ({type(error).__name__}: {reason}); the model runs uncompiled",
            stacklevel=3,
        )
        self._compiled = None


class CompiledCall(WithFallback):
    """A module that is called compiled, with the way back of `WithFallback`."""

    def __init__(self, module: nn.Module, **options: Any):
        self.module = module
        super().__init__(module, **options)

    def train(self, mode: bool = True) -> CompiledCall:
        """Training or evaluation mode of the module."""
        self.module.train(mode)
        return self

    def eval(self) -> CompiledCall:
        """Evaluation mode of the module."""
        return self.train(False)


def compile_in_place(module: nn.Module, **options: Any) -> None:
    """As `module.compile(**options)`, with the way back of `WithFallback`.

    The module stays what it is, its weights keep their names, and a copy of it is not compiled.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        # A function of ours: torch skips frames of its own, so `module.compile()` leaves a model
        # made of torch's containers alone (an nn.Sequential) uncompiled without a word.
        return module._call_impl(*args, **kwargs)

    module._compiled_call_impl = WithFallback(call, **options)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for what `torch.compile` does not take."""
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(unknown("argument of torch.compile:", name, OPTIONS))
    mode = options.get("mode")
    if mode is not None and mode not in MODES and options.get("backend") in (None, "inductor"):
        raise ConfigError(unknown("mode of torch.compile:", mode, MODES))
    if mode is not None and options.get("options") is not None:
        raise ConfigError("torch.compile takes a mode or options, not both")
