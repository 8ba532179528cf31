"""Which samples stand in which batch: a pure function of (seed, epoch, position)."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distillation.data import keys
from distillation.errors import ConfigError


class Batch(NamedTuple):
    """What a loader yields; it unpacks like a tuple.

    images  (B, C, H, W), normalised
    labels  int64, (B,)
    sample  int64, (B,): row number in the data set
    view    int64, (B,): number of the view that `images` shows (see `distillation.data.views`)
    """

    images: Tensor
    labels: Tensor
    sample: Tensor
    view: Tensor


class EpochLoader(ABC):
    """The protocol of our loaders: batches by epoch and number, shared among processes.

    `batch_size` counts the whole batch of one step. With `world_size` processes each gets a
    part of it: the parts of all ranks, in order, are the batch that one process would get, and
    their sizes differ by at most one.

    Iterating gives epoch `self.epoch`; having come to the end of it, the loader stands at the
    next one, so that plain `for` loops see a new order every time. `set_epoch` and
    `batches(epoch, start)` choose by hand. The global random number generators are neither read
    nor moved.

    Raises `ConfigError` for sizes that cannot be.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        rank: int,
        world_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if length < 1:
            raise ConfigError("the data set is empty")
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least 1 is needed")
        if drop_last and length < batch_size:
            raise ConfigError(
                f"drop_last with batch_size={batch_size} leaves nothing of {length} samples"
            )
        self._length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.drop_last = drop_last
        self._take_share(rank, world_size, self.shuffle)
        self.device = self._order_device = torch.device(device)
        self.epoch = 0
        self._order: tuple[int, Tensor] | None = None

    def part(self, rank: int, world_size: int, training: bool | None = None) -> EpochLoader:
        """The same loader for one of several processes; what is in memory is shared.

        In `training` (None: where it shuffles) every process needs samples of each batch. Raises
        `ConfigError` as the constructor does.
        """
        loader = copy.copy(self)
        loader._take_share(rank, world_size, self.shuffle if training is None else training)
        return loader

    def _take_share(self, rank: int, world_size: int, training: bool) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank} of world_size={world_size}: take 0 … {world_size - 1}")
        if self.batch_size < world_size:
            raise ConfigError(
                f"batch_size={self.batch_size} is the batch of all {world_size} processes "
                "together: every process needs at least one sample of it"
            )
        tail = 0 if self.drop_last else self._length % self.batch_size
        if training and 0 < tail < world_size:  # the loss of no samples is NaN
            raise ConfigError(
                f"the last batch has {tail} of {self._length} samples for {world_size} processes; "
                "take drop_last=True or another batch_size"
            )
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Batches of an epoch, the same for every rank."""
        if self.drop_last:
            return self._length // self.batch_size
        return -(-self._length // self.batch_size)

    @property
    def samples_per_epoch(self) -> int:
        """Samples that all processes together see in an epoch."""
        return min(self._length, len(self) * self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives."""
        self.epoch = epoch

    def order(self, epoch: int) -> Tensor:
        """Row numbers in the order of this epoch (int64)."""
        if self._order is None or self._order[0] != epoch:
            if self.shuffle:
                key = keys.derive(self.seed, "order", epoch)
                rows = keys.permutation(key, self._length, self._order_device)
            else:
                rows = torch.arange(self._length, device=self._order_device)
            self._order = (epoch, rows)
        return self._order[1]

    def samples(self, epoch: int, i: int) -> Tensor:
        """Row numbers of this rank's part of batch i. Raises `IndexError` past the last batch."""
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} of {len(self)}")
        first = i * self.batch_size
        size = min(self.batch_size, self._length - first)
        low, high = (size * r // self.world_size for r in (self.rank, self.rank + 1))
        return self.order(epoch if self.shuffle else 0)[first + low : first + high]

    @abstractmethod
    def batch(self, epoch: int, i: int) -> Batch | tuple[Tensor, Tensor]:
        """Batch i of an epoch, made again whenever asked, without those before it."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch | tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `start` on; the earlier ones are never made."""
        if not 0 <= start <= len(self):
            raise ConfigError(f"start={start}: an epoch has {len(self)} batches")
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch | tuple[Tensor, Tensor]]:
        for i in range(start, len(self)):
            yield self.batch(epoch, i)

    def __iter__(self) -> Iterator[Batch | tuple[Tensor, Tensor]]:
        epoch = self.epoch
        yield from self.batches(epoch)
        if self.epoch == epoch:
            self.epoch = epoch + 1
