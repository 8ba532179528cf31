"""Losses between logits, as modules: `loss(student_logits, teacher_logits, target=…, mask=…)`.

The formulas, their units and sources are in `distillation.losses.functional`; shapes, reductions,
masks and errors are the same for all and are described there, too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distillation.errors import ConfigError
from distillation.losses import functional
from distillation.losses.checks import (
    check_integer,
    check_number,
    check_pair,
    check_reduction,
    check_rows,
    check_temperature,
)
from distillation.losses.interface import DistillationLoss


class LogitsLoss(DistillationLoss):
    """Base of the losses between logits: reduction, class dimension, mask and ignore index.

    A subclass defines `compute(student_logits, teacher_logits, mask) -> Tensor`.

    Args:
        reduction: "batchmean", "mean", "sum" or "none".
        dim: the class dimension.
        ignore_index: rows whose `target` has this value do not count; `target` is then required,
            and without an ignore index it is refused, since it would have no effect.
    """

    def __init__(
        self,
        reduction: str = "batchmean",
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)
        self.dim = check_integer("dim", dim)
        self.ignore_index = (
            None if ignore_index is None else check_integer("ignore_index", ignore_index)
        )

    def keywords(self) -> frozenset[str]:
        return frozenset({"mask"} if self.ignore_index is None else {"mask", "target"})

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of (…, classes) logits; `target` and `mask` have the shape without classes.

        Raises:
            ShapeError: shapes or class counts that do not fit.
            ConfigError: `target` missing with an ignore index, or given without one.
        """
        if self.ignore_index is None and target is not None:
            raise ConfigError(
                f"{type(self).__name__} has no ignore_index, so target would have no effect; "
                "leave it away, or construct the loss with ignore_index=…."
            )
        mask = self.row_mask(student_logits, teacher_logits, target, mask)
        return self.compute(student_logits, teacher_logits, mask)

    def row_mask(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """`mask`, less the rows whose target is the ignore index."""
        if self.ignore_index is None:
            return mask
        if target is None:
            raise ConfigError(
                f"{type(self).__name__} has ignore_index={self.ignore_index} and needs target=…."
            )
        dim = check_pair(student, teacher, self.dim)
        counted = check_rows("target", target, student, dim) != self.ignore_index
        if mask is None:
            return counted
        return check_rows("mask", mask, student, dim).bool() & counted

    def compute(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no compute")

    def extra_repr(self) -> str:
        shown = ("temperature", "threshold", "reduction", "dim", "ignore_index")
        values = ((name, getattr(self, name, None)) for name in shown)
        return ", ".join(f"{name}={value!r}" for name, value in values if value is not None)


class TemperatureLoss(LogitsLoss):
    """A `LogitsLoss` with a temperature, first among the arguments.

    Args:
        temperature: T > 0, by which both sides' logits are divided.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        reduction: str = "batchmean",
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction, dim, ignore_index)
        self.temperature = check_temperature(temperature)

    def options(self, mask: Tensor | None) -> dict[str, Any]:
        """Keyword arguments of the functions in `functional`."""
        return {
            "temperature": self.temperature,
            "reduction": self.reduction,
            "dim": self.dim,
            "mask": mask,
        }


class LogitsDistillationLoss(TemperatureLoss):
    r"""KL(teacher ‖ student) of softened probabilities, times T²: `functional.kl_divergence`.

    $$\mathcal{L} = \frac{T^2}{N} \sum_{n,c} p_{n,c} (\log p_{n,c} - \log q_{n,c})$$

    with the teacher's probabilities $p = \operatorname{softmax}(z_t / T)$ and the student's
    $q = \operatorname{softmax}(z_s / T)$, here and in the other losses of this page.

    The default reduction is "batchmean": summed over classes, mean over unmasked rows. Zero where
    student equals teacher.

    Source: Hinton, Vinyals, Dean (2015), arXiv 1503.02531.
    """

    def compute(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        return functional.kl_divergence(student_logits, teacher_logits, **self.options(mask))


class ReverseKLLoss(TemperatureLoss):
    r"""KL(student ‖ teacher) of softened probabilities, times T²: `functional.reverse_kl`.

    $$\mathcal{L} = \frac{T^2}{N} \sum_{n,c} q_{n,c} (\log q_{n,c} - \log p_{n,c})$$
    """

    def compute(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        return functional.reverse_kl(student_logits, teacher_logits, **self.options(mask))


class JensenShannonLoss(TemperatureLoss):
    r"""Jensen-Shannon divergence of softened probabilities: `functional.jensen_shannon`.

    $$\frac{T^2}{2} \left( \operatorname{KL}(p \| m) + \operatorname{KL}(q \| m) \right)$$

    a mean over the rows, with $m = (p + q) / 2$.
    """

    def compute(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        return functional.jensen_shannon(student_logits, teacher_logits, **self.options(mask))


class SoftCrossEntropyLoss(TemperatureLoss):
    r"""Cross entropy with soft targets, times T²: `functional.soft_cross_entropy`.

    $$\mathcal{L} = - \frac{T^2}{N} \sum_{n,c} p_{n,c} \log q_{n,c}$$
    """

    def compute(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        return functional.soft_cross_entropy(student_logits, teacher_logits, **self.options(mask))


class LogitsMSELoss(LogitsLoss):
    r"""Mean squared error on logits: `functional.mse_logits`; the default reduction is "mean".

    $$\mathcal{L} = \frac{1}{N C} \sum_{n,c} (z_{s,n,c} - z_{t,n,c})^2$$
    """

    def __init__(
        self, reduction: str = "mean", dim: int = -1, ignore_index: int | None = None
    ) -> None:
        super().__init__(reduction, dim, ignore_index)

    def compute(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        return functional.mse_logits(student_logits, teacher_logits, self.reduction, self.dim, mask)


class CosineLoss(LogitsLoss):
    r"""One minus the cosine between student and teacher: `functional.cosine`.

    $$\mathcal{L} = \frac1N \sum_n \left( 1 - \frac{z_s \cdot z_t}{|z_s| \, |z_t|} \right)$$
    """

    def compute(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        return functional.cosine(student_logits, teacher_logits, self.reduction, self.dim, mask)


class MFTLoss(TemperatureLoss):
    r"""Minifinetuning: KL(corrected teacher ‖ student), times T²: `functional.mft_divergence`.

    $$\mathcal{L} = \frac{T^2}{N} \sum_{n,c} p'_{n,c} (\log p'_{n,c} - \log q_{n,c})$$

    where $p'$ are the teacher's soft targets, moved towards the label, so that the label leads a
    wrong first choice by `threshold`, or gains `threshold` where the first choice is right. It
    needs `target`: labels shaped like the rows.

    Args:
        temperature: T > 0.
        threshold: τ in [0, 1].
        reduction, dim: as in `LogitsLoss`.
        ignore_index: rows with this label do not count.

    Source: Belcak et al. (2025), arXiv 2506.15702, as in NVIDIA ModelOpt.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        threshold: float = 0.2,
        reduction: str = "batchmean",
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(temperature, reduction, dim, ignore_index)
        self.threshold = check_number("threshold", threshold, high=1.0)

    def keywords(self) -> frozenset[str]:
        return frozenset({"mask", "target"})

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of (…, classes) logits and labels `target` (…).

        Raises:
            ShapeError: shapes or class counts that do not fit.
            ConfigError: no target.
        """
        if target is None:
            raise ConfigError("MFTLoss corrects the teacher by the labels and needs target=….")
        mask = self.row_mask(student_logits, teacher_logits, target, mask)
        return functional.mft_divergence(
            student_logits, teacher_logits, target, threshold=self.threshold, **self.options(mask)
        )
