"""Weighted means that are accumulated on the device and read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


def wide(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has none."""
    return torch.float32 if device.type == "mps" else torch.float64


class Meters:
    """Running weighted mean of each named value, without a host sync per `add`.

    Sums are float64 (float32 where the device has no float64), so that a mean over a million
    samples keeps the digits of its terms. Names that come together are summed as one vector:
    a step that logs five values costs little more than one that logs one.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], torch.Tensor] = {}
        self._weights: dict[tuple[str, ...], float] = {}

    def add(self, values: Mapping[str, torch.Tensor | float], n: float = 1.0) -> None:
        """Add the mean of `n` samples for each name; tensors must have one element.

        A mean of 0 samples weighs nothing, whatever it is (of an empty batch it is NaN).
        """
        if values:
            self.add_terms(tuple(values), vector(values) * n, n)

    def add_terms(self, names: tuple[str, ...], terms: torch.Tensor, n: float) -> None:
        """Add sums over `n` samples, one for each name, as `vector` made them."""
        if n == 0:
            terms = torch.zeros_like(terms)
        before = self._sums.get(names)
        if before is None:
            self._sums[names] = terms
        elif before.device.type == "cpu":  # sums from a checkpoint follow the device
            self._sums[names] = before.to(terms.device) + terms
        else:
            self._sums[names] = before + terms.to(before.device)
        self._weights[names] = self._weights.get(names, 0.0) + n

    def compute(
        self, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> dict[str, float]:
        """The means so far. `reduce` sums a tensor over processes (same names on each).

        A process with no samples takes part by adding the names with a count of 0.
        """
        groups = list(self._sums)
        if not groups:
            return {}
        device = self._sums[groups[0]].device
        sums = torch.cat([self._sums[names].to(device) for names in groups])
        weights = [self._weights[names] for names in groups for _ in names]
        both = torch.stack([sums, torch.tensor(weights, dtype=sums.dtype, device=device)])
        if reduce is not None:
            both = reduce(both)
        totals: dict[str, list[float]] = {}
        flat = [name for names in groups for name in names]
        for name, value, weight in zip(flat, *both.tolist(), strict=True):
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += weight
        return {name: value / weight for name, (value, weight) in totals.items() if weight}

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> dict[str, Any]:
        """Sums and weights, to go on exactly in the middle of an epoch."""
        return {
            "names": [list(names) for names in self._sums],
            "sums": [total.detach().cpu().clone() for total in self._sums.values()],
            "weights": list(self._weights.values()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        names = [tuple(group) for group in state["names"]]
        self._sums = {k: v.clone() for k, v in zip(names, state["sums"], strict=True)}
        self._weights = dict(zip(names, state["weights"], strict=True))


def vector(named: Mapping[str, torch.Tensor | float]) -> torch.Tensor:
    """Single numbers as one wide vector, on the device of the first tensor among them."""
    values = list(named.values())
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if not tensors:
        return torch.tensor([float(v) for v in values], dtype=torch.float64)
    device = tensors[0].device
    dtype = tensors[0].dtype
    alike = len(tensors) == len(values) and all(
        v.dtype == dtype and v.device == device for v in tensors
    )
    if not alike:
        like = {"dtype": wide(device), "device": device}
        values = [
            v.to(**like) if isinstance(v, torch.Tensor) else torch.tensor(float(v), **like)
            for v in values
        ]
    flat = [v if v.dim() == 0 else v.reshape(()) for v in values]
    with torch.no_grad():
        return torch.stack(flat).to(wide(device))


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
