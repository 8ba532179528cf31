r"""
# Trackers

The run store records every run. labml's tracker passes the same rows on to whoever else is to see
them: `--set tracker=screen,file,tensorboard`.

* `screen` shows the progress and a line an epoch
* `file` is labml's own log, `log.jsonl` in the run's folder
* `tensorboard` are scalars by sample in the run's folder `tensorboard/`, for

      tensorboard --logdir logs
"""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labml import tracker
from labml.internal.tracker import tracker_singleton
from labml.internal.tracker.indicators.numeric import NumericIndicator
from labml.internal.tracker.writers import Writer

from distillation.errors import ConfigError
from distillation.runs.metrics import KEYS, is_quiet

NAMES = ("screen", "file", "tensorboard")


def check_trackers(names: Iterable[str]) -> None:
    """
    ### Refuse a tracker whose package is missing, before a run is opened
    """
    if "tensorboard" in names and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "tracker=tensorboard needs the package tensorboard, which is not installed: "
            "pip install 'distillation[tensorboard]'"
        )


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """
    ### What is passed on of a row of `metrics.jsonl`

    All that are numbers, but for the statistics of single parameters, of which there are hundreds.
    """
    return {k: v for k, v in row.items() if k not in KEYS and v is not None and not is_quiet(k)}


def pass_on(row: Mapping[str, Any]) -> None:
    """
    ### Give labml's tracker a row that was recorded
    """
    tracker.set_global_step(row["step"])
    tracker.add(scalars(row))
    tracker.save()


class TensorBoardWriter(Writer):
    """
    ### labml's tracker to TensorBoard

    `rows` are those that were recorded before: a run that goes on may have gone back to its last
    checkpoint, so its scalars are written anew from the rows that are left, each at its time, and
    every row is there once. The files before are removed; a TensorBoard that has read them is told
    to forget them.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, Any]] = ()):
        super().__init__()
        from torch.utils.tensorboard import SummaryWriter

        before = sorted(folder.glob("events.out.tfevents.*"))
        self.events = SummaryWriter(str(folder), flush_secs=10, purge_step=0 if before else None)
        for row in rows:
            for name, value in scalars(row).items():
                self.events.add_scalar(name, value, row["step"], walltime=row["time"])
        self.events.flush()
        for file in before:
            file.unlink()

    def write(self, *, global_step: int, indicators: dict[str, Any]) -> None:
        """Called by labml's tracker with each row"""
        for indicator in indicators.values():
            if isinstance(indicator, NumericIndicator) and not indicator.is_empty():
                self.events.add_scalar(indicator.mean_key, indicator.get_mean(), global_step)

    def flush(self) -> None:
        """Hand over what is buffered"""
        self.events.flush()

    def finish(self) -> None:
        """Called when the experiment has ended, well or not"""
        self.events.close()


def start_trackers(recorder: Any, names: Iterable[str]) -> None:
    """
    ### Pass on every row that is recorded from now on
    """
    if "tensorboard" in names:
        rows = recorder.run.metrics
        writer = TensorBoardWriter(recorder.path / "tensorboard", rows)
        tracker_singleton().add_writer(writer)
    recorder.listeners.append(pass_on)
