"""The fallback for data that does not fit in memory: torch's DataLoader, made replayable."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from distillation.data import keys as keyed
from distillation.data.moving import to_device
from distillation.data.order import Batch, EpochLoader
from distillation.data.rendering import Rendering
from distillation.errors import ConfigError


class ReplayableLoader(EpochLoader):
    """A loader over a map-style dataset whose items are (image, label).

    Before an item is made, the generators of python, numpy and torch (the CPU's) are seeded from
    (seed, epoch, sample), and afterwards they get their states back. So the dataset's own random
    transforms give the same picture for the same key in any worker, in any order, alone or in a
    batch; and nobody else's random numbers change. In a batch `view` is the epoch: with `sample`
    it is the key that makes the picture again.

    With `rendering` the dataset gives plain images, uint8 (C, H, W) of one size, and augmenting
    and normalising is done here for whole batches: they are, bit for bit, those of a
    `TensorLoader` with the same options, keys and all.

    Order, batches and shares of several processes are always those of `TensorLoader`.

    num_workers  processes that make the items; they are started anew for each epoch
    collate      list of (image, label) to (images, labels); torch's `default_collate`
    device       where the batches go

    Raises `ConfigError` for sizes that cannot be, for a dataset without a length, for items that
    are no pairs, and for images that `rendering` cannot take.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        rendering: Rendering | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
        collate: Callable[[list], tuple[Tensor, Tensor]] = default_collate,
        pin_memory: bool = False,
        device: torch.device | str = "cpu",
        keys: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ConfigError(
                f"{type(dataset).__name__} is no map-style dataset: it needs __len__ and "
                "__getitem__, so that any sample can be made again"
            )
        super().__init__(
            len(dataset),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            device=device,
        )
        # Rows are chosen where the workers are; only finished batches move.
        self._order_device = torch.device("cpu")
        self.dataset, self.rendering, self.keys = dataset, rendering, keys
        self.num_workers, self.pin_memory, self.collate = num_workers, pin_memory, collate

    def batch(self, epoch: int, i: int) -> Batch | tuple[Tensor, Tensor]:
        """Batch i of an epoch, made in this process."""
        sample = self.samples(epoch, i)
        seeded = _Seeded(self.dataset, self.seed, epoch)
        return self._finish(self.collate([seeded[s] for s in sample.tolist()]), sample, epoch)

    def images(self, sample: Tensor, view: Tensor) -> Tensor:
        """The pictures that these keys name, as they stand in a batch: (B, C, H, W), on the CPU."""
        plain = self.rendering is not None
        epochs = [0] * len(view) if plain else view.tolist()
        made = {epoch: _Seeded(self.dataset, self.seed, epoch) for epoch in epochs}
        keys = zip(sample.tolist(), epochs, strict=True)
        images = self.collate([made[epoch][row] for row, epoch in keys])[0]
        return self._render(images, view, sample) if plain else images

    def _batches(self, epoch: int, start: int) -> Iterator[Batch | tuple[Tensor, Tensor]]:
        samples = [self.samples(epoch, i) for i in range(start, len(self))]
        loader = DataLoader(
            _Seeded(self.dataset, self.seed, epoch),
            batch_sampler=[sample.tolist() for sample in samples],
            num_workers=self.num_workers,
            collate_fn=self.collate,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(0),  # else it draws from the global one
        )
        for sample, pair in zip(samples, loader, strict=True):
            yield self._finish(pair, sample, epoch)

    def _finish(
        self, pair: tuple[Tensor, Tensor], sample: Tensor, epoch: int
    ) -> Batch | tuple[Tensor, Tensor]:
        images, labels, sample = (to_device(tensor, self.device) for tensor in (*pair, sample))
        if self.rendering is None:
            view = torch.full_like(sample, epoch)
        else:
            view = self.rendering.views.draw(sample, epoch, self.seed)
            images = self._render(images, view, sample)
        return Batch(images, labels, sample, view) if self.keys else (images, labels)

    def _render(self, images: Tensor, view: Tensor, sample: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ConfigError(
                "rendering needs uint8 images of shape (C, H, W) from the dataset; it gave "
                f"{images.dtype} of shape {tuple(images.shape[1:])}"
            )
        if self.rendering.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.rendering(images, view, sample)


class _Seeded(Dataset):
    """The items of a dataset in one epoch, each made under its own seeds."""

    def __init__(self, dataset: Dataset, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: int) -> tuple[object, object]:
        seed = keyed.derive(self.seed, "item", self.epoch, sample)
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that transforms draw from
            torch.default_generator.manual_seed(seed % 2**63)
            item = self.dataset[sample]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ConfigError(
                f"item {sample} of {type(self.dataset).__name__} is no pair (image, label)"
            )
        return item[0], item[1]
