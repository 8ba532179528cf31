"""Parameters of a training as plain values, to be recorded."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: objects become the text that names them."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not inspect.isclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor):
        return plain(value.tolist()) if value.numel() <= 64 else f"tensor{tuple(value.shape)}"
    if isinstance(value, nn.Module):
        text = repr(value)
        return text if len(text) <= 300 else type(value).__name__
    if isinstance(value, torch.optim.Optimizer):
        groups = [{k: plain(v) for k, v in g.items() if k != "params"} for g in value.param_groups]
        return {"class": type(value).__name__, "groups": groups}
    if inspect.isclass(value) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return plain(value.item())
    return type(value).__qualname__


def loader_facts(loader: Any) -> dict[str, Any]:
    """What a loader says of itself: batch size, length, workers."""
    facts: dict[str, Any] = {"class": type(loader).__name__}
    for name in ("batch_size", "num_workers", "drop_last", "seed", "fingerprint"):
        value = getattr(loader, name, None)
        if isinstance(value, bool | int | str):
            facts[name] = value
    try:
        facts["batches"] = len(loader)
    except TypeError:
        facts["batches"] = None
    return facts
