r"""What a student has taken over from its teacher, and how far its confidence can be trusted.

Measures of classifiers, as pure functions of logits and as running sums over the batches of an
evaluation:

* agreement: the share of images for which student and teacher choose the same class
  (Stanton et al. 2021, "Does Knowledge Distillation Really Work?", section 3);
* $\operatorname{KL}(p \| q)$ with the teacher's distribution $p$ and the student's $q$, in nats, at
  T = 1;
* the expected calibration error over bins of equal width (Guo et al. 2017, "On Calibration of
  Modern Neural Networks", equation 3);
* the confusion matrix, and each class's accuracy.

Common to all: `logits`, `student_logits` and `teacher_logits` are floating point (N, classes) with
N at least 1, `labels` int64 (N,). Sums are float64 (float32 where the device has no float64), and
results stay on the device: nothing here makes the host wait, but for `Tally.compute`. NaN logits
give NaN, not an error. Of equal logits the first class is the choice.

Raises `ShapeError` for shapes that do not fit together; for labels that are no class only on a
CPU, since looking at them elsewhere would stall the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distillation.errors import ConfigError, ShapeError
from distillation.files import atomic_json
from distillation.losses.checks import check_count, check_pair
from distillation.losses.functional import kl_divergence
from distillation.meters import wide

FILE = "evaluation.json"
"""Where `write` puts it, in a run's folder."""
BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""


class Bins(NamedTuple):
    """Images by confidence: bin m of M holds those in ((m - 1) / M, m / M].

    Each a tensor (bins,): `count` of images, their mean `confidence` (the largest probability) and
    their `accuracy`; both means are NaN in a bin without images.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Share of rows, 0 … 1, whose largest logit is of the same class. A single number."""
    _check_pair(student_logits, teacher_logits)
    return _agreeing(student_logits, teacher_logits) / len(student_logits)


def kl_from_teacher(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""$\frac1N \sum_n \sum_c p_{n,c} (\log p_{n,c} - \log q_{n,c})$, in nats, at T = 1."""
    _check_pair(student_logits, teacher_logits)
    return _divergence(student_logits, teacher_logits) / len(student_logits)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """int64 (classes, classes): rows are true classes, columns predicted ones."""
    _check_labels(logits, labels)
    return _confusion(logits, labels).round().long()


def accuracy_per_class(confusion: Tensor) -> Tensor:
    """(classes,) float64: the diagonal over the rows' sums; NaN for a class without images."""
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ShapeError(f"a confusion matrix is (classes, classes), not {tuple(confusion.shape)}")
    confusion = confusion.to(wide(confusion.device))
    return confusion.diagonal() / confusion.sum(1)


def calibration_bins(logits: Tensor, labels: Tensor, bins: int = BINS) -> Bins:
    """Confidence and accuracy in `bins` bins of equal width. Guo et al. 2017, section 2."""
    _check_labels(logits, labels)
    return _bins(_calibration(logits, labels, check_count("bins", bins)))


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    r"""$\sum_m \frac{n_m}{N} |acc_m - conf_m|$, 0 … 1. Guo et al. 2017, equation 3."""
    _check_labels(logits, labels)
    return _expected_error(_calibration(logits, labels, check_count("bins", bins)))


def at_chance(accuracy: float, images: int, classes: int) -> bool:
    """Whether an accuracy on `images` lies at most three standard errors above 1 / `classes`.

    The standard error is that of guessing: the square root of p (1 - p) / images with
    p = 1 / classes.
    """
    chance = 1 / classes
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / images)


@dataclass(frozen=True)
class Evaluation:
    """What a `Tally` has counted, on the host.

    images      number of images
    accuracy    share of them that are classified as labelled
    ece         expected calibration error
    confusion   rows: true class, columns: predicted class
    bins        `count`, `confidence` and `accuracy` of each bin, NaN where there is no image
    agreement   share of images with the teacher's choice; None without a teacher
    kl          mean KL(teacher ‖ student) in nats at T = 1; None without a teacher
    teacher_accuracy  share of images that the teacher classifies as labelled; None without one
    """

    images: int
    accuracy: float
    ece: float
    confusion: list[list[int]]
    bins: list[dict[str, float]]
    agreement: float | None
    kl: float | None
    teacher_accuracy: float | None = None

    @property
    def teacher_at_chance(self) -> bool:
        """Whether there is a teacher that cannot be told from one that guesses."""
        if self.teacher_accuracy is None:
            return False
        return at_chance(self.teacher_accuracy, self.images, len(self.confusion))

    @property
    def per_class(self) -> list[float]:
        """Accuracy of each class; NaN for one without images."""
        return accuracy_per_class(torch.tensor(self.confusion)).tolist()

    def to_json(self) -> dict[str, Any]:
        """The fields, in their order."""
        return dict(vars(self))


class Tally:
    """Sums over the batches of an evaluation, on their device, in memory that does not grow.

    `add` each batch, then `compute`, which is the one time that the host waits.
    """

    def __init__(self, bins: int = BINS):
        self.bins = check_count("bins", bins)
        self.classes = 0
        self.with_teacher = False
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> None:
        """Count a batch. Either all batches bring the teacher's logits, or none.

        `kept`, bool (N,), leaves out rows, whose labels may then be anything.

        Raises `ShapeError` also for another number of classes than before, `ConfigError` when
        only some batches have a teacher.
        """
        weights = None
        if kept is not None:
            _check_kept(logits, kept)
            # Rows of zeros, which weigh nothing: to select rows would make the host wait
            weights, labels = kept.to(wide(logits.device)), labels.where(kept, 0)
            logits = logits.where(kept[:, None], 0)
            if teacher_logits is not None:
                teacher_logits = teacher_logits.where(kept[:, None], 0)
        _check_labels(logits, labels, least=0)  # a process may have no image of a short batch
        parts = [
            _confusion(logits, labels, weights).flatten(),
            _calibration(logits, labels, self.bins, weights),
        ]
        if teacher_logits is not None:
            _check_pair(logits, teacher_logits, least=0)
            parts += [
                _agreeing(logits, teacher_logits, weights),
                _divergence(logits, teacher_logits),
                _right(teacher_logits, labels, weights),
            ]
        sums = torch.cat([part.reshape(-1) for part in parts])
        if self._sums is None:
            self._sums, self.classes = sums, logits.shape[1]
            self.with_teacher = teacher_logits is not None
            return
        if logits.shape[1] != self.classes:
            raise ShapeError(f"{logits.shape[1]} classes, where batches before had {self.classes}")
        if self.with_teacher != (teacher_logits is not None):
            raise ConfigError("either all batches bring the teacher's logits, or none does")
        self._sums = self._sums + sums

    def compute(self, reduce: Callable[[Tensor], Tensor] | None = None) -> Evaluation:
        """What was counted. `reduce` sums a tensor over the processes that share the images.

        Without an image, for all were left out, every mean is NaN.
        Raises `ConfigError` when nothing was added.
        """
        if self._sums is None:
            raise ConfigError("nothing was evaluated: there was no batch")
        sums = (self._sums if reduce is None else reduce(self._sums)).cpu().double()
        sizes = [self.classes**2, 3 * self.bins, *([1, 1, 1] if self.with_teacher else [])]
        flat, calibration, *pair = sums.split(sizes)
        confusion = flat.reshape(self.classes, self.classes)
        calibration = calibration.reshape(3, self.bins)
        images = confusion.sum()
        agreeing, divergence, right = (float(p / images) for p in pair) if pair else (None,) * 3
        return Evaluation(
            images=round(float(images)),
            accuracy=float(confusion.trace() / images),
            ece=float(_expected_error(calibration)),
            confusion=confusion.round().long().tolist(),
            bins=_rows(_bins(calibration)),
            agreement=agreeing,
            kl=divergence,
            teacher_accuracy=right,
        )

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return self._sums is not None

    def reset(self) -> None:
        """Forget every batch."""
        self.classes, self.with_teacher, self._sums = 0, False, None


def record(
    evaluation: Evaluation,
    *,
    split: str,
    epoch: int | None,
    step: int,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What `evaluation.json` of a run says, as a dict; NaN becomes null when it is written.

    `epoch` counts the epochs that are done (None where that is not known), `step` the training
    samples seen, as in metrics.jsonl. Classes without names are numbered.
    Raises `ShapeError` when there are not as many `classes` as the confusion matrix has rows.
    """
    if classes is None:
        classes = range(len(evaluation.confusion))
    if len(classes) != len(evaluation.confusion):
        raise ShapeError(
            f"{len(classes)} names of classes for outputs of {len(evaluation.confusion)} classes"
        )
    facts = {"split": split, "epoch": epoch, "step": step, "classes": [str(c) for c in classes]}
    return facts | evaluation.to_json()


def write(folder: Path, evaluation: Evaluation, **facts: Any) -> None:
    """Write what `record` makes of it into the run's `folder`, all of it or nothing."""
    atomic_json(folder / FILE, record(evaluation, **facts))


# -- sums, which add up over batches


def _agreeing(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    return _right(student, teacher.argmax(-1), weights)


def _right(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    same = (logits.argmax(-1) == labels).to(wide(logits.device))
    return (same if weights is None else same * weights).sum()


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    dtype = wide(student.device)
    return kl_divergence(student.to(dtype), teacher.to(dtype), 1.0, "sum")


def _confusion(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """(classes, classes), as floats: counts that can stand in one tensor with other sums."""
    classes = logits.shape[1]
    counts = torch.zeros(classes * classes, dtype=wide(logits.device), device=logits.device)
    pairs = labels * classes + logits.argmax(-1)
    ones = counts.new_ones(len(pairs)) if weights is None else weights
    return counts.index_add_(0, pairs, ones).reshape(classes, classes)


def _calibration(
    logits: Tensor, labels: Tensor, bins: int, weights: Tensor | None = None
) -> Tensor:
    """(3, bins): sums of images, of their confidence, and of those that are right."""
    dtype = wide(logits.device)
    confidence, predicted = logits.to(dtype).softmax(-1).max(-1)
    inner = torch.arange(1, bins, dtype=dtype, device=logits.device) / bins
    index = torch.bucketize(confidence, inner)  # an upper edge belongs to its bin; NaN to the last
    terms = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).to(dtype)])
    terms = terms if weights is None else terms * weights
    return terms.new_zeros(3, bins).index_add_(1, index, terms)


def _expected_error(calibration: Tensor) -> Tensor:
    count, confidence, right = calibration
    return (right - confidence).abs().sum() / count.sum()


def _bins(calibration: Tensor) -> Bins:
    count, confidence, right = calibration
    return Bins(count.round().long(), confidence / count, right / count)


def _rows(bins: Bins) -> list[dict[str, float]]:
    names = Bins._fields
    values = zip(*(column.tolist() for column in bins), strict=True)
    return [dict(zip(names, row, strict=True)) for row in values]


# -- checks


def _check_labels(logits: Tensor, labels: Tensor, least: int = 1) -> None:
    _check_logits(logits, least)
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"labels must be int64 ({len(logits)},) for logits {tuple(logits.shape)}, not "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise ShapeError(
                f"labels reach from {low} to {high}, but there are {logits.shape[1]} classes"
            )


def _check_kept(logits: Tensor, kept: Tensor) -> None:
    if kept.dtype != torch.bool or kept.shape != logits.shape[:1]:
        raise ShapeError(
            f"kept must be bool ({len(logits)},) for logits {tuple(logits.shape)}, not "
            f"{kept.dtype} {tuple(kept.shape)}"
        )


def _check_pair(student: Tensor, teacher: Tensor, least: int = 1) -> None:
    check_pair(student, teacher)
    _check_logits(student, least)


def _check_logits(logits: Tensor, least: int) -> None:
    fits = logits.ndim == 2 and logits.is_floating_point()
    if not fits or len(logits) < least or not logits.shape[1]:
        raise ShapeError(
            "logits must be floating point (images, classes), with at least one of each, not "
            f"{logits.dtype} {tuple(logits.shape)}"
        )
