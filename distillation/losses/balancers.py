r"""Balancers: one total from several losses.

A balancer is a module called with a dictionary: one scalar per distillation loss under its name
`<Class>_<i>` (i = place in the criterion), in the criterion's order, and the student's own loss, if
there is one, under `STUDENT_LOSS_KEY`. It may own parameters and buffers; they are trained, moved
and saved with the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Self

import torch
from torch import Tensor, nn

from distillation.errors import ConfigError, ShapeError, unknown
from distillation.losses.checks import check_count, check_number
from distillation.losses.interface import Remembers

STUDENT_LOSS_KEY = "student_loss"
SUM_TOLERANCE = 1e-6


class DistillationLossBalancer(Remembers):
    """Base of the balancers: subclass it and define `forward(losses) -> Tensor`.

    `split(losses)` is there to help.
    """

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def check(self, names: Sequence[str]) -> None:
        """Raise `ConfigError` unless it can weigh the distillation losses of these names."""

    def split(self, losses: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """The distillation losses in their order, and the student's loss or None.

        Raises:
            ConfigError: no distillation loss.
            ShapeError: a loss that is not a scalar.
        """
        for name, loss in losses.items():
            if loss.dim() != 0:
                raise ShapeError(
                    f"{name} has shape {tuple(loss.shape)}; a balancer adds scalars. Reduce it "
                    "first (reduction='batchmean', or loss_reduction_fn)."
                )
        kd = {name: loss for name, loss in losses.items() if name != STUDENT_LOSS_KEY}
        if not kd:
            raise ConfigError("there is no distillation loss to balance.")
        return kd, losses.get(STUDENT_LOSS_KEY)


class StaticLossBalancer(DistillationLossBalancer):
    r"""$\sum_i w_i \cdot kd_i + (1 - \sum_i w_i) \cdot student$ with fixed weights.

    Args:
        kd_loss_weight: at least 0, and at most 1 in sum (to within 1e-6):
            a number weighs the one loss, or the sum of all of them:
            $w \cdot \sum_i kd_i + (1 - w) \cdot student$;
            a sequence goes in the criterion's order; a mapping goes by name `<Class>_<i>`.

    When the weights sum to 1 no student loss is needed.

    Raises:
        ConfigError: weights that are negative, not finite, or more than 1 in sum.
    """

    def __init__(self, kd_loss_weight: float | Sequence[float] | Mapping[str, float] = 0.5) -> None:
        super().__init__()
        self.kd_loss_weight = _check_weights(kd_loss_weight)
        self.student_loss_weight = _rest(self.kd_loss_weight)

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """The total, a scalar.

        Raises:
            ConfigError: another number of losses than of weights, names without a weight or
                weights without a loss, or no student loss though the weights leave a rest.
        """
        kd, student = self.split(losses)
        total = self.weighted_sum(kd)
        if student is not None:
            return total + self.student_loss_weight * student
        if self.student_loss_weight > 0:
            raise ConfigError(
                f"the distillation weights leave {self.student_loss_weight:g} for the student's "
                "own loss, which is missing; pass student_loss=…, or weights that sum to 1."
            )
        return total

    def check(self, names: Sequence[str]) -> None:
        if not isinstance(self.kd_loss_weight, float):
            self._by_name(names)

    def weighted_sum(self, kd: dict[str, Tensor]) -> Tensor:
        """The distillation losses, weighted and added."""
        if isinstance(self.kd_loss_weight, float):
            return self.kd_loss_weight * _add(list(kd.values()))
        weights = self._by_name(list(kd))
        return _add([weights[name] * loss for name, loss in kd.items()])

    def _by_name(self, kd: Sequence[str]) -> dict[str, float]:
        weights = self.kd_loss_weight
        if isinstance(weights, list):
            if len(weights) != len(kd):
                raise ConfigError(
                    f"there are {len(weights)} weights for {len(kd)} distillation losses: "
                    f"{', '.join(kd)}."
                )
            return dict(zip(kd, weights, strict=True))
        for name in weights:
            if name not in kd:
                raise ConfigError(unknown("distillation loss", name, kd))
        missing = [name for name in kd if name not in weights]
        if missing:
            raise ConfigError(
                f"kd_loss_weight has no weight for {', '.join(missing)}; give 0 to leave one out."
            )
        return weights

    def extra_repr(self) -> str:
        return f"{self.kd_loss_weight}"


class UncertaintyLossBalancer(DistillationLossBalancer):
    r"""Learned weights: $\sum_i e^{-s_i} L_i + \frac12 s_i$ over all losses.

    $s_i = \log \sigma_i^2$ is a parameter per loss; at the optimum $e^{-s_i} = 1 / (2 L_i)$, so
    that a loss counts by its relative and not by its absolute change. Give the parameters to the
    optimizer (they are the balancer's `parameters()`), without weight decay. The total can be
    negative.

    Args:
        num_kd_losses: how many distillation losses there are.
        student_loss: whether the student's own loss takes part.
        initial_log_variance: all $s_i$ at the start.

    Source: Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses" (2018),
    equation 10 (the form for likelihoods of classes), arXiv 1705.07115.
    """

    def __init__(
        self,
        num_kd_losses: int = 1,
        student_loss: bool = True,
        initial_log_variance: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_kd_losses = check_count("num_kd_losses", num_kd_losses)
        self.student_loss = bool(student_loss)
        start = check_number("initial_log_variance", initial_log_variance, low=-math.inf)
        count = self.num_kd_losses + self.student_loss
        # In the criterion's order; the student's loss comes last.
        self.log_variances = nn.Parameter(torch.full((count,), start))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """The total, a scalar.

        Raises:
            ConfigError: other losses than it was constructed for.
        """
        kd, student = self.split(losses)
        self.check(list(kd))
        if self.student_loss != (student is not None):
            raise ConfigError(
                f"UncertaintyLossBalancer was made with student_loss={self.student_loss}, and a "
                f"student loss is {'missing' if student is None else 'given'}."
            )
        parts = [*kd.values(), *([] if student is None else [student])]
        stacked = torch.stack([part.to(self.log_variances.dtype) for part in parts])
        return ((-self.log_variances).exp() * stacked + 0.5 * self.log_variances).sum()

    def check(self, names: Sequence[str]) -> None:
        if len(names) != self.num_kd_losses:
            raise ConfigError(
                f"UncertaintyLossBalancer was made for {self.num_kd_losses} distillation losses "
                f"and got {len(names)}: {', '.join(names)}."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As for every module, but `half()` and `bfloat16()` leave the log-variances in float32.

        They are scalars beside losses that half precision cannot hold, and move in small steps.
        """

        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = moved.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(moved.device) if half else moved

        return super()._apply(kept, recurse)

    def weights(self) -> Tensor:
        r"""$e^{-s_i}$, detached: distillation losses in order, then the student's."""
        return (-self.log_variances.detach()).exp()


def _check_weights(
    given: float | Sequence[float] | Mapping[str, float],
) -> float | list[float] | dict[str, float]:
    weights: float | list[float] | dict[str, float]
    if isinstance(given, Real):
        weights = check_number("kd_loss_weight", given)
    elif isinstance(given, Mapping):
        weights = {
            name: check_number(f"kd_loss_weight[{name!r}]", weight)
            for name, weight in given.items()
        }
        if STUDENT_LOSS_KEY in weights:
            raise ConfigError(
                f"kd_loss_weight must not name {STUDENT_LOSS_KEY!r}: it gets what the others leave."
            )
    elif isinstance(given, Sequence) and not isinstance(given, str):
        weights = [check_number(f"kd_loss_weight[{i}]", weight) for i, weight in enumerate(given)]
    else:
        raise ConfigError(
            "kd_loss_weight must be a number, a sequence of numbers or a mapping from loss names "
            f"to numbers, not {given!r}."
        )
    if not isinstance(weights, float) and not weights:
        raise ConfigError("kd_loss_weight holds no weights.")
    if _total(weights) > 1 + SUM_TOLERANCE:
        raise ConfigError(f"kd_loss_weight sums to {_total(weights):g}; at most 1 is allowed.")
    return weights


def _total(weights: float | list[float] | dict[str, float]) -> float:
    if isinstance(weights, float):
        return weights
    return math.fsum(weights.values() if isinstance(weights, dict) else weights)


def _rest(weights: float | list[float] | dict[str, float]) -> float:
    """What is left for the student's loss: 1 − Σw, exactly 0 when the weights round to 1."""
    rest = 1 - _total(weights)
    return 0.0 if abs(rest) <= SUM_TOLERANCE else rest


def _add(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])
