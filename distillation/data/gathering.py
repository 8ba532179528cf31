"""A map-style dataset of plain images: whole in memory if it fits, through a DataLoader if not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distillation.data.images import ImageSet
from distillation.data.on_disk import map_images, write_images, write_labels
from distillation.data.order import EpochLoader
from distillation.data.rendering import Rendering
from distillation.data.replayable import ReplayableLoader
from distillation.data.tensor_loader import TensorLoader
from distillation.errors import ConfigError, DataError

_RENDERING = ("views", "views_per_image", "views_seed", "cutout", "dtype", "channels_last")


def gather(
    dataset: Dataset,
    classes: Iterable[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    file: str | os.PathLike | None = None,
) -> ImageSet:
    """The items (image, label) of a dataset as one `ImageSet`.

    Images are PIL images, uint8 tensors (C, H, W), or uint8 arrays (H, W, C) or (H, W): what
    torchvision's datasets give without a transform. `classes` are the dataset's own `classes`
    by default, else the numbers of the labels; mean and std are reckoned where not given.

    With `file`, a path that ends in `.npy`, the images go there instead of into memory, labels and
    class names beside it: decoded once, mapped from then on. `map_images(file)` opens it again.

    Raises `DataError`, naming the item, for other items and for images of several sizes, and
    `CheckpointError` when the file cannot be written; nothing is left there then.
    """
    first, _ = _plain_item(dataset, 0)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    shape = (len(dataset), *first.shape)
    if file is None:
        images = torch.empty(shape, dtype=torch.uint8)
        for i, image in enumerate(_decoded(dataset, labels, first.shape)):
            images[i] = image
        return ImageSet.of(images, labels, _names(dataset, classes, labels), mean, std)
    file = Path(file).expanduser()
    if file.suffix != ".npy":
        raise ConfigError(f"file={str(file)!r}: images are written as .npy, so call it that")
    with write_images(file, shape) as write:
        for image in _decoded(dataset, labels, first.shape):
            write(image)
    write_labels(file, labels, _names(dataset, classes, labels))
    return map_images(file, mean=mean, std=std, layout="NCHW")


def _decoded(dataset: Dataset, labels: Tensor, shape: torch.Size) -> Iterator[Tensor]:
    """The images, which must be of this shape, one after the other; fills in `labels`."""
    for i in range(len(labels)):
        image, labels[i] = _plain_item(dataset, i)
        if image.shape != shape:
            raise DataError(
                f"item {i} of {type(dataset).__name__} has shape {tuple(image.shape)}, item 0 "
                f"{tuple(shape)}; images must be of one size"
            )
        yield image


def _names(dataset: Dataset, classes: Iterable[str] | None, labels: Tensor) -> Iterable[str]:
    numbered = [str(i) for i in range(int(labels.max()) + 1)]
    return getattr(dataset, "classes", numbered) if classes is None else classes


def make_loader(
    data: ImageSet | Dataset,
    batch_size: int,
    *,
    memory_limit: int | None = None,
    num_workers: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: object,
) -> EpochLoader:
    """A `TensorLoader` when the data fits in memory, else a `ReplayableLoader`: same batches.

    data          an `ImageSet`, or a dataset as `gather` takes it
    memory_limit  bytes that decoded images may fill; half of the free memory by default. An
                  `ImageSet` is where it is, in memory or mapped, and stays there.
    num_workers   of the DataLoader, if it comes to that
    options       those of `TensorLoader`; both loaders take the same

    Raises `ConfigError` where the data does not fit and mean and std, which cannot be reckoned
    then, are not given.
    """
    if isinstance(data, ImageSet):
        return TensorLoader(data, batch_size, mean=mean, std=std, **options)
    if not hasattr(data, "__len__") or not len(data):
        raise ConfigError(f"{type(data).__name__} has no items, or does not say how many")
    first, _ = _plain_item(data, 0)
    limit = _free_memory() // 2 if memory_limit is None else memory_limit
    if first.numel() * len(data) <= limit:
        return TensorLoader(gather(data, mean=mean, std=std), batch_size, **options)
    if mean is None or std is None:
        raise ConfigError(
            f"{len(data):,} images of {first.numel():,} bytes do not fit in {limit:,} bytes of "
            "memory: give mean= and std= of each channel for the DataLoader, or memory_limit=; or "
            "write them to a file once: gather(dataset, file=…)"
        )
    chosen = {name: options.pop(name) for name in _RENDERING if name in options}
    seed = options.get("seed", 0)
    return ReplayableLoader(
        _Plain(data),
        batch_size,
        rendering=Rendering(mean, std, seed=seed, **chosen),
        num_workers=num_workers,
        **options,
    )


class _Plain(Dataset):
    """The items of a dataset as uint8 tensors (C, H, W) and whole numbers."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return _plain_item(self.dataset, i)


def _plain_item(dataset: Dataset, i: int) -> tuple[Tensor, int]:
    try:
        image, label = dataset[i]
        if not isinstance(image, Tensor):
            pixels = np.array(image)
            pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
            image = torch.from_numpy(pixels).permute(2, 0, 1)
        label = int(label)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise DataError(
            f"item {i} of {type(dataset).__name__} is no pair of image and label: {error}"
        ) from error
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise DataError(
            f"item {i} of {type(dataset).__name__} is {image.dtype} of shape "
            f"{tuple(image.shape)}; plain images are uint8, so leave the dataset's transform out "
            "(views and normalisation are the loader's), or use ReplayableLoader"
        )
    return image, label


def _free_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 4 << 30  # not to be asked on this system
