"""Precision by name: what a device computes in, and what it computes fast."""

from __future__ import annotations

import platform
import warnings
from typing import Any

import torch

from distillation.errors import ConfigError, unknown

PRECISIONS = ("fp32", "bf16", "fp16")
AUTO = "auto"


def is_available(device: str) -> bool:
    """Whether "cpu", "cuda" or "mps" is there."""
    if device == "cuda":
        return torch.cuda.is_available()
    if device == "mps":
        return torch.backends.mps.is_available()
    return True


def usual_device() -> str:
    """The name of the device that "auto" is here."""
    return next(name for name in ("cuda", "mps", "cpu") if is_available(name))


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
            "torch has no fast bf16 for this processor, and takes some ten times longer for it "
            "than for fp32; precision 'auto' takes the faster of them",
            stacklevel=3,
        )
    return precision
