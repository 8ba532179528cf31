"""Exponential moving average of the student's weights, on `torch.optim.swa_utils.AveragedModel`.

Polyak & Juditsky (1992). With update n = 1, 2, … of N in all:

    ema ← d(n)·ema + (1 - d(n))·weights

- `constant`: d(n) = decay
- `threshold`: d(n) = min(decay, (1 + n) / (10 + n))
- `exp`: d(n) = decay · (1 - exp(-beta · n / N))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from distillation.trainer.schema import build, option

DECAY_TYPES = ("constant", "threshold", "exp")


@dataclasses.dataclass
class EMAParams:
    """Options of the training parameter `ema_params`."""

    decay: float = option(
        0.9999,
        (float,),
        "Weight of the average at each update, after the ramp.",
        example="0.999",
        valid="a number from 0 to 1",
        check=lambda v: 0 <= v <= 1,
    )
    decay_type: str = option(
        "exp",
        (str,),
        "How the decay rises.",
        example='"threshold"',
        valid=", ".join(DECAY_TYPES),
        check=lambda v: v in DECAY_TYPES,
    )
    beta: float = option(
        15,
        (float,),
        "How fast the decay of `exp` rises.",
        example="10",
        valid="a number above 0",
        check=lambda v: v > 0,
    )


class StudentEMA(AveragedModel):
    """Average of one model's parameters; buffers are copied at each update.

    `total_updates` is the N of the `exp` ramp. `.module` is the averaged copy, in eval mode and
    without gradients. Starts from the model's weights.
    """

    def __init__(
        self, model: nn.Module, params: Mapping[str, Any] | None = None, *, total_updates: int
    ):
        super().__init__(model, multi_avg_fn=self._average)
        options = dict(params or {})
        self.params = build(EMAParams, options, kind="EMA parameter", listed="ema_params")
        self.total_updates = max(1, total_updates)
        self.updates = 0
        # AveragedModel copies instead of averaging while its counter is 0
        self.n_averaged.fill_(1)
        self.requires_grad_(False)
        self.eval()

    def decay_at(self, update: int) -> float:
        """The decay of update `update`, counted from 1."""
        p = self.params
        if p.decay_type == "threshold":
            return min(p.decay, (1 + update) / (10 + update))
        if p.decay_type == "exp":
            return p.decay * (1 - math.exp(-p.beta * update / self.total_updates))
        return p.decay

    def _average(self, averaged: list, current: list, _count: Any) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            torch._foreach_lerp_(averaged, current, 1 - self.decay_at(self.updates))
        else:
            torch._foreach_copy_(averaged, current)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """One update from the model's present weights."""
        self.updates += 1
        super().update_parameters(model)

    def train(self, mode: bool = True) -> StudentEMA:
        """The average is evaluated, never trained: it stays in eval mode."""
        return super().train(False)

    def counters(self) -> Counters:
        """The part of the state that is not weights, to be saved beside them."""
        return Counters(self)


class Counters:
    """State of a `StudentEMA` without its weights: how many updates there were."""

    def __init__(self, ema: StudentEMA):
        self.ema = ema

    def state_dict(self) -> dict[str, int]:
        return {"updates": self.ema.updates}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.ema.updates = int(state["updates"])
