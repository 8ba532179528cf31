"""Batches straight from one tensor: gather, augment and normalise whole batches at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distillation.data.images import ImageSet
from distillation.data.moving import to_device
from distillation.data.order import Batch, EpochLoader
from distillation.data.rendering import Rendering
from distillation.data.views import Views
from distillation.errors import ConfigError


class TensorLoader(EpochLoader):
    """A loader over an `ImageSet` that lies whole in memory, on any device, or in a mapped file.

    views … channels_last  see `Rendering`; mean and std are the image set's by default
    keys                   False yields (images, labels) only, for loops that expect pairs
    others                 see `EpochLoader`

    The data set is kept as uint8; augmenting is one gather for the batch, with another view for
    each image. With images in memory a batch is made on the device alone: nothing is copied there
    and nothing is waited for. Of mapped images (`map_images`) the rows of a batch are read from the
    file, moved, and augmented on the device: the batches are the same to the bit.

    Raises `ConfigError` for options that do not fit.
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
        self.image_set = self.dataset = image_set
        self.rendering = Rendering(
            image_set.mean if mean is None else mean,
            image_set.std if std is None else std,
            views=views,
            views_per_image=views_per_image,
            views_seed=views_seed,
            cutout=cutout,
            seed=seed,
            dtype=dtype,
            channels_last=channels_last,
        )
        channels = image_set.images.shape[1]
        if len(self.mean) != channels:
            raise ConfigError(f"mean has {len(self.mean)} values for {channels} channels")
        self.keys = keys
        self._rows: Tensor | None = None
        if image_set.in_memory:
            # Kept in the memory format of the batches, so that no batch is transposed.
            images = image_set.images.to(self.device)
            self._rows = (images.permute(0, 2, 3, 1) if channels_last else images).contiguous()
        else:
            self._order_device = torch.device("cpu")  # rows are chosen where they are read
        self._labels = image_set.labels.to(self.device)
        self.views.prepare(len(image_set), self.device)

    @property
    def views(self) -> Views:
        """The augmentation, with its restriction and cutout."""
        return self.rendering.views

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from each channel, in units of 0 … 1."""
        return self.rendering.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Each channel is divided by it."""
        return self.rendering.std

    @property
    def dtype(self) -> torch.dtype:
        """Of the images."""
        return self.rendering.dtype

    @property
    def channels_last(self) -> bool:
        """Whether the images are in channels_last memory format."""
        return self.rendering.channels_last

    def batch(self, epoch: int, i: int) -> Batch | tuple[Tensor, Tensor]:
        """Batch i of an epoch: a pure function of (seed, epoch, i) and the loader's options."""
        rows = self.samples(epoch, i)
        sample = to_device(rows, self.device)
        view = self.views.draw(sample, epoch, self.seed)
        images = self.rendering(self._pick(rows), view, sample)
        labels = self._labels.index_select(0, sample)
        return Batch(images, labels, sample, view) if self.keys else (images, labels)

    def images(self, sample: Tensor, view: Tensor) -> Tensor:
        """The pictures that these keys name, as they stand in a batch: (B, C, H, W)."""
        return self.rendering(self._pick(sample), view, sample)

    def _pick(self, rows: Tensor) -> Tensor:
        """The stored bytes of these rows, in the memory format of the batches, on the device."""
        if self._rows is None:
            memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
            found = self.image_set.images[rows.cpu()].contiguous(memory_format=memory_format)
            return to_device(found, self.device)
        picked = self._rows.index_select(0, rows)
        return picked.permute(0, 3, 1, 2) if self.channels_last else picked

    @property
    def fingerprint(self) -> str:
        """Hex digest of data, views and normalisation: what the keys of a batch stand for."""
        return self.rendering.fingerprint(self.image_set.fingerprint)
