"""The files of a teacher table: entries, marks and the order in which they reach the disk.

A table is a folder:

* `manifest.json`: what the entries are (see `manifest.py`), written last when a table is made, so
  a folder with a manifest is complete;
* `entries.f16`: `[samples, views, width]`, half floats, little endian. Sparse: what was never
  written takes no space on file systems that know holes;
* `marks.u16`: `[samples, views]`, 0 where nothing is stored, else a checksum of the entry;
* `lock`: held by whoever writes.

An entry is written in this order: entry, sync of `entries.f16`, mark. A process that is killed, or
a machine that loses power, therefore leaves entries without a mark (they are filled again) but
never a mark without its entry. The checksum is looked at on every read, so a damaged file is an
error and not a wrong soft target.

Any number of processes may read and write one table. Reading takes no lock. The first writer of an
entry wins; what comes back from `write` is what the file holds.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from filelock import FileLock

from distillation.errors import DataError, ShapeError

ENTRIES, MARKS, LOCK = "entries.f16", "marks.u16", "lock"
_sync = getattr(os, "fdatasync", os.fsync)
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def checksums(entries: np.ndarray) -> np.ndarray:
    """Marks of entries `[n, width]` float16: `[n]` uint16, never 0.

    A sum of the 16-bit words with odd position-dependent weights, modulo the prime 65,521: finds
    every single changed word and every exchange of two neighbours that differ, and 99.998 % of
    other damage.
    """
    words = np.ascontiguousarray(entries, dtype="<f2").view("<u2")
    n, width = words.shape
    total = np.full(n, 1 + width, dtype=np.uint64)
    # Blocks bound the memory of the products: hidden layers have many thousand words.
    for start in range(0, width, 4096):
        block = words[:, start : start + 4096].astype(np.uint64)
        position = np.arange(start, start + block.shape[1], dtype=np.uint64)
        total += (block * (position % np.uint64(30_000) * np.uint64(2) + np.uint64(3))).sum(axis=1)
    return (total % np.uint64(65_521) + np.uint64(1)).astype(np.uint16)


class TableStorage:
    """Half-precision entries by `(sample, view)`, memory-mapped, shared between processes.

    `shape` is `(samples, views, width)`. Indices are int64 arrays of one length. Raises `DataError`
    for files that are missing, of the wrong length, or damaged, and `ShapeError` for indices or
    entries that do not fit.

    Files that this process may read but not write are read; `DataError` where it would write.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]):
        self.folder = Path(folder)
        self.shape = shape
        self._unwritable: str | None = None  # why
        samples, views, width = shape
        self._files = {
            ENTRIES: self._open(ENTRIES, samples * views * width * 2),
            MARKS: self._open(MARKS, samples * views * 2),
        }
        self._entries = self._map(ENTRIES, "<f2", (samples * views, width))
        self._marks = self._map(MARKS, "<u2", (samples * views,))
        self._lock = FileLock(self.folder / LOCK)

    @classmethod
    def create(cls, folder: Path, shape: tuple[int, int, int]) -> None:
        """Make the empty files (holes) of a table and sync them."""
        samples, views, width = shape
        if min(shape) < 1:
            raise ShapeError(f"a table needs samples, views and a width of at least 1, got {shape}")
        for name, size in ((ENTRIES, samples * views * width * 2), (MARKS, samples * views * 2)):
            try:
                with (Path(folder) / name).open("wb") as file:
                    file.truncate(size)
                    os.fsync(file.fileno())
            except OSError as error:
                raise DataError(f"cannot make {name} of {size:,} bytes: {error}") from error

    # -- reading

    def filled(self, sample: np.ndarray, view: np.ndarray) -> np.ndarray:
        """`[n]` bool: which of the entries are stored."""
        return self._marks[self._flat(sample, view)] != 0

    def read(self, sample: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Entries `[n, width]` float16. All must be filled; each is checked against its mark."""
        flat = self._flat(sample, view)
        entries = self._entries[flat]
        wrong = self._marks[flat] != checksums(entries)
        if wrong.any():
            # A writer may be between the bytes of a mark: look again when no one writes.
            with self._lock if self._unwritable is None else nullcontext():
                entries = self._entries[flat]
                marks = self._marks[flat]
            wrong = marks != checksums(entries)
            if wrong.any():
                self._refuse(flat[wrong], marks[wrong])
        return entries

    def count(self) -> int:
        """How many entries are stored."""
        return int(np.count_nonzero(self._marks))

    def _stored(self) -> np.ndarray:
        """Flat numbers of the stored entries."""
        # Of a copy: NumPy refuses an array in which another process marks an entry meanwhile
        return np.flatnonzero(self._marks.copy())

    def filled_map(self) -> np.ndarray:
        """`[samples, views]` bool, a copy: which entries are stored."""
        return (self._marks != 0).reshape(self.shape[:2])

    def sound(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys `(sample, view)` of at most n stored entries that fit their checksums.

        Always the same ones of the same table: the first and the last of a few, evenly spread.
        """
        stored = self._stored()
        few = stored[
            np.unique(np.linspace(0, max(len(stored) - 1, 0), 16).astype(np.int64))[: len(stored)]
        ]
        few = few[self._marks[few] == checksums(self._entries[few])]
        ends = few[np.unique(np.linspace(0, max(len(few) - 1, 0), n).astype(np.int64))[: len(few)]]
        return ends // self.shape[1], ends % self.shape[1]

    # -- writing

    def write(self, sample: np.ndarray, view: np.ndarray, entries: np.ndarray) -> None:
        """Store entries `[n, width]` float16; on return they survive this process.

        Entries that are stored already stay as they are. A power cut may take marks that were
        written since the last `flush`, and so some entries, which are then filled again.
        """
        flat = self._flat(sample, view)
        if entries.dtype != np.float16 or entries.shape != (len(flat), self.shape[2]):
            raise ShapeError(
                f"expected float16 entries [{len(flat)}, {self.shape[2]}], "
                f"got {entries.dtype} {list(entries.shape)}"
            )
        flat, first = np.unique(flat, return_index=True)
        entries = np.ascontiguousarray(entries[first], dtype="<f2")
        with self._writing():
            new = self._marks[flat] == 0
            flat, entries = flat[new], entries[new]
            if not len(flat):
                return
            self._put(ENTRIES, flat, entries)
            self._sync(ENTRIES)
            self._put(MARKS, flat, checksums(entries).astype("<u2")[:, None])

    def flush(self) -> None:
        """Bring the marks to the disk too (the entries always are)."""
        if self._unwritable is None:
            self._sync(MARKS)

    def damaged(self) -> Iterator[tuple[int, int]]:
        """Look at every stored entry; yields the `(sample, view)` whose checksum is wrong."""
        views = self.shape[1]
        for flat in np.array_split(
            self._stored(), max(1, self.count() * self.shape[2] // 1_000_000)
        ):
            wrong = self._marks[flat] != checksums(self._entries[flat])
            for place in flat[wrong]:
                yield int(place // views), int(place % views)

    def forget(self, sample: np.ndarray, view: np.ndarray) -> None:
        """Mark entries as not stored, so that they are filled again."""
        flat = self._flat(sample, view)
        with self._writing():
            self._put(MARKS, flat, np.zeros((len(flat), 1), dtype="<u2"))
            self._sync(MARKS)

    def close(self) -> None:
        """Sync the marks and let go of the files. Tensors read before stay valid."""
        if not self._files:
            return
        self.flush()
        del self._entries, self._marks
        for file in self._files.values():
            os.close(file)
        self._files = {}

    # -- inside

    def _open(self, name: str, size: int) -> int:
        path = self.folder / name
        try:
            try:
                file = os.open(path, os.O_RDWR | _BINARY)
            except OSError as error:
                if error.errno not in _UNWRITABLE:
                    raise
                file = os.open(path, os.O_RDONLY | _BINARY)
                self._unwritable = error.strerror
        except FileNotFoundError as error:
            raise DataError(
                f"{name} of the table is missing; delete the folder {self.folder} to start the "
                "table again"
            ) from error
        except OSError as error:
            raise DataError(
                f"{name} of the table in {self.folder} cannot be opened: {error.strerror}"
            ) from error
        found = os.fstat(file).st_size
        if found != size:
            os.close(file)
            raise DataError(
                f"{name} has {found:,} bytes and must have {size:,}: the file is cut off or of "
                f"another table; delete the folder {self.folder} to start the table again"
            )
        return file

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        mapped = mmap.mmap(self._files[name], 0, access=mmap.ACCESS_READ)
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype=dtype).reshape(shape)

    def _flat(self, sample: np.ndarray, view: np.ndarray) -> np.ndarray:
        sample, view = np.asarray(sample), np.asarray(view)
        samples, views, _ = self.shape
        if sample.ndim != 1 or sample.shape != view.shape:
            raise ShapeError(
                f"sample and view must be vectors of one length, got {list(sample.shape)} and "
                f"{list(view.shape)}"
            )
        for name, index, size in (("sample", sample, samples), ("view", view, views)):
            if len(index) and (index.min() < 0 or index.max() >= size):
                bad = int(index[(index < 0) | (index >= size)][0])
                raise ShapeError(f"{name} {bad} is outside the table, which has {size} ({name}s)")
        return sample.astype(np.int64) * views + view.astype(np.int64)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock; `DataError` where this process may not write."""
        reason = self._unwritable
        if reason is None:
            try:
                self._lock.acquire()
            except OSError as error:
                reason = error.strerror
        if reason is not None:
            raise DataError(
                f"the table in {self.folder} cannot be written here ({reason}), and entries of it "
                "are missing or damaged: fill it from where it may be written (`distill cache`), "
                "or use a copy"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _put(self, name: str, flat: np.ndarray, rows: np.ndarray) -> None:
        """Write rows at their places, under the lock; neighbours in one call.

        To the file and not through the map: on a full disk that is an error one can report, while
        a store into a hole of a mapped file ends the process.
        """
        size = rows.shape[1] * 2
        breaks = np.flatnonzero(np.diff(flat) != 1) + 1
        starts = [0, *breaks.tolist()]
        ends = [*breaks.tolist(), len(flat)]
        try:
            for start, end in zip(starts, ends, strict=True):
                data = memoryview(rows[start:end].tobytes())
                # Windows has no `pwrite`
                os.lseek(self._files[name], int(flat[start]) * size, os.SEEK_SET)
                while data:
                    data = data[os.write(self._files[name], data) :]
        except OSError as error:
            raise DataError(
                f"{name} of the table cannot be written: {error.strerror}; what was stored before "
                "is safe, go on when there is room"
            ) from error

    def _sync(self, name: str) -> None:
        try:
            _sync(self._files[name])
        except OSError as error:
            raise DataError(f"{name} of the table cannot be synced: {error.strerror}") from error

    def _refuse(self, flat: np.ndarray, marks: np.ndarray) -> None:
        views = self.shape[1]
        sample, view = int(flat[0] // views), int(flat[0] % views)
        if marks[0] == 0:
            raise DataError(f"the table has no entry for sample {sample}, view {view}")
        raise DataError(
            f"{ENTRIES} is damaged: the entry of sample {sample}, view {view} does not fit its "
            "checksum; `distill cache … --repair` forgets damaged entries and fills them again"
        )
