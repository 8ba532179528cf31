"""Each process's part of a loader; what two processes make of it is in test_trainer_processes."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from distillation.data import ImageSet, TensorLoader
from distillation.errors import ConfigError
from distillation.trainer.loaders import is_share, share


class OneOf(NamedTuple):
    """Where a process stands among several, as an Accelerator tells it."""

    process_index: int
    num_processes: int = 2


def loader_of(n, batch_size=4, **options):
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(n, dtype=torch.int64)
    return TensorLoader(ImageSet.of(images, labels, "a", (0.0,), (1.0,)), batch_size, **options)


def samples_of(loader):
    return [batch.sample.tolist() for batch in loader.batches(0)]


def parts(loader, training):
    return [share(loader, OneOf(rank), training=training, seed=0) for rank in range(2)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_training_batch_too_small_for_all_processes_is_refused(shuffle):
    with pytest.raises(ConfigError, match=r"last .*batch has 1 of 5 samples for 2 processes"):
        parts(loader_of(5, shuffle=shuffle), training=True)


def test_an_evaluation_may_end_with_a_batch_too_small_for_all_processes():
    first, second = parts(loader_of(5, shuffle=False), training=False)
    assert samples_of(first) == [[0, 1], []]
    assert samples_of(second) == [[2, 3], [4]]


def test_a_shuffled_evaluation_may_do_so_too():
    first, second = parts(loader_of(5, shuffle=True), training=False)
    shown = [n for part in (first, second) for batch in samples_of(part) for n in batch]
    assert sorted(shown) == list(range(5))


def test_a_batch_size_below_the_number_of_processes_is_refused():
    with pytest.raises(ConfigError, match="batch of all 2 processes"):
        parts(loader_of(5, 1, shuffle=False), training=False)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_process_evaluates_all_of_what_is_too_little_to_share(shuffle):
    for part in parts(loader_of(1, shuffle=shuffle), training=False):
        assert samples_of(part) == [[0]]
        assert not is_share(part)
