"""metrics.jsonl: one strict JSON row per step, `{"step", "epoch", "time", <name>: value}`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path

from distillation.errors import ConfigError, RunError
from distillation.files import atomic_write, dumps

KEYS = ("step", "epoch", "time")
_NUMBER = (int, float, type(None))
# How the words end that name a metric of which more is better; torchmetrics' classes among them
MAXIMISED = (
    "accuracy",
    "agreement",
    "top1",
    "top5",
    "f1",
    "f1score",
    "fbetascore",
    "r2score",
    "dicescore",
    "iou",
    "union",
    "jaccardindex",
    "recall",
    "precision",
    "specificity",
    "auroc",
    "auc",
    "kappa",
    "corrcoef",
    "psnr",
    "ssim",
)


class MetricsFile:
    """The writing side: rows are buffered, and written by `flush` in one piece.

    A row that a killed process has left half-written is cut off when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._buffer: list[str] = []
        _cut_torn_row(path)

    def append(self, step: int, epoch: float, values: Mapping[str, float]) -> dict:
        """Add a row; returns it as it will be read. See `Recorder.log`."""
        row: dict = {"step": whole("step", step), "epoch": epoch, "time": round(time.time(), 3)}
        for name, value in values.items():
            if not isinstance(name, str) or name in KEYS:
                raise ConfigError(f"{name!r} cannot be a metric's name")
            if not isinstance(value, Real):
                raise ConfigError(
                    f"metric {name!r} is a {type(value).__name__}, not a number; "
                    "take tensors to the host once, when they are logged"
                )
            row[name] = float(value)
        line = dumps(row)
        self._buffer.append(line + "\n")
        return json.loads(line)

    def flush(self) -> bool:
        """Hand the buffered rows to the operating system; whether there were any.

        Raises:
            RunError: it does not take them (a full disk); they stay in the buffer.
        """
        if not self._buffer:
            return False
        content = "".join(self._buffer).encode()
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.write(content) != len(content):
                    file.truncate(size)
                    raise OSError(0, "no space for all of it")
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, size)
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._buffer.clear()
        return True

    def sync(self) -> None:
        """Flush, down to the disk."""
        self.flush()
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(
        self, step: int | None, drop: Callable[[dict], bool] = lambda row: False
    ) -> list[dict]:
        """Drop the rows past `step` (all of them for None); returns those that are left.

        `drop` names rows up to `step` that go too.
        """
        self.flush()
        rows = read(self.path)
        kept = (
            [] if step is None else [row for row in rows if row["step"] <= step and not drop(row)]
        )
        if len(kept) != len(rows):
            atomic_write(self.path, "".join(dumps(row) + "\n" for row in kept))
        return kept


def read(path: Path) -> list[dict]:
    """Rows of a metrics file, oldest first; a last row that is not complete is left out.

    Raises:
        RunError: a row before the last cannot be read; it is named by its line.
    """
    rows, damaged = readable(path)
    if damaged and damaged[0] < len(rows) + len(damaged):  # the last one may be
        raise RunError(f"{path} is damaged: line {damaged[0]} is no metrics row")
    return rows


def readable(path: Path) -> tuple[list[dict], list[int]]:
    """The rows that can be read, and the numbers, from 1, of the complete lines that cannot."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    lines.pop()  # empty, or torn
    found = [_row(line) for line in lines]
    damaged = [number for number, row in enumerate(found, 1) if row is None]
    return [row for row in found if row is not None], damaged


def last_values(rows: list[dict]) -> dict[str, float | None]:
    """The last value of each metric in `rows`."""
    values: dict[str, float | None] = {}
    for row in rows:
        values.update((k, v) for k, v in row.items() if k not in KEYS)
    return values


def best_values(rows: list[dict]) -> dict[str, tuple[float, int]]:
    """Best value of each metric and its step: the highest or the lowest, by `is_maximised`."""
    best: dict[str, tuple[float, int]] = {}
    for row in rows:
        for name, value in row.items():
            if name in KEYS or value is None:
                continue
            sign = 1 if is_maximised(name) else -1
            if name not in best or sign * value > sign * best[name][0]:
                best[name] = (value, row["step"])
    return best


def is_maximised(name: str) -> bool:
    """Whether more of a metric is better: accuracies and their like; everything else is a loss.

    By the name, `accuracy.test` as well as a trainer's `multiclassf1score.valid`.
    """
    parts = name.lower().replace("/", ".").replace("_", ".").replace("@", ".").split(".")
    return any(part.endswith(MAXIMISED) for part in parts) and "loss" not in parts


def is_quiet(name: str) -> bool:
    """Whether a metric is a statistic of one parameter or gradient, of which there are hundreds."""
    return name.startswith(("param.", "grad."))


def main_values(summary: Mapping[str, float | None], most: int = 2) -> dict[str, float | None]:
    """The metrics to show where there is room for a few: of a test or validation before others."""
    splits = ("test", "valid", "train")

    def rank(name: str) -> tuple:
        split = name.rpartition(".")[2]
        place = splits.index(split) if split in splits else len(splits)
        head = name.rpartition(".")[0] or name
        kind = 0 if head.lower() == "accuracy" else 1 if head.lower() == "loss" else 2
        return place > 1, kind > 1, place, kind, name

    names = sorted((n for n in summary if not is_quiet(n)), key=rank)
    return {name: summary[name] for name in names[:most]}


def whole(what: str, value: object) -> int:
    """`value` as an int, or a ConfigError that names `what` it should be."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{what} must be a whole number of samples, not {value!r}")
    return int(value)


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if whole and all(isinstance(v, _NUMBER) for v in row.values()) else None


def _cut_torn_row(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    last = content.rfind(b"\n", 0, max(end - 1, 0)) + 1
    if end and _row(content[last:end]) is None:
        end = last
    if end != len(content):
        os.truncate(path, end)
