"""Devices, precision and processes: one Accelerator, made from names."""

from __future__ import annotations

import atexit
import os
import platform
import sys
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from distillation.errors import ConfigError, unknown

PRECISIONS = ("fp32", "bf16", "fp16")
AUTO = "auto"
DEVICES = ("auto", "cpu", "cuda", "mps")


def _available(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_available()
    if device == "mps":
        return torch.backends.mps.is_available()
    return True


def computes_bf16(device: str) -> bool:
    """Whether `device` ("cpu", "cuda", "mps") has instructions for bf16, so that it saves time.

    On MPS this is not known, and False.
    """
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return _bf16_kernels()


def _bf16_kernels() -> bool:
    """Whether oneDNN computes bf16 on this CPU; without, torch does, some ten times slower."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def resolve_precision(precision: str, device: Any = None) -> str:
    """`precision`, where "auto" is bf16 if `device` has instructions for it, and fp32 if not.

    `device` is a name, as for `make_accelerator`, or a `torch.device`. Warns of bf16 on a CPU that
    is far slower at it than at fp32. Raises ConfigError for an unknown precision.
    """
    if precision not in (*PRECISIONS, AUTO):
        raise ConfigError(unknown("precision", precision, (*PRECISIONS, AUTO)))
    kind = str(device or "auto").partition(":")[0]
    kind = usual_device() if kind == "auto" else kind
    if precision == AUTO:
        return "bf16" if computes_bf16(kind) else "fp32"
    if precision == "bf16" and kind == "cpu" and not _bf16_kernels():
        warnings.warn(
            "this processor has no instructions for bf16 and takes some ten times longer for it "
            "than for fp32; precision 'auto' takes the faster of them",
            stacklevel=3,
        )
    return precision


def usual_device() -> str:
    """The name of the device that "auto" is here."""
    return next(name for name in ("cuda", "mps", "cpu") if _available(name))


def make_accelerator(device: str | None = None, precision: str = "fp32", **options) -> Accelerator:
    """An Accelerator on `device` ("auto", "cpu", "cuda", "mps") with autocast to `precision`.

    "auto" is bf16 where the device computes it fast, else fp32. fp16 needs a GPU; on a CPU it
    becomes bf16, with a warning. Further options go to Accelerator. Raises ConfigError for an
    unknown name or a device that is not there.
    """
    device = str(device or "auto")
    if device not in DEVICES:
        raise ConfigError(unknown("device", device, DEVICES))
    precision = resolve_precision(precision, device)
    if not _available(device):
        raise ConfigError(f"device {device!r} is not available here; use --device cpu")
    on_cpu = (usual_device() if device == "auto" else device) == "cpu"
    if precision == "fp16" and on_cpu:
        warnings.warn("fp16 needs a GPU; bf16 is used on the CPU instead", stacklevel=3)
        precision = resolve_precision("bf16", "cpu")
    mixed = {"fp32": "no"}.get(precision, precision)
    state = AcceleratorState._shared_state
    if state:
        # Accelerate keeps one state a process; a second training in a process may differ
        same = state.get("_mixed_precision") == mixed and state.get("_cpu", on_cpu) == on_cpu
        if not same or options:
            AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, **options)
    if accelerator.num_processes > 1:
        # Threads of the process group that outlive the interpreter abort the process
        atexit.register(_leave_process_group)
    return accelerator


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave(code: int) -> None:
    """End a program that was one of several processes, with this exit code; else do nothing.

    The threads of a gloo process group can abort the interpreter while it is torn down, after all
    work is done; so the process group is left, what was printed is flushed, and the process ends.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
