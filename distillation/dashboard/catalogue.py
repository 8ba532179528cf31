"""The runs under a root as the pages list them; what did not change on disk is not read again.

Paths are texts in what every poll does for every file of every run.
"""
# ruff: noqa: PTH112, PTH118

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from distillation.dashboard import notes
from distillation.dashboard.reading import (
    Signature,
    dumps,
    finite,
    last_rows,
    moment,
    open_regular,
    read_json,
    signature,
    values_of,
)
from distillation.errors import RunError
from distillation.runs import Run
from distillation.runs.compare import flat
from distillation.runs.metrics import is_quiet
from distillation.runs.places import CONFIG, METRICS, RUN, is_experiment, is_uuid
from distillation.runs.teachers import checkpoints, is_distilled, teachers

_SHOWN = 200  # characters of a configuration value that the list gives
_FILES = (RUN, CONFIG, METRICS, notes.FILE)  # that an entry is made of
_EPOCHS = ("epochs", "max_epochs", "max_epoch")


@dataclass(frozen=True)
class Entry:
    """A run as the catalogue knows it.

    `info` is run.json without its summary, `config` the whole configuration with dotted keys,
    `facts` what `/api/runs` says of the run and `text` the same as JSON.
    """

    path: Path
    info: dict
    config: dict[str, object]
    facts: dict
    text: str
    problems: tuple[str, ...]

    uuid = property(lambda self: self.facts["uuid"])
    teachers = property(lambda self: self.facts["teachers"])
    teacher_steps = property(lambda self: checkpoints(self.info))
    is_distilled = property(lambda self: is_distilled(self.info))
    status = property(lambda self: self.facts["status"])


@dataclass(frozen=True)
class Listing:
    """All runs at one moment, newest first by UUID, and what could not be read."""

    entries: dict[str, Entry]
    problems: list[dict] = field(default_factory=list)

    def children(self, uuid: str) -> list[str]:
        """The runs that `uuid` was a teacher of, newest first."""
        return [e.uuid for e in self.entries.values() if uuid in e.teachers]

    def text(self) -> str:
        """The JSON of `/api/runs`."""
        runs = ",".join(entry.text for entry in self.entries.values())
        return f'{{"runs":[{runs}],"problems":{json.dumps(self.problems)}}}'


class Catalogue:
    """The runs under `root`. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, tuple[tuple, Entry]] = {}
        self._guard = threading.Lock()

    def listing(self) -> Listing:
        """All runs as they are now."""
        entries: list[Entry] = []
        problems: list[dict] = []
        known: dict[str, tuple[tuple, Entry]] = {}
        with self._guard:
            for folder in _run_folders(self.root, problems):
                try:
                    signs, entry = self._entry(folder)
                except RunError as error:
                    problems.append(_problem(self.root, Path(folder), str(error)))
                    continue
                known[folder] = signs, entry
                entries.append(entry)
                problems += [_problem(self.root, entry.path, text) for text in entry.problems]
            self._known = known
        entries.sort(key=lambda e: (e.facts["created"], e.uuid), reverse=True)
        by_uuid: dict[str, Entry] = {}
        for entry in entries:
            if entry.uuid in by_uuid:
                other = by_uuid[entry.uuid].path.parent.name
                message = f"left out: the experiment {other!r} has a run with the same UUID"
                problems.append(_problem(self.root, entry.path, message))
            else:
                by_uuid[entry.uuid] = entry
        return Listing(by_uuid, problems)

    def find(self, uuid: str) -> Entry | None:
        """The run with this UUID, as it is now; None where there is none that can be read."""
        if not is_uuid(uuid):
            return None
        with self._guard:
            for experiment in _subfolders(self.root, None):
                folder = os.path.join(self.root, experiment, uuid)
                if is_experiment(experiment) and os.path.isdir(folder):
                    try:
                        signs, entry = self._entry(folder)
                    except RunError:
                        continue
                    self._known[folder] = signs, entry
                    return entry
        return None

    def _entry(self, folder: str) -> tuple[tuple, Entry]:
        signs = tuple(signature(os.path.join(folder, name)) for name in _FILES)
        known = self._known.get(folder)
        # Only a run that is held can change its status while run.json stays as it is
        if known is not None and known[0] == signs and known[1].status != "running":
            return known
        if known is not None and known[0] == signs:
            status = _status(Run(known[1].path, known[1].info))
            if status == known[1].status:
                return known
        return signs, _read(Path(folder), signs)


def _read(folder: Path, signs: tuple[Signature | None, ...]) -> Entry:
    try:
        with suppress(FileNotFoundError):
            os.close(open_regular(folder / RUN))  # a pipe there would hold up all runs
        run = Run.read(folder)
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{folder / RUN} cannot be read: {reason}") from error
    problems: list[str] = []
    info = {key: value for key, value in run.info.items() if key != "summary"}
    config = _config(folder, problems)
    note = notes.read(folder, problems)
    rows = last_rows(folder / METRICS, whole_tail=not run.summary)
    metrics = dict(run.summary)
    for row in rows:
        metrics.update(values_of(row))
    times = [sign[2] / 1e9 for sign in (signs[0], signs[2]) if sign is not None]
    facts = {
        "uuid": run.uuid,
        "experiment": run.experiment,
        "name": _text(run.name),
        "status": _status(run),
        "created": run.started,
        "ended": _text(run.ended),
        "updated": moment(max(times, default=0.0)),
        "comment": _text(info.get("comment")) or "",
        "note": note["text"],
        "hidden": note["hidden"],
        "parent": run.parent_uuid,
        "teachers": teachers(info),
        "seed": _scalar(run.seed),
        "step": rows[-1]["step"] if rows else None,
        "epoch": finite(rows[-1].get("epoch")) if rows else None,
        "epochs": _epochs(config),
        "config": {key: _short(value) for key, value in config.items()},
        "metrics": {k: finite(v) for k, v in metrics.items() if not is_quiet(k)},
    }
    return Entry(folder, info, config, facts, dumps(facts), tuple(problems))


def _status(run: Run) -> str:
    try:
        return run.status
    except OSError:  # the folder is going, or its lock cannot be opened
        return run.info["status"]


def _config(folder: Path, problems: list[str]) -> dict[str, object]:
    """The configuration with dotted keys; lists as their JSON."""
    try:
        found = read_json(folder / CONFIG)
        if not isinstance(found, Mapping):
            raise RunError(f"{CONFIG} holds no object")
        return {key: _scalar(value) for key, value in flat(found).items()}
    except FileNotFoundError:
        return {}
    except (RunError, RecursionError) as error:
        problems.append(str(error))
        return {}


def _epochs(config: Mapping[str, object]) -> int | float | None:
    """How many epochs the run is to have, as experiments, trainer and toolkit call it."""
    keys = [key for key in config if key.rpartition(".")[2] in _EPOCHS]
    keys = [key for key in keys if "teacher" not in key]  # a recipe says how it is trained too
    return finite(config[min(keys, key=lambda key: (key.count("."), key))]) if keys else None


def _scalar(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return json.dumps(value)


def _short(value: object) -> object:
    return f"{value[:_SHOWN]}…" if isinstance(value, str) and len(value) > _SHOWN else value


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _run_folders(root: Path, problems: list[dict]) -> Iterator[str]:
    for experiment in _subfolders(root, problems):
        if is_experiment(experiment):
            for name in _subfolders(root / experiment, problems, root):
                if is_uuid(name):
                    yield os.path.join(root, experiment, name)


def _subfolders(parent: Path, problems: list[dict] | None, root: Path | None = None) -> list[str]:
    """Names of the folders in `parent`, sorted; why they cannot be listed goes to `problems`."""
    try:
        with os.scandir(parent) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if problems is not None:
            problems.append(_problem(root or parent, parent, error.strerror or str(error)))
        return []


def _problem(root: Path, path: Path, message: str) -> dict:
    """`message` about `path`, without the root in either: it is the same for all."""
    shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return {
        "path": shown,
        "message": message.replace(f"{path}{os.sep}", "").replace(str(path), shown),
    }
