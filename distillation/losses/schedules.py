"""Balancers whose weights follow the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distillation.errors import ConfigError, unknown
from distillation.losses.balancers import StaticLossBalancer
from distillation.losses.checks import check_count, check_number

SHAPES = ("linear", "cosine")


class ScheduledLossBalancer(StaticLossBalancer):
    r"""Static weights times a ramp $r$.

    $$r \sum_i w_i L_i + \left( 1 - r \sum_i w_i \right) L_s$$

    with $L_i$ the distillation losses and $L_s$ the student's own. At step $k = 0, 1, \ldots$

    $$r = \text{start} + (\text{end} - \text{start}) \cdot f(x)$$

    $$x = \min(k / \text{steps}, 1)$$

    with $f(x) = x$ for "linear" and

    $$f(x) = \frac12 (1 - \cos \pi x)$$

    for "cosine". From 0 to 1 it warms the distillation up, from 1 to 0 it fades it out.

    A step is one call in training mode; evaluation uses the current weights and does not count.
    With gradient accumulation every micro-batch is a call. The count is the buffer `step`, so it
    is saved and resumed with the state dict, and the weights are computed on its device: the host
    never waits.

    Args:
        kd_loss_weight: the weights at r = 1, as in `StaticLossBalancer`.
        steps: length of the ramp, at least 1.
        shape: "linear" or "cosine".
        start, end: the ramp's values, in [0, 1], not equal.

    Raises:
        ConfigError: an unknown shape, or numbers out of range.
    """

    step: Tensor

    def __init__(
        self,
        kd_loss_weight: float | Sequence[float] | Mapping[str, float] = 0.5,
        *,
        steps: int,
        shape: str = "linear",
        start: float = 0.0,
        end: float = 1.0,
    ) -> None:
        super().__init__(kd_loss_weight)
        if shape not in SHAPES:
            raise ConfigError(unknown("shape", shape, SHAPES))
        self.steps = check_count("steps", steps)
        self.shape = shape
        self.start = check_number("start", start, high=1.0)
        self.end = check_number("end", end, high=1.0)
        if self.start == self.end:
            raise ConfigError(
                f"start and end are both {self.start:g}; a constant ramp is StaticLossBalancer."
            )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def ramp(self) -> Tensor:
        """r at the current step: a scalar in float32 on the buffer's device."""
        x = (self.step.to(torch.float32) / self.steps).clamp(max=1.0)
        if self.shape == "cosine":
            x = 0.5 * (1.0 - torch.cos(math.pi * x))
        return self.start + (self.end - self.start) * x

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """The total at this step, a scalar; counts the step in training mode.

        Raises:
            ConfigError: as `StaticLossBalancer`; the student's loss is needed, since the ramp
                leaves a rest for it.
        """
        kd, student = self.split(losses)
        if student is None:
            raise ConfigError(
                "a scheduled balancer leaves a changing rest for the student's own loss, which is "
                "missing; pass student_loss=…."
            )
        ramp = self.ramp()
        total = ramp * self.weighted_sum(kd)
        total = total + (1.0 - ramp * (1.0 - self.student_loss_weight)) * student
        if self.training:
            self.step += 1
        return total

    def extra_repr(self) -> str:
        return (
            f"{self.kd_loss_weight}, steps={self.steps}, shape={self.shape!r}, "
            f"start={self.start}, end={self.end}"
        )
