"""One run in full: its files, checkpoints, log and where it ran."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from distillation import files
from distillation.dashboard.catalogue import Entry
from distillation.dashboard.reading import moment, open_regular
from distillation.dashboard.series import Series
from distillation.errors import ConfigError, DataError, RunError
from distillation.runs.places import CHECKPOINTS
from distillation.runs.run import steps

LARGEST = 1 << 20  # bytes of a file that is shown
_LOGS = (".log", ".out", ".err")  # a program's own output; newest first
_LABML = ("log.jsonl",)  # what labml tracked
_SAID = ("uuid", "name", "comment", "status", "started", "ended", "seed", "parent")


def details(entry: Entry, series: Series, children: list[str]) -> dict:
    """What `/api/runs/{uuid}` says besides what the list says."""
    with series.guard:
        names = sorted({*entry.facts["metrics"], *series.columns})
        damage = series.problem()
    error = entry.info.get("error")
    environment = {k: v for k, v in entry.info.items() if k not in (*_SAID, "error")}
    return {
        **entry.facts,
        "config": entry.config,
        "files": _files(entry.path),
        "checkpoints": _checkpoints(entry),
        "children": children,
        "environment": environment,
        "metric_names": names,
        "error": error if error is None or isinstance(error, str) else str(error),
        "problems": [*entry.problems, *([damage] if damage else [])],
    }


def file_text(folder: Path, name: str) -> str:
    """The text of the file `name` of a run's folder.

    Raises:
        RunError: there is no such file.
        DataError: it is too large, or no text.
    """
    if not name or name.startswith(".") or name != os.path.basename(name) or "\\" in name:  # noqa: PTH119
        raise RunError(f"the run has no file {name!r}")
    content, size = _read(folder / name, 0, LARGEST + 1)
    if size > LARGEST:
        raise DataError(f"{name} has {size:,} bytes; files up to {LARGEST:,} are shown")
    if b"\0" in content:
        raise DataError(f"{name} is no text")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DataError(f"{name} is no text in UTF-8") from None


def log_tail(folder: Path, tail: int) -> dict:
    """The last `tail` bytes of the run's log: {"text", "truncated", "name"}; empty without one."""
    name = _log_name(folder)
    if name is not None:
        try:
            content, size = _read(folder / name, tail, tail)
        except RunError:  # it went meanwhile
            name = None
    if name is None:
        return {"text": "", "truncated": False, "name": None}
    truncated = size > len(content)
    if truncated:
        content = content[content.find(b"\n") + 1 :]
    return {"text": content.decode(errors="replace"), "truncated": truncated, "name": name}


def checked_tail(text: str | None) -> int:
    """The number of bytes of a log that is asked for, 1 to 1,048,576. Raises ConfigError."""
    if text is None:
        return 20_000
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= LARGEST:
        raise ConfigError(f"tail is a number of bytes from 1 to {LARGEST}, not {text[:40]!r}")
    return int(text)


def _files(folder: Path) -> list[dict]:
    found = []
    for name, status in _regular(folder):
        found.append(
            {
                "name": name,
                "size": status.st_size,
                "modified": moment(status.st_mtime),
                "shown": 0 < status.st_size <= LARGEST,
            }
        )
    return sorted(found, key=lambda file: file["name"])


def _checkpoints(entry: Entry) -> list[dict]:
    """The complete checkpoints, by step: what the weights are called, bytes, whether the best."""
    found = []
    try:
        present = steps(entry.path)
    except OSError:
        return []
    for step in present:
        place = files.locate(entry.path / CHECKPOINTS / str(step))
        contents = _regular(place) if place is not None else []
        if not contents:
            continue  # it was pruned meanwhile
        found.append(
            {
                "step": step,
                "best": entry.info.get("best_step") == step,
                "bytes": sum(status.st_size for _, status in contents),
                "weights": sorted(
                    name.removesuffix(".safetensors")
                    for name, _ in contents
                    if name.endswith(".safetensors")
                ),
                "modified": moment(max(status.st_mtime for _, status in contents)),
            }
        )
    return found


def _regular(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Names and facts of the files in a folder, without links and hidden ones."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append((entry.name, status))
    except OSError:
        return []
    return found


def _log_name(folder: Path) -> str | None:
    present = dict(_regular(folder))
    logs = [name for name in present if name.endswith(_LOGS)]
    if logs:
        return max(logs, key=lambda name: (present[name].st_mtime, name))
    return next((name for name in _LABML if name in present), None)


def _read(path: Path, from_end: int, most: int) -> tuple[bytes, int]:
    """(at most `most` bytes, the last ones when `from_end` is given; the file's size)."""
    try:
        with os.fdopen(open_regular(path, follow=False), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if from_end:
                file.seek(max(0, size - from_end))
            return file.read(most), size
    except (OSError, ValueError):
        raise RunError(f"the run has no file {path.name!r}") from None
