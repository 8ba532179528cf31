"""Progress of a training: a live bar in a terminal, one line an epoch anywhere else."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from distillation.hooks import Hooks

if TYPE_CHECKING:
    from distillation.engine import Engine

# Recorded, but not on the line of an epoch: the parts of a loss, and what is looked at afterwards
_QUIET = ("param.", "grad.", "ece.", "kl.", "loss.nll.", "loss.kl_div.")


def epoch_line(epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> str:
    """`epoch 3/8  accuracy.test 0.7812  loss.train 0.5123  26.3 s`"""
    width = len(str(epochs))
    shown = [
        f"{name} {value:.4f}"
        for name, value in sorted(metrics.items())
        if not name.startswith(_QUIET)
    ]
    return "  ".join([f"epoch {epoch:>{width}}/{epochs}", *shown, f"{seconds:.1f} s"])


class Progress(Hooks):
    """Prints to `stream` (stdout); `NO_COLOR` is respected, a pipe gets no escape codes."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self._live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Any = None
        self._started = 0.0

    def on_train_start(self, engine: Engine) -> None:
        if not self._live:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(file=self.stream),
            transient=True,
        )
        self._bar.start()

    def on_epoch_start(self, engine: Engine) -> None:
        self._started = time.monotonic()
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            try:
                total: int | None = len(engine.train_loader)  # type: ignore[arg-type]
            except TypeError:
                total = None
            self._task = self._bar.add_task(
                f"epoch {engine.epoch + 1}/{engine.epochs}", total=total, completed=engine.batch
            )

    def on_batch_end(self, engine: Engine, batch: Any) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def on_epoch_end(self, engine: Engine, metrics: dict[str, float]) -> None:
        seconds = time.monotonic() - self._started
        line = epoch_line(engine.epoch + 1, engine.epochs, metrics, seconds)
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=self.stream, flush=True)

    def close(self) -> None:
        """Take the bar off the screen; also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, engine: Engine) -> None:
        self.close()
