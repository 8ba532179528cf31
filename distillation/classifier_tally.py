"""Counting the batches of a model of which nothing is known: a classifier's are, others are not."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from distillation.transfer import Evaluation, Tally

MOST_CLASSES = 1000
"""Of outputs with more there is no confusion matrix worth keeping (a vocabulary, say)."""
FEWEST_IMAGES = 100
"""With fewer no teacher is said to guess: too many good ones could not be told from it."""


def warn_of_guessing(found: Evaluation) -> bool:
    """Warn of a teacher that is no better than chance, of which a student learns nothing."""
    if found.images < FEWEST_IMAGES or not found.teacher_at_chance:
        return False
    warnings.warn(
        f"the teacher is right for {found.teacher_accuracy:.1%} of {found.images} validation "
        f"images, where chance is {1 / len(found.confusion):.1%}: is it trained, are its weights "
        "loaded, and does it expect this normalization and order of classes?",
        stacklevel=2,
    )
    return True


class ClassifierTally(Tally):
    """A `Tally` that is empty (and false) unless all batches are those of one classifier.

    These have logits (N, classes), 2 to 1000 classes, and whole-numbered targets (N,); samples
    whose target is no class, as those that a loss ignores, are left out. A teacher's output of
    another shape is not compared. Embeddings of that shape cannot be told from logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kind: tuple | None = None

    @torch.no_grad()
    def observe(self, output: Any, target: Any, teacher_output: Any = None) -> None:
        """Count a batch, if it is one of a classifier like those before it."""
        fits = _fits(output, target)
        if not fits or not _alike(output, teacher_output):
            teacher_output = None
        kind = (output.shape[1], teacher_output is not None) if fits else ()
        self._kind = kind if self._kind in (None, kind) else ()
        if self._kind:
            target = target.to(torch.int64)
            classed = (target >= 0) & (target < output.shape[1])
            self.add(output, target, teacher_output, classed)

    def __bool__(self) -> bool:
        return bool(self._kind) and super().__bool__()

    def reset(self) -> None:
        super().reset()
        self._kind = None


def _fits(output: Any, target: Any) -> bool:
    if not (torch.is_tensor(output) and torch.is_tensor(target)):
        return False
    whole = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    logits = output.dim() == 2 and output.is_floating_point()
    return (
        whole
        and logits
        and 2 <= output.shape[1] <= MOST_CLASSES
        and target.shape == output.shape[:1]
    )


def _alike(output: torch.Tensor, other: Any) -> bool:
    return torch.is_tensor(other) and other.shape == output.shape and other.is_floating_point()
