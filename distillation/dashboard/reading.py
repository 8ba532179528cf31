"""Reading files that others write, replace or remove meanwhile."""

from __future__ import annotations

import json
import math
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from distillation.errors import RunError
from distillation.files import jsonable
from distillation.runs.metrics import KEYS

Signature = tuple[int, int, int]

_DECODER = json.JSONDecoder(parse_constant=lambda name: None)
_TAIL = 1 << 13  # bytes; the last row of a metrics file is looked for in so many, then in more


def signature(path: str | os.PathLike) -> Signature | None:
    """What changes whenever a file does: inode, size, time of change; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def open_regular(path: Path, *, follow: bool = True) -> int:
    """A descriptor of the regular file `path`, never of a pipe, which would block.

    Raises:
        OSError: there is no such file, or it is something else: a link too, without `follow`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file", str(path))
    return descriptor


def read_json(path: Path) -> object:
    """The value in a JSON file; NaN and infinities as None.

    Raises:
        FileNotFoundError: there is no such file.
        RunError: it cannot be read, or holds no JSON.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return parse(file.read())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path.name} is damaged: {error}") from error


def parse(text: bytes) -> object:
    """JSON in UTF-8, with NaN and Infinity as None. Raises ValueError or RecursionError."""
    return _DECODER.decode(text.decode())


def dumps(value: object) -> str:
    """Compact JSON in ASCII; NaN and infinities become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(jsonable(value), allow_nan=False, separators=(",", ":"))


def last_rows(path: Path, whole_tail: bool = False) -> list[dict]:
    """The last complete row of a metrics file, or all rows of its tail; [] where there is none."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            length = min(_TAIL, size)
            while length:
                file.seek(size - length)
                rows = _rows(file.read(length), length == size, whole_tail)
                if rows or length == size:
                    return rows
                length = min(length * 16, size)
    except OSError:
        pass
    return []


def row_of(line: bytes) -> dict | None:
    """A row of metrics.jsonl; None for a line that is none."""
    try:
        row = parse(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    step = row.get("step")
    return row if type(step) is int and abs(step) < 1 << 53 else None


def values_of(row: dict) -> dict[str, object]:
    """The metrics of a row."""
    return {name: value for name, value in row.items() if name not in KEYS}


def finite(value: object) -> int | float | None:
    """`value` if it is a number that a curve can show, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an int beyond every float
        return None


def moment(seconds: float) -> str:
    """ISO 8601 in UTC of seconds since 1970."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC).isoformat(timespec="milliseconds")


def _rows(tail: bytes, is_all: bool, every: bool) -> list[dict]:
    lines = tail.split(b"\n")
    lines.pop()  # empty, or torn
    if not is_all:
        lines = lines[1:]
    rows: list[dict] = []
    for line in reversed(lines):
        row = row_of(line)
        if row is not None:
            rows.append(row)
            if not every:
                break
    return rows[::-1]
