"""Outside trackers (TensorBoard, Weights & Biases, Comet, MLflow, trackio …) through Accelerate.

A tracker that cannot start (package, key or network missing) is a warning: the run store is
written in any case.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from distillation.errors import ConfigError, unknown
from distillation.trainer.params import PAGE


class Trackers:
    """The trackers of one run; of the main process only."""

    def __init__(
        self,
        wanted: Iterable[str | GeneralTracker],
        *,
        project: str,
        folder: Path,
        config: Mapping[str, Any],
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self.active: list[GeneralTracker] = []
        options = dict(options or {})
        for item in wanted:
            if isinstance(item, GeneralTracker):
                self._start(item, type(item).__name__, config)
                continue
            name = str(item)
            if name not in LOGGER_TYPE_TO_CLASS:
                raise ConfigError(unknown("tracker", name, LOGGER_TYPE_TO_CLASS, PAGE))
            if name not in [str(t) for t in get_available_trackers()]:
                _warn(name, f"its package is not installed (pip install {name})")
                continue
            cls = LOGGER_TYPE_TO_CLASS[name]
            given = dict(options.get(name, {}))
            if cls.requires_logging_directory:
                given.setdefault("logging_dir", os.fspath(folder))
            try:
                tracker = cls(project, **given)
            except Exception as error:  # whatever an outside service raises
                _warn(name, f"{type(error).__name__}: {error}")
                continue
            self._start(tracker, name, config)

    def _start(self, tracker: GeneralTracker, name: str, config: Mapping[str, Any]) -> None:
        try:
            tracker.start()
            tracker.store_init_configuration(_flat(config))
        except Exception as error:
            _warn(name, f"{type(error).__name__}: {error}")
            return
        self.active.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Give one row to every tracker; one that fails is warned about and left out from then."""
        for tracker in list(self.active):
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:
                _warn(type(tracker).__name__, f"{type(error).__name__}: {error}")
                self.active.remove(tracker)

    def finish(self) -> None:
        """Close every tracker."""
        for tracker in self.active:
            try:
                tracker.finish()
            except Exception as error:
                _warn(type(tracker).__name__, f"{type(error).__name__}: {error}")
        self.active = []


def _warn(name: str, why: str) -> None:
    warnings.warn(
        f"tracker {name!r} is left out: {why}. The run store records the run.", stacklevel=4
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{name}."))
        elif value is None or isinstance(value, bool | int | float | str):
            flat[name] = value
        else:
            flat[name] = json.dumps(value)
    return flat
