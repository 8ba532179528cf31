"""A labelled set of images as one tensor, and the ways to cut it."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distillation.data import keys
from distillation.data.mapped import MappedImages
from distillation.errors import ConfigError, DataError, unknown


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their labels, whole in memory or mapped from a file.

    A map-style dataset: item i is (image, label), uint8 (C, H, W) and a whole number.

    images       uint8, shape (N, C, H, W): a tensor, or `MappedImages`
    labels       int64, shape (N,), numbers of `classes`
    classes      names of the classes; cutting a set never changes them
    fingerprint  hex digest of the content: equal fingerprints mean equal images and labels
    mean, std    of each channel, in units of the pixel range 0 … 1. Those of the whole training
                 split, also in the test split and in every part cut from either, so that the
                 normalisation does not depend on the cut.

    Raises `DataError` when these do not fit together.
    """

    images: Tensor | MappedImages
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                "images must be uint8 of shape (N, C, H, W), not "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must be int64 of shape ({len(self.images)},), not "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.classes
        ):
            raise DataError(
                f"labels reach from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but there are {len(self.classes)} classes"
            )
        if not len(self.mean) == len(self.std) == self.images.shape[1]:
            raise DataError(
                f"{len(self.mean)} means and {len(self.std)} deviations for "
                f"{self.images.shape[1]} channels"
            )

    @classmethod
    def of(
        cls,
        images: Tensor | MappedImages,
        labels: Tensor,
        classes: Iterable[str],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> ImageSet:
        """A set made from tensors; mean, std and fingerprint are computed where not given.

        Raises `DataError` for no images, and for labels or statistics that do not fit.
        """
        if not len(images):
            raise DataError("there are no images to make a set of")
        if isinstance(images, Tensor):
            images = images.contiguous()
        labels, classes = labels.contiguous(), tuple(classes)
        if mean is None or std is None:
            own = channel_statistics(images)
            mean, std = (own[0] if mean is None else mean), (own[1] if std is None else std)
        return cls(images, labels, classes, content_fingerprint(images, labels, classes), mean, std)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Image i, uint8 (C, H, W), and its label. Raises `IndexError` past the ends."""
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return self.images[i], int(self.labels[i])

    def __repr__(self) -> str:
        shape = "×".join(str(n) for n in self.images.shape[1:])
        return (
            f"ImageSet({len(self):,} images of {shape}, {self.num_classes} classes, "
            f"{self.fingerprint[:12]})"
        )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_memory(self) -> bool:
        """Whether the images are a tensor, and not mapped from a file."""
        return isinstance(self.images, Tensor)

    def counts(self) -> dict[str, int]:
        """Number of images of each class."""
        found = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, found, strict=True))

    def select(self, index: Tensor) -> ImageSet:
        """The images with these row numbers (int64), in this order."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(index.contiguous().numpy().tobytes())
        return replace(
            self,
            images=self.images[index] if self.in_memory else self.images.select(index),
            labels=self.labels[index],
            fingerprint=digest.hexdigest(),
        )

    def subset(self, n: int, seed: int = 0) -> ImageSet:
        """n images drawn from the seed, every class in proportion; the order stays as it was.

        A larger subset of the same seed holds (up to rounding of the shares) the smaller one.
        Raises `ConfigError` when n is not between 1 and the number of images.
        """
        if not 1 <= n <= len(self):
            raise ConfigError(f"subset of {n} images: there are {len(self)}, take 1 … {len(self)}")
        if n == len(self):
            return self
        return self.select(self._stratified(n, keys.derive(seed, "subset")))

    def split(self, holdout: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """(the rest, `holdout` images): stratified, drawn from the seed, without overlap.

        Raises `ConfigError` when holdout is not between 1 and the number of images less one.
        """
        if not 1 <= holdout < len(self):
            raise ConfigError(
                f"holdout of {holdout} images: there are {len(self)}, take 1 … {len(self) - 1}"
            )
        held = self._stratified(holdout, keys.derive(seed, "holdout"))
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[held] = False
        return self.select(rest.nonzero().squeeze(1)), self.select(held)

    def without_classes(self, names: Iterable[str | int]) -> ImageSet:
        """The images of all other classes. Labels and `classes` stay, so models fit as before.

        Raises `ConfigError` for a name or number that is no class.
        """
        dropped = []
        for name in [names] if isinstance(names, str | int) else names:
            if isinstance(name, int) and 0 <= name < len(self.classes):
                dropped.append(name)
            elif str(name) in self.classes:
                dropped.append(self.classes.index(str(name)))
            else:
                raise ConfigError(unknown("class", name, self.classes))
        if not dropped:
            return self
        kept = ~torch.isin(self.labels, torch.tensor(dropped))
        return self.select(kept.nonzero().squeeze(1))

    def _stratified(self, n: int, key: int) -> Tensor:
        """n row numbers, ascending; each class gives its share, remainders to the largest."""
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        exact = counts.double() * n / len(self)
        share = exact.floor().long()
        remainder = torch.argsort(exact - share, descending=True, stable=True)
        share[remainder[: n - int(share.sum())]] += 1
        order = keys.permutation(key, len(self))
        by_class = order[torch.argsort(self.labels[order], stable=True)]
        first = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(self)) - first[self.labels[by_class]]
        return by_class[rank < share[self.labels[by_class]]].sort().values


def content_fingerprint(
    images: Tensor | MappedImages, labels: Tensor, classes: Iterable[str]
) -> str:
    """sha256 over shape, class names, labels and pixels, wherever the pixels lie."""
    digest = hashlib.sha256(repr((tuple(images.shape), tuple(classes))).encode())
    for tensor in (labels, *_chunks(images)):
        digest.update(memoryview(tensor.contiguous().numpy()).cast("B"))
    return digest.hexdigest()


def channel_statistics(
    images: Tensor | MappedImages,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation over all pixels of each channel, in units of 0 … 1.

    Exact: both follow from the histogram of each channel. The deviation divides by the number
    of pixels.
    """
    histograms = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for chunk in _chunks(images):
        for channel, histogram in enumerate(histograms):
            histogram += torch.bincount(chunk[:, channel].reshape(-1), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = histograms.double() / histograms.sum(1, keepdim=True)
    means, deviations = [], []
    for weight in weights:
        mean = (weight * values).sum()
        means.append(float(mean))
        deviations.append(float((weight * (values - mean) ** 2).sum().sqrt()))
    return tuple(means), tuple(deviations)


def _chunks(images: Tensor | MappedImages) -> Iterator[Tensor]:
    """The images in order, a few thousand or a few megabytes at a time."""
    yield from images.split(4096) if isinstance(images, Tensor) else images.chunks()
