"""What each evaluation of a trainer says of a classifier, and of what it has taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distillation.trainer import loaders
from distillation.transfer_hook import TransferHook, class_names

MOST_CLASSES = 1000
"""Of outputs with more there is no confusion matrix worth keeping (a vocabulary, say)."""


class Measures(TransferHook):
    """`TransferHook` for whatever a trainer is given.

    Batches of logits (N, classes) with whole-numbered targets (N,) are counted; outputs and
    targets of another kind are not measured, and no error. Samples whose target is no class, as
    those that a loss ignores, are left out. `valid_loaders` are the splits' loaders as this
    process sees them; `evaluation.json` is of the split `watched`.
    """

    def __init__(self, valid_loaders: Mapping[str, Any], watched: str):
        super().__init__(None, watched)
        self.loaders = valid_loaders
        self.kind: tuple | None = None
        self.images = 0

    @torch.no_grad()
    def observe(self, output: Any, target: Any, teacher_output: Any = None) -> None:
        """Count a batch, if it is one of a classifier like those before it."""
        fits = _fits(output, target)
        if not fits or not _alike(output, teacher_output):
            teacher_output = None
        kind = (output.shape[1], teacher_output is not None) if fits else ()
        self.kind = kind if self.kind in (None, kind) else ()
        if not self.kind:
            return
        target = target.to(torch.int64)
        classed = (target >= 0) & (target < output.shape[1])
        output, target = output[classed], target[classed]
        self.images += len(target)
        self.add(output, target, None if teacher_output is None else teacher_output[classed])

    def on_validate_start(self, engine: Any, split: str) -> None:
        super().on_validate_start(engine, split)
        self.kind, self.images = None, 0

    def on_validate_end(self, engine: Any, split: str, metrics: dict[str, float]) -> None:
        self.classes = class_names(self.loaders.get(split), self.tally.classes)
        super().on_validate_end(engine, split, metrics)

    def counted(self, engine: Any, split: str) -> bool:
        some = bool(self.kind) and self.images > 0
        if engine.accelerator.num_processes == 1:
            return some
        # All or none: a process without an image has no sums to add to the others'
        flag = torch.tensor(float(some), device=engine.device)
        return float(engine._reduce(flag)) == engine.accelerator.num_processes

    def reduce(self, engine: Any, split: str) -> Any:
        return engine._reduce if loaders.is_share(self.loaders[split]) else None


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
