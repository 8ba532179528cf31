"""`train.log` in a run's folder: what a training said, for whoever did not watch."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from distillation.hooks import Hooks
from distillation.progress import epoch_line

if TYPE_CHECKING:
    from distillation.engine import Engine

LOG = "train.log"


class RunLog(Hooks):
    """Appends a line where the training begins, after each epoch, and at the end.

    A run that is resumed goes on in the same file: an epoch that was lost in a kill stands there
    twice. Raises OSError when the file cannot be written.
    """

    def on_train_start(self, engine: Engine) -> None:
        self._began = time.monotonic()
        begins = f"begins, {engine.epochs} epochs"
        if engine.samples:
            begins = f"goes on at epoch {engine.epoch + 1}/{engine.epochs}, batch {engine.batch}"
        self._write(engine, f"{begins}, on {engine.device}")

    def on_epoch_start(self, engine: Engine) -> None:
        self._epoch_began = time.monotonic()

    def on_epoch_end(self, engine: Engine, metrics: dict[str, float]) -> None:
        seconds = time.monotonic() - self._epoch_began
        self._write(engine, epoch_line(engine.epoch + 1, engine.epochs, metrics, seconds))

    def on_train_end(self, engine: Engine) -> None:
        stopped = "stopped early" if engine.epoch < engine.epochs else "ends"
        self._write(engine, f"{stopped} after {time.monotonic() - self._began:.1f} s")

    def _write(self, engine: Engine, text: str) -> None:
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        with (engine.recorder.path / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{now}  {text}\n")


def run_log(recorder: Any, main: bool) -> list[Hooks]:
    """The hooks that log a training of `recorder`'s; none where this process records nothing."""
    return [RunLog()] if recorder is not None and main else []
