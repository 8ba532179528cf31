"""Loaders of several processes: each process gets its share of every global batch.

A DataLoader is dealt out by Accelerate: process p of P takes its batches p, p + P, …, so P
processes with batch size b see what one process sees with batch size P·b. Our own loaders, whose
batch size counts the whole batch of a step, cut each batch into P parts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from distillation.data.order import EpochLoader
from distillation.errors import ConfigError


def share(
    loader: Iterable,
    accelerator: Accelerator,
    *,
    training: bool,
    seed: int,
    whole: bool = False,
) -> Iterable:
    """This process's part of the loader; the loader itself when there is one process, or `whole`.

    In training the last round is filled up from the beginning, so that every process makes the
    same number of steps; in evaluation nothing is seen twice, unless there is too little for every
    process: then each evaluates all of it, and the means are the same. A loader that Accelerate
    prepared already is taken as it is.

    Raises `ConfigError` for a loader that cannot be shared out among so many processes.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    if processes == 1 or whole:
        return loader
    if isinstance(loader, EpochLoader):
        return _part_of(loader, processes, rank, training)
    if _is_prepared(loader):
        return loader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            f"with {processes} processes a {type(loader).__name__} cannot be shared out; give a "
            "DataLoader over a dataset with a length, or prepare it with Accelerate."
        )
    if not training and len(loader) < processes:
        return loader
    return prepare_data_loader(
        loader,
        num_processes=processes,
        process_index=rank,
        put_on_device=False,
        even_batches=training,
        use_seedable_sampler=True,
        data_seed=seed,
    )


def _part_of(loader: EpochLoader, processes: int, rank: int, training: bool) -> EpochLoader:
    if not training and loader.samples_per_epoch < processes:
        return loader.part(0, 1)
    return loader.part(rank, processes, training)


def is_share(loader: Iterable) -> bool:
    """Whether other processes see other parts of it: false where each sees the whole."""
    if isinstance(loader, EpochLoader):
        return loader.world_size > 1
    dealt = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    return dealt or _is_prepared(loader)


def _is_prepared(loader: Iterable) -> bool:
    """Whether Accelerate deals it out."""
    return type(loader).__module__.startswith("accelerate.")


def average_gradients(parameters: list[torch.nn.Parameter], processes: int) -> None:
    """Mean over the processes of gradients that DDP does not see (of losses)."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= processes
