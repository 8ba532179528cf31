"""Images in a file on the disk, read a batch at a time: a data set may be larger than memory."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillation.errors import ConfigError, DataError

LAYOUTS = ("NCHW", "NHWC")
_CHUNK = 1 << 26  # bytes: what reading all images, one part after the other, takes of memory


class MappedImages:
    """uint8 images (N, C, H, W) in a memory-mapped file; stands in for a tensor in `ImageSet`.

    path    the file; its pages are shared by all processes that map it, and nothing writes there
    shape   of the array in the file: (N, C, H, W), or (N, H, W, C) with `layout="NHWC"`
    offset  bytes before the first image
    rows    int64, (n,): which images of the file these are, in this order; None for all
    stamp   size and time of modification that the file must have, None for those it has

    Indexing with a number, a slice or an int64 tensor reads these images and no others;
    `select` cuts without reading. Copies and pickles (for the workers of a DataLoader) hold the
    file's name, and map it anew.

    Raises `DataError` when the file is missing, too short, or has changed since `stamp`.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self,
        path: str | os.PathLike,
        shape: tuple[int, int, int, int],
        *,
        offset: int = 0,
        layout: str = "NCHW",
        rows: Tensor | None = None,
        stamp: tuple[int, int] | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ConfigError(f"layout={layout!r}: take {' or '.join(LAYOUTS)}")
        self.path, self.offset, self.layout, self.rows = Path(path), offset, layout, rows
        self._in_file = tuple(int(n) for n in shape)
        if len(self._in_file) != 4 or min(self._in_file) < 1 or offset < 0:
            raise DataError(f"{self.path}: four sizes of at least 1 are needed, not {shape}")
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                self.stamp = (status.st_size, status.st_mtime_ns)
                self._check(stamp)
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f"{self.path} cannot be mapped: {error}") from error
        self._array = np.ndarray(self._in_file, np.uint8, buffer, offset)

    @classmethod
    def of_safetensors(cls, path: str | os.PathLike, name: str) -> MappedImages:
        """The uint8 tensor (N, C, H, W) of this name in a safetensors file, where it lies there.

        Raises `DataError` when there is none, or no such file.
        """
        try:
            with Path(path).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                entry = json.loads(file.read(length))[name]
            if entry["dtype"] != "U8":
                raise ValueError(f"{name} is {entry['dtype']}, not U8")
            shape, offset = entry["shape"], 8 + length + entry["data_offsets"][0]
        except (OSError, ValueError, KeyError, MemoryError) as error:
            raise DataError(f"{path} has no images {name!r}: {error}") from error
        return cls(path, shape, offset=offset)

    def _check(self, stamp: tuple[int, int] | None) -> None:
        if stamp is not None and tuple(stamp) != self.stamp:
            raise DataError(f"{self.path} has changed since it was mapped first; map it again")
        needed = self.offset + int(np.prod(self._in_file, dtype=object))
        if self.stamp[0] < needed:
            raise DataError(
                f"{self.path} has {self.stamp[0]:,} bytes; images of shape {self._in_file} at "
                f"byte {self.offset} end at {needed:,}"
            )

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W), whatever the layout of the file."""
        _, *sizes = self._in_file
        if self.layout == "NHWC":
            sizes = [sizes[2], *sizes[:2]]
        return torch.Size([len(self), *sizes])

    def __len__(self) -> int:
        return self._in_file[0] if self.rows is None else len(self.rows)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """uint8 (C, H, W) for a number, else (B, C, H, W): a copy, in the memory format of the
        file (channels_last for NHWC). Raises `IndexError` for rows that are not there."""
        if isinstance(index, Tensor):
            if index.dtype == torch.bool or index.is_floating_point():
                raise IndexError(f"rows are whole numbers, not {index.dtype}; see Tensor.nonzero()")
            index = index.numpy()
        if self.rows is not None:
            index = self.rows.numpy()[index]
        if isinstance(index, slice):
            picked = self._array[index].copy()
        else:
            picked = np.take(self._array, index, axis=0)
        found = torch.from_numpy(picked)
        if self.layout == "NHWC":
            found = found.movedim(-1, -3)
        return found

    def select(self, index: Tensor) -> MappedImages:
        """The images with these row numbers (int64), in this order; nothing is read."""
        rows = index.clone() if self.rows is None else self.rows[index]
        return self._with(rows)

    def chunks(self) -> Iterator[Tensor]:
        """All images in order, some tens of megabytes at a time."""
        step = max(1, _CHUNK // int(np.prod(self._in_file[1:], dtype=object)))
        for first in range(0, len(self), step):
            yield self[first : first + step]

    def _with(self, rows: Tensor | None) -> MappedImages:
        return MappedImages(
            self.path,
            self._in_file,
            offset=self.offset,
            layout=self.layout,
            rows=rows,
            stamp=self.stamp,
        )

    def __reduce__(self):
        state = (self.path, self._in_file, self.offset, self.layout, self.rows, self.stamp)
        return _mapped, state

    def __repr__(self) -> str:
        return f"MappedImages({self.path.name}, {tuple(self.shape)})"


def _mapped(path, shape, offset, layout, rows, stamp) -> MappedImages:
    return MappedImages(path, shape, offset=offset, layout=layout, rows=rows, stamp=stamp)
