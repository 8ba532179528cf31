"""From the bytes of CIFAR-10, in either form, to tensors."""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillation.data.sources import BATCH_FILES, BATCHES, SPLITS, Picture, Source
from distillation.errors import DataError, unknown

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SIZE = 32
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "GIF")

Split = tuple[Tensor, Tensor]


def decode(source: Source) -> dict[str, Split]:
    """{"train": (images, labels), "test": …}: uint8 (N, 3, 32, 32) and int64 (N,).

    Pictures come class by class in CIFAR's own order of classes (which is the alphabet's), by
    file name within a class; the files of cifar-10-batches-py in their own order.

    Raises `DataError`, naming the file: classes that are not CIFAR-10's or not all of them,
    classes of different size, a picture that cannot be decoded or is not 32×32.
    """
    if source.batches:
        return _decode_batches(source)
    _check_classes(source)
    found = {}
    for split in SPLITS:
        pictures = [p for p in source.pictures if p.split == split]
        found[split] = (_decode_pictures(source, pictures), _labels(pictures))
    return found


def _check_classes(source: Source) -> None:
    for split in SPLITS:
        counts = Counter(p.class_name for p in source.pictures if p.split == split)
        for name in counts:
            if name not in CLASSES:
                raise DataError(f"{source.path}: {split}: {unknown('class', name, CLASSES)}")
        missing = [name for name in CLASSES if name not in counts]
        if missing:
            raise DataError(
                f"{source.path}: {split} has {len(counts)} of the 10 classes; no pictures of "
                + ", ".join(missing)
            )
        _check_balance(source, split, counts)


def _check_balance(source: Source, split: str, counts: Counter[str]) -> None:
    """CIFAR-10 has as many pictures of every class; a copy that was cut short has not."""
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    if high != low:
        raise DataError(
            f"{source.path}: {split}/{least} has {low} pictures, {split}/{most} has {high}; all "
            "classes of CIFAR-10 are of one size, so something is missing"
        )


def _labels(pictures: list[Picture]) -> Tensor:
    return torch.tensor([CLASSES.index(p.class_name) for p in pictures], dtype=torch.int64)


def _decode_pictures(source: Source, pictures: list[Picture]) -> Tensor:
    pixels = np.empty((len(pictures), SIZE, SIZE, 3), dtype=np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + 1000, len(pictures))):
            pixels[i] = _decode_picture(source, pictures[i])

    # Pillow decodes without holding the interpreter, so threads share the work.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(0, len(pictures), 1000)):
            pass
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _decode_picture(source: Source, picture: Picture) -> np.ndarray:
    name = f"{source.path}: {picture.split}/{picture.class_name}/{picture.name}"
    try:
        with Image.open(io.BytesIO(picture.data), formats=FORMATS) as image:
            size = image.size  # known from the header, before any pixel is decoded
            if size == (SIZE, SIZE):
                image = image if image.mode == "RGB" else image.convert("RGB")
                return np.frombuffer(image.tobytes(), np.uint8).reshape(SIZE, SIZE, 3)
    except Exception as error:  # a damaged picture fails in as many ways as it has bytes
        raise DataError(f"{name} cannot be decoded: {error}") from error
    raise DataError(f"{name} has {size[0]}×{size[1]} pixels; CIFAR-10's have {SIZE}×{SIZE}")


def _decode_batches(source: Source) -> dict[str, Split]:
    missing = [name for name in BATCH_FILES if name not in source.batches]
    if missing:
        raise DataError(f"{source.path}: {BATCHES} has no {', '.join(missing)}")
    names = _unpickle(source, "batches.meta").get("label_names")
    if names != list(CLASSES):
        raise DataError(f"{source.path}: {BATCHES}/batches.meta names the classes {names}")
    split_files = {"train": BATCH_FILES[:5], "test": BATCH_FILES[5:6]}
    found = {}
    for split, files in split_files.items():
        parts = [_decode_batch(source, name) for name in files]
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        counts = torch.bincount(labels, minlength=len(CLASSES)).tolist()
        _check_balance(source, split, Counter(dict(zip(CLASSES, counts, strict=True))))
        found[split] = (images, labels)
    return found


def _decode_batch(source: Source, name: str) -> Split:
    content = _unpickle(source, name)
    pixels, labels = getattr(content.get("data"), "pixels", None), content.get("labels")
    if (
        not isinstance(pixels, np.ndarray)
        or not isinstance(labels, list)
        or pixels.shape != (len(labels), 3 * SIZE * SIZE)
    ):
        raise DataError(f"{source.path}: {name} does not hold uint8 images of 3×{SIZE}×{SIZE}")
    if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise DataError(f"{source.path}: {name} has labels that are not 0 … {len(CLASSES) - 1}")
    images = torch.from_numpy(np.array(pixels)).view(-1, 3, SIZE, SIZE)
    return images, torch.tensor(labels, dtype=torch.int64)


def _unpickle(source: Source, name: str) -> dict:
    try:
        content = _ArraysOnly(io.BytesIO(source.batches[name]), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{source.path}: {name} {error}") from error
    except Exception as error:  # a damaged pickle fails in as many ways as it has bytes
        raise DataError(f"{source.path}: {name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{source.path}: {name} holds a {type(content).__name__}, not a dict")
    return content


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise DataError(f"is refused: it encodes with {encoding!r}")
    return text.encode("latin1")


class _ByteType:
    """Stands in for numpy's dtype of bytes, the only one that CIFAR-10 has."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in ("u1", "uint8"):
            raise DataError(f"is refused: it holds numbers of type {name!r}, pixels are bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which bytes do not have."""


class _Array:
    """Stands in for a numpy array of bytes: numpy does not check what a pickle makes it of."""

    pixels = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _ByteType):
            raise DataError("is refused: an array of something else than bytes")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.pixels = np.frombuffer(data, np.uint8).reshape(shape, order="CF"[bool(column_major)])


def _empty_array(*_: object) -> _Array:
    return _Array()


class _ArraysOnly(pickle.Unpickler):
    """Loads numbers, strings, containers and arrays of bytes; nothing in a file can run code."""

    _allowed = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _ByteType,
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("_codecs", "encode"): _encode_latin1,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._allowed:
            raise DataError(f"is refused: it asks for {module}.{name}, which no data needs")
        return self._allowed[module, name]
