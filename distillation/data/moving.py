"""From memory to a device, without waiting for what the device is doing."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; the program goes on while a GPU is still at work.

    A copy from ordinary memory to a GPU first waits until the GPU has done all it was given; from
    pinned memory it queues up like any other work. torch keeps the pinned memory until then.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)
