"""Where runs live and how they are named: `<root>/<experiment>/<uuid>/`."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from distillation.errors import ConfigError, RunError

RUN, CONFIG, METRICS, LOCK, CHECKPOINTS = (
    "run.json",
    "config.json",
    "metrics.jsonl",
    "run.lock",
    "checkpoints",
)
STATUSES = ("running", "completed", "interrupted", "crashed")

_UUID = re.compile(r"[0-9a-f]{32}")
_EXPERIMENT = re.compile(r"[A-Za-z0-9_][\w .+=,-]*", re.ASCII)


def root(root: str | os.PathLike | None = None) -> Path:
    """The root of the run store: the argument, else `DISTILLATION_RUNS`, else `./logs`.

    It need not be there yet. Raises ConfigError where it is a file.
    """
    given = root if root is not None else os.environ.get("DISTILLATION_RUNS") or "logs"
    place = Path(given).expanduser()
    if place.exists() and not place.is_dir():
        raise ConfigError(
            f"no runs can be kept in {place}: a file, where a folder of runs is wanted; name "
            "another with --runs ROOT or DISTILLATION_RUNS"
        )
    return place


def is_uuid(text: str) -> bool:
    """Whether `text` is a run's UUID: 32 hex characters, small letters."""
    return _UUID.fullmatch(text) is not None


def is_experiment(name: str) -> bool:
    """Whether `name` may be an experiment's: it becomes a folder."""
    return _EXPERIMENT.fullmatch(name) is not None and name == name.strip() and len(name) <= 100


def checked_experiment(name: str) -> str:
    """`name`, or a ConfigError that says what an experiment's name may be."""
    if not isinstance(name, str) or not is_experiment(name):
        raise ConfigError(
            f"experiment name {name!r} makes no folder; use letters, digits and _ . + = , -, "
            "at most 100 of them, a letter or digit first"
        )
    return name


def parse(text: str) -> tuple[str, int | str | None]:
    """Split `RUN@step` into the run and the step.

    The step is a number of samples (`abc@1000`, `abc@1_000_000`), `last` or `best`; without `@`
    it is None.

    Raises:
        RunError: no run before the `@`, or something else after it.
    """
    run, at, step = str(text).strip().partition("@")
    if not run:
        raise RunError(f"{text!r} names no run; give a run UUID or a prefix of one")
    if not at:
        return run, None
    if step in ("last", "best"):
        return run, step
    if re.fullmatch(r"[0-9]+(_[0-9]+)*", step) is None:
        raise RunError(f"{step!r} in {text!r} is no step; use RUN@1000, RUN@last or RUN@best")
    return run, int(step)


def normal(prefix: str) -> str:
    """A UUID or prefix as folders spell it: small letters, no dashes."""
    return prefix.strip().lower().replace("-", "")


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
