"""Batches straight from one tensor: gather, augment and normalise whole batches at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from distillation.data.images import ImageSet
from distillation.data.order import Batch, EpochLoader
from distillation.data.views import Cutout, Identity, Views
from distillation.errors import ConfigError


class TensorLoader(EpochLoader):
    """A loader over an `ImageSet` that lies whole in memory, on any device.

    views            the augmentation; `Identity()` for evaluation
    views_per_image  restrict every image to this many views, drawn from `views_seed` alone, so
                     that all runs and the teacher's table agree on them whatever their `seed`
    cutout           side of a blanked square in pixels, 0 for none; makes the views not finite
    mean, std        of each channel, in units of 0 … 1; those of the image set by default
    dtype            of the images
    channels_last    memory format of the images
    keys             False yields (images, labels) only, for loops that expect pairs

    Images are `(x / 255 - mean) / std`, reckoned in float32 and then rounded to `dtype`.

    The data set is kept as uint8; augmenting is one gather for the batch, with another view for
    each image. Raises `ConfigError` for options that do not fit.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        *,
        views: Views | None = None,
        views_per_image: int | None = None,
        views_seed: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        cutout: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        device: torch.device | str = "cpu",
        keys: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            len(image_set),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            device=device,
        )
        channels = image_set.images.shape[1]
        self.image_set = self.dataset = image_set
        self.mean = _per_channel("mean", image_set.mean if mean is None else mean, channels)
        self.std = _per_channel("std", image_set.std if std is None else std, channels)
        if min(self.std) <= 0:
            raise ConfigError(f"std={self.std}: every channel needs a positive deviation")
        if not dtype.is_floating_point:
            raise ConfigError(f"dtype={dtype}: images are normalised, take a floating-point dtype")
        self.views = (Identity() if views is None else views).restrict(views_per_image, views_seed)
        if cutout:
            grey = tuple(round(255 * m) for m in self.mean)
            self.views = Cutout(self.views, cutout, grey, seed)
        self.dtype, self.channels_last, self.keys = dtype, channels_last, keys

        # Kept in the memory format of the batches, so that no batch is transposed.
        images = image_set.images.to(self.device)
        self._rows = (images.permute(0, 2, 3, 1) if channels_last else images).contiguous()
        self._labels = image_set.labels.to(self.device)
        # In channels_last a row of pixels is one axis: arithmetic along three channels is slow.
        width = image_set.images.shape[3]
        shape, times = ((width * channels,), width) if channels_last else ((channels, 1, 1), 1)
        self._mean = torch.tensor(self.mean, device=self.device).repeat(times).view(shape)
        self._std = torch.tensor(self.std, device=self.device).repeat(times).view(shape)
        self.views.prepare(len(image_set), self.device)

    def batch(self, epoch: int, i: int) -> Batch | tuple[Tensor, Tensor]:
        """Batch i of an epoch: a pure function of (seed, epoch, i) and the loader's options."""
        sample = self.samples(epoch, i)
        view = self.views.draw(sample, epoch, self.seed)
        images, labels = self.images(sample, view), self._labels.index_select(0, sample)
        return Batch(images, labels, sample, view) if self.keys else (images, labels)

    def images(self, sample: Tensor, view: Tensor) -> Tensor:
        """The pictures that these keys name, as they stand in a batch: (B, C, H, W)."""
        picked = self._rows.index_select(0, sample)
        if self.channels_last:
            picked = picked.permute(0, 3, 1, 2)
        picked = self.views.apply(picked, view, sample)
        if self.channels_last:
            batch, channels, height, width = picked.shape
            picked = picked.permute(0, 2, 3, 1).flatten(2)
        images = picked.to(torch.float32).div_(255).sub_(self._mean).div_(self._std).to(self.dtype)
        if self.channels_last:
            images = images.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return images

    @property
    def normalisation(self) -> dict[str, object]:
        """Mean, std and dtype: with data and views, all that a picture depends on."""
        return {"mean": self.mean, "std": self.std, "dtype": str(self.dtype).removeprefix("torch.")}

    @property
    def fingerprint(self) -> str:
        """Hex digest of data, views and normalisation: what the keys of a batch stand for."""
        parts = (self.image_set.fingerprint, self.views.description, self.normalisation)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(float(v) for v in values)
    if len(values) != channels:
        raise ConfigError(f"{name} has {len(values)} values for {channels} channels")
    return values
