r"""Losses between two tensors of logits, as pure functions.

Common to all of them:

* `student_logits` and `teacher_logits` have one shape with the classes along `dim`; all other
  dimensions are *rows* (images, tokens, pixels). The teacher is detached here.
* Half precision is raised to float32 first. Values are in nats where the loss is an entropy.
* `reduction`: "batchmean" divides by the number of unmasked rows; "mean" by rows times classes,
  "sum" by nothing; "none" gives one value per row, shaped like the logits without `dim`.
* `mask` has the rows' shape; rows where it is 0 (False) do not count, whatever their logits hold,
  NaN included. When no row counts the loss is 0 with a gradient of 0.
* A class at `-inf` on both sides (an impossible class) adds nothing, to value or gradient. A row of
  nothing but such classes has no distribution, and its entropies are NaN: mask it.
* Errors: `ShapeError` for shapes or class counts that do not fit, `ConfigError` for a temperature
  that is not positive and for an unknown reduction.

With $z_t$ and $z_s$ the logits of teacher and student and $T$ the temperature, the soft targets
are

$$p = \operatorname{softmax}(z_t / T)$$

$$q = \operatorname{softmax}(z_s / T)$$

Formulas are those of one row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distillation.losses.checks import (
    check_number,
    check_pair,
    check_reduction,
    check_rows,
    check_temperature,
    full_precision,
    reduce_rows,
)


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    dim: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""What KL means here: $T^2 \cdot \operatorname{KL}(p \| q)$, teacher ‖ student.

    $$T^2 \sum_c p_c (\log p_c - \log q_c)$$

    Gradients of soft targets shrink by $1/T^2$; the factor makes up for it, so that the weight
    against a label loss need not change with the temperature. Zero where student equals teacher.
    In the limit of high temperatures it is, with $\Delta = z_s - z_t$,

    $$\frac{1}{2C} \sum_c (\Delta_c - \bar\Delta)^2$$

    At such temperatures the value, not the gradient, loses digits to rounding: with 50,000 classes
    in float32 about 0.1 % at T = 20 and 1 % at T = 100.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015),
    section 2, arXiv 1503.02531.

    The labml tutorial's loss is another multiple of the same divergence:
    see `distillation.losses.labml_soft_targets`.
    """
    T, s, t, mask, dim = _prepare(student_logits, teacher_logits, temperature, reduction, dim, mask)
    rows = _kl_rows(F.log_softmax(s / T, dim), F.log_softmax(t / T, dim), dim)
    return reduce_rows(rows, reduction, mask, s.shape[dim]) * T**2


def kl_from_log_probabilities(
    student_log_probabilities: Tensor,
    teacher_log_probabilities: Tensor,
    reduction: str = "batchmean",
    dim: int = -1,
) -> Tensor:
    r"""The divergence of log probabilities: student $\log q$, teacher $\log p$.

    $$\operatorname{KL}(p \| q) = \sum_c p_c (\log p_c - \log q_c)$$

    For steps that soften both themselves; there is no temperature here and no factor $T^2$:
    `kl_divergence(s, t, T)` is bit for bit
    `kl_from_log_probabilities(log_softmax(s / T), log_softmax(t / T)) * T**2`.
    """
    check_reduction(reduction)
    dim = check_pair(student_log_probabilities, teacher_log_probabilities, dim)
    log_q, log_p = full_precision(student_log_probabilities, teacher_log_probabilities)
    return reduce_rows(_kl_rows(log_q, log_p, dim), reduction, None, log_q.shape[dim])


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    dim: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The other way round, mode-seeking: $T^2 \cdot \operatorname{KL}(q \| p)$.

    $$T^2 \sum_c q_c (\log q_c - \log p_c)$$

    Infinite where the student gives weight to a class that the teacher holds impossible (`-inf`).
    Zero where student equals teacher.

    Source: Gu et al., "MiniLLM" (2023), equation 1, arXiv 2306.08543, over given inputs.
    """
    T, s, t, mask, dim = _prepare(student_logits, teacher_logits, temperature, reduction, dim, mask)
    log_q, log_p = F.log_softmax(s / T, dim), F.log_softmax(t / T, dim)
    rows = _relative_entropy(log_q, log_p).sum(dim)
    return reduce_rows(rows, reduction, mask, s.shape[dim]) * T**2


def jensen_shannon(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    dim: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The Jensen-Shannon divergence, times $T^2$.

    $$\frac{T^2}{2} \left( \operatorname{KL}(p \| m) + \operatorname{KL}(q \| m) \right)$$

    with the mixture $m = \frac12 (p + q)$. Symmetric; between 0 (student equals teacher) and
    $T^2 \log 2$ per row.

    Source: Lin, "Divergence measures based on the Shannon entropy" (1991), equation 3.5.
    """
    T, s, t, mask, dim = _prepare(student_logits, teacher_logits, temperature, reduction, dim, mask)
    log_q, log_p = F.log_softmax(s / T, dim), F.log_softmax(t / T, dim)
    # logaddexp(-inf, -inf) has no gradient; such a class counts for nothing below.
    both = torch.isneginf(log_q) & torch.isneginf(log_p)
    log_m = torch.logaddexp(log_q.masked_fill(both, 0.0), log_p.masked_fill(both, 0.0))
    log_m = log_m - math.log(2)
    terms = _relative_entropy(log_p, log_m) + _relative_entropy(log_q, log_m)
    return reduce_rows(0.5 * terms.sum(dim), reduction, mask, s.shape[dim]) * T**2


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    dim: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Cross entropy with soft targets, times $T^2$.

    $$T^2 \cdot H(p, q) = - T^2 \sum_c p_c \log q_c$$

    Its gradient is that of `kl_divergence`; its value is larger by $T^2$ times the teacher's
    entropy, so it is not zero where student equals teacher.

    Source: Hinton, Vinyals, Dean (2015), section 2, arXiv 1503.02531.
    """
    T, s, t, mask, dim = _prepare(student_logits, teacher_logits, temperature, reduction, dim, mask)
    log_q, log_p = F.log_softmax(s / T, dim), F.log_softmax(t / T, dim)
    p = log_p.exp()
    terms = (-p * log_q).masked_fill(p == 0, 0.0)
    return reduce_rows(terms.sum(dim), reduction, mask, s.shape[dim]) * T**2


def mse_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    reduction: str = "mean",
    dim: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The mean squared error, on logits.

    $$\frac1C \sum_c (z_{s,c} - z_{t,c})^2$$

    The default reduction is "mean", which is `nn.MSELoss`; "batchmean" does not divide by $C$.
    Zero where student equals teacher.

    Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (2014), equation 1.
    """
    _, s, t, mask, dim = _prepare(student_logits, teacher_logits, 1.0, reduction, dim, mask)
    s, t = _without_impossible(s, t)
    return reduce_rows((s - t).square().sum(dim), reduction, mask, s.shape[dim])


def cosine(
    student_logits: Tensor,
    teacher_logits: Tensor,
    reduction: str = "batchmean",
    dim: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""One minus the cosine: between 0 (same direction) and 2 per row.

    $$1 - \frac{z_s \cdot z_t}{\|z_s\| \, \|z_t\|}$$

    It does not depend on the logits' scale, so there is no temperature. "mean" and "batchmean"
    are the same here: nothing is summed over classes. This is `nn.CosineEmbeddingLoss` with
    target 1. Classes at -inf on both sides are left out; on one side alone they give NaN.
    """
    _, s, t, mask, dim = _prepare(student_logits, teacher_logits, 1.0, reduction, dim, mask)
    s, t = _without_impossible(s, t)
    return reduce_rows(1.0 - F.cosine_similarity(s, t, dim=dim), reduction, mask, 1)


def corrected_probabilities(
    teacher_logits: Tensor, target: Tensor, temperature: float = 1.0, threshold: float = 0.2
) -> Tensor:
    r"""The teacher's soft targets, moved towards the labels as minifinetuning does.

    $$p' = (1 - \lambda) \, p + \lambda \, e_y$$

    row by row, $e_y$ one-hot. With $\tau$ the threshold and $p_{max}$ the probability of the
    teacher's first choice,

    $$\lambda = \frac{p_{max} - p_y + \tau}{1 + p_{max} - p_y}$$

    where that choice is not the label $y$, so that $p'_y$ leads the old first choice by $\tau$; and

    $$\lambda = \min\left(1, \frac{\tau}{1 - p_y}\right)$$

    where it is, so that $p'_y$ gains $\tau$, up to 1.

    Args:
        teacher_logits: (…, classes).
        target: labels, integers (…), each in [0, classes).
        temperature: softens the teacher before the correction.
        threshold: $\tau$ in [0, 1]. 0 still makes the label as likely as a wrong first choice.

    Source: Belcak et al., "Minifinetuning" (2025), arXiv 2506.15702, and its form in NVIDIA
    ModelOpt, which corrects rows with a right first choice, too.
    """
    _, t = full_precision(teacher_logits, teacher_logits)
    p = F.softmax(t / check_temperature(temperature), dim=-1)
    tau = check_number("threshold", threshold, high=1.0)
    label = target.long().unsqueeze(-1)
    p_max, first = p.max(dim=-1, keepdim=True)
    p_label = p.gather(-1, label)
    gap = p_max - p_label
    behind = (gap + tau) / (gap + 1)
    ahead = (tau / (1 - p_max).clamp(min=torch.finfo(p.dtype).tiny)).clamp(max=1.0)
    weight = torch.where(first == label, ahead, behind)
    return ((1 - weight) * p).scatter_add(-1, label, weight)


def mft_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    threshold: float = 0.2,
    reduction: str = "batchmean",
    dim: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""$T^2 \cdot \operatorname{KL}(p' \| q)$ with $p'$ the `corrected_probabilities`.

    `target` holds labels shaped like the rows. Where `mask` is 0 the label is not read, so it may
    be an ignore index. Labels outside [0, classes) elsewhere are an index error of torch.

    Source: Belcak et al., "Minifinetuning" (2025), arXiv 2506.15702.
    """
    tau = check_number("threshold", threshold, high=1.0)
    T, s, t, mask, dim = _prepare(student_logits, teacher_logits, temperature, reduction, dim, mask)
    target = check_rows("target", target, s, dim)
    if mask is not None:
        target = target.masked_fill(~mask, 0)
    p = corrected_probabilities(t.movedim(dim, -1), target, T, tau).movedim(-1, dim)
    rows = _kl_rows(F.log_softmax(s / T, dim), p.log(), dim)
    return reduce_rows(rows, reduction, mask, s.shape[dim]) * T**2


def _prepare(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    reduction: str,
    dim: int,
    mask: Tensor | None,
) -> tuple[float, Tensor, Tensor, Tensor | None, int]:
    temperature = check_temperature(temperature)
    check_reduction(reduction)
    dim = check_pair(student, teacher, dim)
    s, t = full_precision(student, teacher)
    if mask is not None:
        mask = check_rows("mask", mask, s, dim).bool()
        # Padding may hold anything; a NaN there must not reach the gradient as 0 · NaN.
        padding = ~mask.unsqueeze(dim)
        s, t = s.masked_fill(padding, 0.0), t.masked_fill(padding, 0.0)
    return temperature, s, t, mask, dim


def _kl_rows(log_q: Tensor, log_p: Tensor, dim: int) -> Tensor:
    """KL(p ‖ q) per row where p is constant; 0 · log 0 = 0."""
    terms = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    return terms.masked_fill(log_p.exp() == 0, 0.0).sum(dim)


def _relative_entropy(log_a: Tensor, log_b: Tensor) -> Tensor:
    """a (log a − log b) per class with 0 · log 0 = 0, also in the gradient with respect to a."""
    zero = log_a.exp() == 0  # -inf, or so low that nothing is left
    log_a = log_a.masked_fill(zero, 0.0)
    return log_a.exp() * (log_a - log_b.masked_fill(zero, 0.0))


def _without_impossible(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.isneginf(s) & torch.isneginf(t)
    return s.masked_fill(both, 0.0), t.masked_fill(both, 0.0)
