"""Devices, precision and processes: one Accelerator, made from names."""

from __future__ import annotations

import atexit
import os
import sys
import warnings

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from distillation.errors import ConfigError, unknown
from distillation.precision import is_available, resolve_precision, usual_device

DEVICES = ("auto", "cpu", "cuda", "mps")


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
    if not is_available(device):
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
