"""What a student has taken over, measured in each evaluation and written down with the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from distillation.hooks import Hooks
from distillation.transfer import Evaluation, Tally, write


class TransferHook(Hooks):
    """Measures of `distillation.transfer` for the engine: agreement, KL, calibration error.

    The step `add`s each batch of an evaluation; sums stay on the device and are read once, at its
    end. They become metrics of the epoch (`ece.test`, `agreement.test`, `kl.test`), and those of
    `split` the run's `evaluation.json`, for the last epoch that was evaluated.

    `classes` are the names of the classes; without them they are numbered.
    """

    def __init__(self, classes: Sequence[str] | None = None, split: str = "test"):
        self.classes = None if classes is None else list(classes)
        self.split = split
        self.tally = Tally()
        self.found: Evaluation | None = None
        """What the last evaluation has measured, if it did."""

    def add(self, output: Tensor, target: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Count a batch: logits, labels and, where there is one, the teacher's logits."""
        self.tally.add(output, target, teacher_logits)

    def on_validate_start(self, engine: Any, split: str) -> None:
        self.tally.reset()
        self.found = None

    def on_validate_end(self, engine: Any, split: str, metrics: dict[str, float]) -> None:
        if not self.counted(engine, split):
            return
        found = self.tally.compute(self.reduce(engine, split))
        if not found.images:
            return
        self.found = found
        measures = {"ece": found.ece, "agreement": found.agreement, "kl": found.kl}
        for name, value in measures.items():
            if value is not None:
                metrics.setdefault(f"{name}.{split}", value)  # the step's own stay
        writes = engine.recorder is not None and engine.accelerator.is_main_process
        if split == self.split and writes:
            write(
                engine.recorder.path,
                found,
                split=split,
                epoch=engine.epoch + 1,
                step=engine.samples,
                classes=self.classes,
            )

    def counted(self, engine: Any, split: str) -> bool:
        """Whether there is something to measure; a step that adds nothing has other measures."""
        return bool(self.tally)

    def reduce(self, engine: Any, split: str) -> Any:
        """What sums a tensor over the processes that share the images of `split`."""
        return engine._reduce


def class_names(loader: Any, count: int) -> list[str] | None:
    """The names of `count` classes, where the loader's images have them (ours, torchvision's)."""
    images = getattr(loader, "image_set", None) or getattr(loader, "dataset", None)
    while images is not None:
        names = getattr(images, "classes", None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return list(names) if len(names) == count else None
        images = getattr(images, "dataset", None)
    return None
