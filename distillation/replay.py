"""Batches of an epoch, in an order that can be taken up again in the middle."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from distillation.errors import ConfigError
from distillation.rng import get_rng_state, set_rng_state

_PERSISTENT = (
    "the training loader has persistent_workers=True: its workers keep their random states where "
    "no checkpoint can reach them, so if its data set or transforms draw random numbers, a run "
    "that is interrupted and resumed will not be the one that was not. Use "
    "persistent_workers=False, or distillation.data.ReplayableLoader"
)


@dataclass
class BatchIndex:
    """Position in an epoch: `idx` from 0, `total` batches (None when the loader has no length)."""

    total: int | None
    idx: int = 0

    @property
    def is_last(self) -> bool:
        """Whether this is the last batch of the epoch."""
        return self.total is not None and self.idx + 1 >= self.total


def samples_in(batch: Any) -> int:
    """Number of samples in a batch: the length of the first tensor in it that has dimensions.

    1 where each tensor is a single number. Raises `ConfigError` when there is no tensor.
    """
    single = False
    for tensor in _tensors(batch):
        if tensor.dim():
            return len(tensor)
        single = True
    if single:
        return 1
    raise ConfigError(
        f"no tensor in a batch of type {type(batch).__name__}, so its samples cannot be counted; "
        "pass samples_of= to the engine"
    )


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(batch):
        yield batch
    elif isinstance(batch, (dict, list, tuple)):
        for item in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(item)


def length_of(loader: Any) -> int | None:
    """Number of batches of an epoch; None when the loader cannot tell."""
    try:
        return len(loader)
    except TypeError:
        return None


def own_generators(loader: Any) -> list[torch.Generator]:
    """A DataLoader's own generators, and those of its samplers, each once."""
    found = (getattr(owner, "generator", None) for owner in _order_makers(loader))
    return _once(generator for generator in found if isinstance(generator, torch.Generator))


def _order_makers(loader: Any) -> list[Any]:
    """What may decide on the order of an epoch: the loader and its samplers, each once."""
    batches = getattr(loader, "batch_sampler", None)
    samplers = getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)
    return _once(owner for owner in (loader, *samplers) if owner is not None)


def _once(objects: Iterable[Any]) -> list[Any]:
    return list({id(each): each for each in objects}.values())


class Replay:
    """One epoch of a loader, from batch `start` on.

    Loaders of `distillation.data` make any batch directly (`batches(epoch, start=)`). Of any other
    loader the epoch is drawn again from the random state in which it began, the first `start`
    batches are passed over, and the state of the step is put back: what follows is what would
    have followed. That is not so for persistent workers, which keep their random state from epoch
    to epoch where nobody can read it: a warning, once, for they may not need it.
    """

    def __init__(
        self,
        loader: Iterable,
        epoch: int,
        start: int,
        rng: dict[str, Any] | None,
        evaluation: bool = False,
    ):
        self.loader, self.epoch, self.start, self.evaluation = loader, epoch, start, evaluation
        self.direct = callable(getattr(loader, "batches", None))
        if start and not self.direct and rng is None:
            raise ConfigError("a loader without batches(epoch, start=) needs its epoch's RNG state")
        resumed = start > 0 and not self.direct
        if not self.direct:
            if not evaluation and getattr(loader, "persistent_workers", False):
                warnings.warn(_PERSISTENT, stacklevel=2)
            for owner in () if evaluation else _order_makers(loader):
                if hasattr(owner, "set_epoch"):
                    owner.set_epoch(epoch)
            if resumed:
                set_rng_state(rng)
                for generator, state in zip(own_generators(loader), rng["loader"], strict=True):
                    generator.set_state(state)
            else:
                rng = get_rng_state()
                rng["loader"] = [g.get_state() for g in own_generators(loader)]
        self.rng = None if self.direct else rng

    def total(self, limit: int | None = None) -> int | None:
        """Number of batches in the epoch, at most `limit`; None when the loader cannot tell."""
        length = length_of(self.loader)
        return min((n for n in (length, limit) if n is not None), default=None)

    def __iter__(self) -> Iterator[Any]:
        if self.direct:
            yield from self.loader.batches(self.epoch, start=self.start)  # type: ignore[attr-defined]
            return
        iterator = iter(self.loader)
        for i in range(self.start):
            if next(iterator, self) is self:
                raise ConfigError(
                    f"the loader gave {i} batches where the checkpoint has seen {self.start}; "
                    "resume needs the same data and batch size"
                )
        if self._step_rng is not None:
            set_rng_state(self._step_rng)
        yield from iterator

    _step_rng: dict[str, Any] | None = None

    def go_on_with(self, rng: dict[str, Any]) -> None:
        """Random state from which the step goes on after the passed-over batches."""
        self._step_rng = rng
        if self.direct:
            set_rng_state(rng)


@dataclass
class Group:
    """Micro-batches that make one optimizer update."""

    batches: list[Any]
    is_last: bool


def groups(replay: Replay, size: int, start: int = 0, limit: int | None = None) -> Iterator[Group]:
    """Groups of `size` batches, the last one partial; at most `limit` batches from 0 on.

    Nothing is read ahead of a group, so that random numbers are drawn in the order in which a
    plain loop would draw them. For the same reason a training epoch that no limit cuts is read to
    its end after the last group: there a sampler may draw once more.
    """
    total, length = replay.total(limit), length_of(replay.loader)
    seen, group, batches = start, [], iter(replay)
    while total is None or seen < total:
        batch = next(batches, batches)
        if batch is batches:
            break
        group.append(batch)
        seen += 1
        is_last = total is not None and seen >= total
        if len(group) == size or is_last:
            yield Group(group, is_last)
            group = []
    if group:
        yield Group(group, True)
    whole = total == length and not replay.evaluation
    if whole and isinstance(replay.loader, DataLoader):  # its iterator ends with the epoch
        next(batches, None)
