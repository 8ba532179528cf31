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
    """The trackers of one run; of the main process only.

    `start` starts them, once the training begins. Raises `ConfigError` for a name that Accelerate
    does not know.
    """

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
        self._wanted = [w if isinstance(w, GeneralTracker) else str(w) for w in wanted]
        self._project, self._folder, self._config = project, folder, config
        self._options = dict(options or {})
        for item in self._wanted:
            if isinstance(item, str) and item not in LOGGER_TYPE_TO_CLASS:
                raise ConfigError(unknown("tracker", item, LOGGER_TYPE_TO_CLASS, PAGE))

    def start(self) -> None:
        """Start each, and give it the configuration."""
        for wanted in self._wanted:
            if isinstance(wanted, GeneralTracker):
                self._start(wanted, type(wanted).__name__)
            elif (tracker := self._made(wanted)) is not None:
                self._start(tracker, wanted)

    def _made(self, name: str) -> GeneralTracker | None:
        if name not in [str(t) for t in get_available_trackers()]:
            _warn(name, f"its package is not installed (pip install {name})")
            return None
        cls = LOGGER_TYPE_TO_CLASS[name]
        given = dict(self._options.get(name, {}))
        if cls.requires_logging_directory:
            given.setdefault("logging_dir", os.fspath(self._folder))
        try:
            return cls(self._project, **given)
        except Exception as error:  # whatever an outside service raises
            _warn(name, f"{type(error).__name__}: {error}")
            return None

    def _start(self, tracker: GeneralTracker, name: str) -> None:
        try:
            tracker.start()
            tracker.store_init_configuration(_flat(self._config))
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
