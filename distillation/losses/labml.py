"""The soft targets loss of the labml tutorial, and what it is in terms of ours."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distillation.losses.checks import (
    check_integer,
    check_number,
    check_pair,
    check_temperature,
    full_precision,
)
from distillation.losses.interface import DistillationLoss


def labml_soft_targets(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 5.0, dim: int = -1
) -> Tensor:
    r"""`nn.KLDivLoss(log_target=True)` of soft targets, as the tutorial has it: unweighted.

    Its "mean" is over batch *and* classes, and there is no factor $T^2$. With $C$ classes

    $$
    \begin{aligned}
    \text{labml} &= \frac{1}{N C} \sum_n \operatorname{KL}(p_n \| q_n) \\
    &= \frac{1}{C T^2} \cdot \text{ours}
    \end{aligned}
    $$

    where ours is `kl_divergence(…, temperature=T)`. The tutorial multiplies it with a weight of
    100. At ten classes and $T = 5$ that is $100 / (10 \cdot 25) = 0.4$ times ours, in other words
    $0.4 \cdot T^2$ (that is, 10) times the plain divergence $D$, the mean of the
    $\operatorname{KL}(p_n \| q_n)$:

    $$100 \cdot \text{labml} = 0.4 \cdot \text{ours} = 0.4 \cdot T^2 \cdot D = 10 \cdot D$$

    Bit for bit the tutorial's expression, for logits without `-inf`.

    Args:
        student_logits, teacher_logits: (…, classes) along `dim`; the teacher is detached.
        temperature: T > 0.

    Raises:
        ShapeError, ConfigError: as in `kl_divergence`.

    Source: labml_nn, "Distilling the Knowledge in a Neural Network" (distillation/index).
    """
    T = check_temperature(temperature)
    dim = check_pair(student_logits, teacher_logits, dim)
    s, t = full_precision(student_logits, teacher_logits)
    log_q, log_p = F.log_softmax(s / T, dim), F.log_softmax(t / T, dim)
    terms = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    terms = terms.masked_fill(log_p.isneginf(), 0.0)
    return terms.mean() if terms.numel() else terms.sum()


def labml_weight(classes: int, temperature: float = 5.0, weight: float = 100.0) -> float:
    r"""The factor $w / (C T^2)$ with `weight * labml_soft_targets(…) == factor * kl_divergence(…)`.

    0.4 for the tutorial's own numbers: ten classes, T = 5, weight 100.
    """
    classes = int(check_number("classes", classes, low=1))
    return check_number("weight", weight) / (classes * check_temperature(temperature) ** 2)


class LabmlSoftTargetsLoss(DistillationLoss):
    """`weight * labml_soft_targets(…)`: the tutorial's soft targets term with its weight.

    At its defaults and ten classes it equals 0.4 times `LogitsDistillationLoss(temperature=5)`.

    Args:
        temperature: T > 0.
        weight: the tutorial's `soft_targets_weight`; 1 gives the bare `loss.kl_div`.
        dim: the class dimension.
    """

    def __init__(self, temperature: float = 5.0, weight: float = 100.0, dim: int = -1) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.weight = check_number("weight", weight)
        self.dim = check_integer("dim", dim)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The weighted loss, a scalar, of (…, classes) logits."""
        return self.weight * labml_soft_targets(
            student_logits, teacher_logits, self.temperature, self.dim
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, weight={self.weight}, dim={self.dim}"
