"""The evaluation of `distill_many`: batches, and the teacher's answers, are shared there too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillation.classifier_tally import ClassifierTally, warn_of_guessing
from distillation.data.moving import to_device
from distillation.frozen_teacher import TeacherSource
from distillation.many_lane import Lane
from distillation.meters import Meters
from distillation.transfer import write
from distillation.transfer_hook import class_names


class Validation:
    """Evaluates all students on the same batches.

    loaders   by split; the first one's evaluation is written into each run's `evaluation.json`
    teachers  by split: who is asked for the teacher's logits, a teacher or a table; a split that
              has none is evaluated without agreement and KL
    """

    def __init__(
        self,
        loaders: Mapping[str, Iterable],
        teachers: Mapping[str, TeacherSource],
        device: torch.device,
    ):
        self.loaders, self.teachers, self.device = loaders, teachers, device
        self.warned = False

    @torch.no_grad()
    def rows(self, lanes: list[Lane], epoch: int) -> list[dict[str, float]]:
        """Metrics of each lane's student: accuracy, loss, and what `transfer` measures."""
        rows: list[dict[str, float]] = [{} for _ in lanes]
        for lane in lanes:
            lane.model.eval()
        for split, loader in self.loaders.items():
            counts = [_Count() for _ in lanes]
            # As the engine does: always the pictures of epoch 0, which a table has after the first
            batches = loader.batches(0) if hasattr(loader, "batches") else loader
            for batch in batches:
                self._count(batch, lanes, counts, self.teachers.get(split))
            for lane, count, row in zip(lanes, counts, rows, strict=True):
                row |= {f"{name}.{split}": value for name, value in count.metrics().items()}
                if count.found is not None and not self.warned:
                    self.warned = warn_of_guessing(count.found)
                first = split == next(iter(self.loaders))
                if first and lane.recorder is not None and count.found is not None:
                    names = class_names(loader, count.tally.classes)
                    facts = {"split": split, "epoch": epoch + 1, "step": lane.samples}
                    write(lane.recorder.path, count.found, classes=names, **facts)
        return rows

    def _count(self, batch: Any, lanes, counts, teacher: TeacherSource | None) -> None:
        images, labels = (to_device(t, self.device) for t in batch[:2])
        answer = None
        if teacher is not None:
            keys = {
                name: to_device(getattr(batch, name), self.device)
                for name in ("sample", "view")
                if hasattr(batch, name)
            }
            with lanes[0].autocast():
                answer = teacher(images, **keys)
            answer = answer.float() if torch.is_tensor(answer) else None
        for lane, count in zip(lanes, counts, strict=True):
            with lane.autocast():
                output = lane.model(images)
            count.add(output.float(), labels, answer)


class _Count:
    """What one student does in one split."""

    def __init__(self) -> None:
        self.meters, self.tally = Meters(), ClassifierTally()
        self.found = None

    def add(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> None:
        self.tally.observe(logits, labels, teacher_logits)
        right = (logits.argmax(-1) == labels).float().mean()
        loss = F.cross_entropy(logits, labels)
        self.meters.add({"accuracy": right, "loss": loss}, len(labels))

    def metrics(self) -> dict[str, float]:
        found = self.tally.compute() if self.tally else None
        metrics = dict(self.meters.compute())
        if found is not None and found.images:
            self.found = found
            measures = {"ece": found.ece, "agreement": found.agreement, "kl": found.kl}
            metrics |= {name: value for name, value in measures.items() if value is not None}
        return metrics
