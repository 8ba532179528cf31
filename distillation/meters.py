"""Weighted means that are accumulated on the device and read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


class Meters:
    """Running weighted mean of each named value, without a host sync per `add`.

    Sums are float64 (float32 where the device has no float64), so that a mean over a million
    samples keeps the digits of its terms.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, torch.Tensor | float], n: float = 1.0) -> None:
        """Add the mean of `n` samples for each name; tensors must have one element."""
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                term = value.detach().reshape(()).to(_wide(value.device)) * n
            else:
                term = torch.tensor(float(value) * n, dtype=torch.float64)
            before = self._sums.get(name)
            if before is None:
                self._sums[name] = term.clone()
            elif before.device.type == "cpu":  # sums from a checkpoint follow the device
                self._sums[name] = before.to(term.device) + term
            else:
                self._sums[name] = before + term.to(before.device)
            self._weights[name] = self._weights.get(name, 0.0) + n

    def compute(
        self, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> dict[str, float]:
        """The means so far. `reduce` sums a tensor over processes (same names on each)."""
        names = [n for n in self._sums if self._weights[n] > 0]
        if not names:
            return {}
        device = self._sums[names[0]].device
        sums = torch.stack([self._sums[n].to(device) for n in names])
        weights = torch.tensor([self._weights[n] for n in names], dtype=sums.dtype, device=device)
        if reduce is not None:
            sums, weights = reduce(torch.stack([sums, weights]))
        return dict(zip(names, (sums / weights).tolist(), strict=True))

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> dict[str, Any]:
        """Sums and weights, to go on exactly in the middle of an epoch."""
        return {
            "sums": {k: v.detach().cpu().clone() for k, v in self._sums.items()},
            "weights": dict(self._weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._sums = {k: v.clone() for k, v in state["sums"].items()}
        self._weights = dict(state["weights"])


@torch.no_grad()
def parameter_statistics(module: nn.Module) -> dict[str, float]:
    """Norm, mean and standard deviation of every parameter and gradient of `module`.

    Keys are `param.<name>.norm`, `grad.<name>.std` and so on; one read from the device.
    """
    rows: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        for kind, tensor in (("param", parameter), ("grad", parameter.grad)):
            if tensor is not None:
                rows[f"{kind}.{name}.norm"] = tensor.norm()
                rows[f"{kind}.{name}.mean"] = tensor.mean()
                rows[f"{kind}.{name}.std"] = tensor.std(correction=0)
    if not rows:
        return {}
    values = torch.stack([v.to(torch.float32) for v in rows.values()]).tolist()
    return dict(zip(rows, values, strict=True))
