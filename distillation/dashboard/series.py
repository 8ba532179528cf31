"""Whole metrics files in memory, read once; of a file that grows only what is new is read."""

from __future__ import annotations

import math
import os
import threading
from array import array
from collections import OrderedDict
from pathlib import Path

from distillation.dashboard.reading import finite, moment, open_regular, row_of, values_of

_MOST_VALUES = 8_000_000  # in memory, of all runs together; 16 bytes each
_CHECKED = 256  # bytes before the place where reading goes on
_NAMED = 3  # damaged lines that a message names


class Series:
    """The curves of one metrics file.

    `columns` holds (steps, values) of each metric in the order of the file, NaN where a value is
    not a finite number; `size` is how many bytes were read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.guard = threading.Lock()
        self._forget()

    def refresh(self) -> None:
        """Read what the file has beyond what is known; all of it when it is another file.

        A last row that is not complete is left for the next time, a row that cannot be read is
        left out and counted. A file that is gone has no rows.
        """
        try:
            descriptor = open_regular(self.path)
        except OSError:
            self._forget()
            return
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            sign = found.st_ino, found.st_size, found.st_mtime_ns
            if sign == self.sign:
                return
            if not self._continues(file, found):
                self._forget()
            file.seek(self.size)
            new = file.read()
        end = new.rfind(b"\n") + 1
        for line in new[:end].split(b"\n")[:-1]:
            self._add(line)
        self.size += end
        self._end = (self._end + new[:end])[-_CHECKED:]
        self.sign = sign
        self.updated = moment(found.st_mtime)

    def problem(self) -> str | None:
        """Which rows could not be read."""
        if not self.damaged:
            return None
        lines = ", ".join(str(line) for line in self.damaged[:_NAMED])
        more = f" and {len(self.damaged) - _NAMED} more" if len(self.damaged) > _NAMED else ""
        return f"{self.path.name} is damaged: left out line {lines}{more}"

    def _forget(self) -> None:
        self.columns: dict[str, tuple[array, array]] = {}
        self.sign: tuple[int, int, int] | None = None
        self.size = 0
        self.lines = 0
        self.count = 0  # values
        self.damaged: list[int] = []
        self.updated: str | None = None
        self._end = b""

    def _continues(self, file, found: os.stat_result) -> bool:
        """Whether the file still begins with what was read of it."""
        if self.sign is None or found.st_ino != self.sign[0] or found.st_size < self.size:
            return False
        file.seek(self.size - len(self._end))
        return file.read(len(self._end)) == self._end

    def _add(self, line: bytes) -> None:
        self.lines += 1
        row = row_of(line)
        if row is None:
            self.damaged.append(self.lines)
            return
        for name, value in values_of(row).items():
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = array("q"), array("d")
            number = finite(value)
            self.count += 1
            column[0].append(row["step"])
            column[1].append(math.nan if number is None else number)


class SeriesCache:
    """The series that were asked for last. Safe to use from several threads."""

    def __init__(self, most: int = _MOST_VALUES) -> None:
        self._most = most
        self._known: OrderedDict[Path, Series] = OrderedDict()
        self._guard = threading.Lock()

    def read(self, path: Path) -> Series:
        """The series of `path` as the file is now; hold its `guard` while its columns are used."""
        with self._guard:
            series = self._known.setdefault(path, Series(path))
            self._known.move_to_end(path)
        with series.guard:
            series.refresh()
        with self._guard:
            counts = {path: known.count for path, known in self._known.items()}
            total = sum(counts.values())
            while total > self._most and len(self._known) > 1:
                oldest, _ = self._known.popitem(last=False)
                total -= counts[oldest]
        return series
