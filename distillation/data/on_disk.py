"""Image sets whose images stay in a file: map one that exists, or write one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from distillation import files
from distillation.data import cache as caches
from distillation.data.images import ImageSet, channel_statistics, content_fingerprint
from distillation.data.mapped import MappedImages
from distillation.errors import CheckpointError, ConfigError, DataError

_CHANNELS = (1, 3, 4)


def map_images(
    path: str | os.PathLike,
    labels: Tensor | Sequence[int] | np.ndarray | None = None,
    classes: Iterable[str] | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    offset: int = 0,
    layout: str | None = None,
    fingerprint: str | None = None,
    cache: str | os.PathLike | None = None,
) -> ImageSet:
    """The uint8 images of a file as an `ImageSet`, read a batch at a time.

    path         a `.npy` file of uint8, or any file of bytes with `shape` and `offset` given
    labels       whole numbers (N,); by default those that `gather(file=path)` wrote beside it
    classes      names; by default those beside the file, else the numbers of the labels
    shape        of the bytes: (N, C, H, W), (N, H, W, C), or (N, H, W) for one channel
    offset       bytes before the first image
    layout       "NCHW" or "NHWC"; by default whichever has 1, 3 or 4 channels
    mean, std    of each channel, in units of 0 … 1
    fingerprint  of the content, for files that need not be read whole to know it
    cache        folder of what was reckoned; see `distillation.data.cache.root`

    Mean, std and fingerprint are reckoned where not given: that reads the file once, in parts, and
    is kept in the cache for as long as the file has the same size and time of modification. They
    are those of the same images in memory, so a teacher's table made for either serves both.

    Raises `DataError` for a file that is missing, damaged or of other numbers than uint8, and for
    labels that do not fit; `ConfigError` for a shape or layout that is missing or not clear.
    """
    path = Path(path).expanduser()
    if path.suffix == ".npy":
        if shape is not None or offset:
            raise ConfigError(f"{path.name} says itself what shape and offset its array has")
        shape, offset = _npy_header(path)
    elif shape is None:
        raise ConfigError(f"{path.name} is no .npy file: give shape=(N, C, H, W) or (N, H, W, C)")
    images = _mapped(path, tuple(shape), offset, layout)
    if labels is None:
        labels, named = _read_labels(path)
        classes = named if classes is None else classes
    labels = torch.as_tensor(labels).to("cpu", torch.int64).contiguous()
    if classes is None:
        classes = [str(i) for i in range(int(labels.max()) + 1)]
    classes = tuple(classes)
    if fingerprint is None or mean is None or std is None:
        known = _described(images, labels, classes, cache)
        fingerprint = known["fingerprint"] if fingerprint is None else fingerprint
        mean = known["mean"] if mean is None else mean
        std = known["std"] if std is None else std
    return ImageSet(images, labels, classes, fingerprint, tuple(mean), tuple(std))


def labels_file(path: Path) -> Path:
    """Where the labels and class names of an image file are kept: beside it."""
    return path.with_name(path.stem + ".labels.npz")


@contextmanager
def write_images(path: Path, shape: Sequence[int]) -> Iterator[Callable[[Tensor], None]]:
    """Yields a function that appends one image (uint8, CPU) to the `.npy` file `path`.

    The file takes its name when the context ends, whole; labels beside it, which are not those of
    the new images, are removed just before.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(int(n) for n in shape)}
    with files.replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield lambda image: file.write(image.contiguous().numpy().tobytes())
        labels_file(path).unlink(missing_ok=True)


def write_labels(path: Path, labels: Tensor, classes: Iterable[str]) -> None:
    """Write labels and class names beside the image file `path`, atomically."""
    with files.replacing(labels_file(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, labels=labels.numpy(), classes=np.array([str(c) for c in classes], str))


def _read_labels(path: Path) -> tuple[np.ndarray, list[str]]:
    file = labels_file(path)
    if not file.is_file():
        raise DataError(f"{path.name} has no {file.name} beside it: give labels=")
    try:
        with np.load(file, allow_pickle=False) as found:
            return found["labels"], found["classes"].tolist()
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _npy_header(path: Path) -> tuple[tuple[int, ...], int]:
    """Shape, and where the numbers begin."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be mapped: {error}") from error
    if array.dtype != np.uint8 or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else ", its columns first (Fortran's order)"
        raise DataError(f"{path} holds {array.dtype}{order}; images are uint8, rows first")
    return array.shape, array.offset


def _mapped(path: Path, shape: tuple, offset: int, layout: str | None) -> MappedImages:
    if len(shape) == 3:
        shape, layout = (shape[0], 1, *shape[1:]), "NCHW"
    if len(shape) != 4:
        raise ConfigError(f"{path.name}: shape {shape}; take (N, C, H, W), (N, H, W, C), (N, H, W)")
    if layout is None:
        fitting = [
            name
            for name, channels in (("NCHW", shape[1]), ("NHWC", shape[3]))
            if channels in _CHANNELS
        ]
        if len(fitting) != 1:
            raise ConfigError(
                f"{path.name}: shape {shape} does not say which are the channels; give "
                'layout="NCHW" or layout="NHWC"'
            )
        layout = fitting[0]
    return MappedImages(path, shape, offset=offset, layout=layout)


def _described(
    images: MappedImages, labels: Tensor, classes: tuple[str, ...], cache: str | os.PathLike | None
) -> dict:
    """Fingerprint, mean and std of a file in this state: from the cache, or reckoned."""
    facts = (str(images.path.resolve()), images.stamp, images.offset, images.layout)
    key = hashlib.sha256(repr((*facts, tuple(images.shape), classes)).encode())
    key.update(labels.numpy().tobytes())
    entry = caches.root(cache) / "mapped" / f"{key.hexdigest()[:32]}.json"
    try:
        known = json.loads(entry.read_text())
        if known.keys() == {"fingerprint", "mean", "std"}:
            return known
    except (OSError, ValueError, AttributeError):
        pass  # not reckoned yet, or damaged: both are made good below
    mean, std = channel_statistics(images)
    digest = content_fingerprint(images, labels, classes)
    known = {"fingerprint": digest, "mean": list(mean), "std": list(std)}
    try:
        files.atomic_json(entry, known)
    except CheckpointError as error:
        raise DataError(
            f"the data cache {entry.parent} cannot be written ({error}); set DISTILLATION_CACHE "
            "to a folder that can"
        ) from error
    return known
