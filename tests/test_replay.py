"""Groups of batches, and an epoch that is taken up in the middle."""

from __future__ import annotations

import pytest
import torch
from engine_case import digits_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, TensorDataset

from distillation.errors import ConfigError
from distillation.replay import BatchIndex, Replay, groups, own_generators, samples_in
from distillation.rng import get_rng_state, set_rng_state


def stream(n):
    """Batches 0 … n-1 of a loader without a length."""

    class Stream:
        def __iter__(self):
            return iter(range(n))

    return Stream()


@given(
    n=st.integers(0, 20),
    size=st.integers(1, 6),
    start=st.integers(0, 20),
    limit=st.none() | st.integers(0, 25),
    known=st.booleans(),
)
def test_groups_hold_every_batch_once_and_only_the_last_is_partial(n, size, start, limit, known):
    start = min(start, n)
    loader = list(range(n)) if known else stream(n)
    replay = Replay(loader, 0, start, {"loader": [], **get_rng_state()} if start else None)
    found = list(groups(replay, size, start, limit))
    end = n if limit is None else min(n, limit)
    assert [b for group in found for b in group.batches] == list(range(start, end))
    assert all(len(group.batches) == size for group in found[:-1])
    assert not any(group.is_last for group in found[:-1])
    if found and (known or (limit is not None and limit <= n)):
        assert found[-1].is_last


def test_nothing_is_read_ahead_of_a_group():
    read = []

    class Watched:
        def __len__(self):
            return 6

        def __iter__(self):
            for i in range(6):
                read.append(i)
                yield i

    walk = groups(Replay(Watched(), 0, 0, None), 2)
    next(walk)
    assert read == [0, 1]


@pytest.mark.parametrize("limit", [None, 4, 2])
def test_a_generator_is_left_where_a_plain_loop_over_as_many_batches_leaves_it(limit):
    def shuffled():
        own = torch.Generator().manual_seed(3)
        return own, DataLoader(TensorDataset(torch.arange(8)), 2, shuffle=True, generator=own)

    plain, loader = shuffled()
    for i, _ in enumerate(loader):
        if i + 1 == limit and limit < len(loader):
            break
    ours, loader = shuffled()
    list(groups(Replay(loader, 0, 0, None), 3, limit=limit))
    assert torch.equal(ours.get_state(), plain.get_state())


def test_a_loader_of_ours_makes_no_batch_twice():
    loader = digits_loader(80, 8)
    later = list(Replay(loader, 3, 7, None))
    assert [b.sample.tolist() for b in later] == [
        loader.batch(3, i).sample.tolist() for i in (7, 8, 9)
    ]


def test_a_foreign_loader_needs_the_random_state_of_its_epoch():
    with pytest.raises(ConfigError, match="RNG state"):
        Replay([1, 2, 3], 0, 2, None)


def test_a_sampler_for_several_processes_is_told_the_epoch_when_training_only():
    told = []

    class Sampled(list):
        def set_epoch(self, epoch):
            told.append(epoch)

    list(Replay(Sampled([1]), 4, 0, None))
    list(Replay(Sampled([1]), 0, 0, None, evaluation=True))
    assert told == [4]


def test_a_sampler_inside_a_batch_sampler_is_told_the_epoch():
    rows = TensorDataset(torch.arange(16))
    sampler = DistributedSampler(rows, num_replicas=2, rank=0, shuffle=True)
    loader = DataLoader(rows, batch_sampler=BatchSampler(sampler, 4, drop_last=False))
    orders = [
        tuple(torch.cat([batch for (batch,) in Replay(loader, epoch, 0, None)]).tolist())
        for epoch in range(3)
    ]
    assert len(set(orders)) == 3


def test_a_generator_that_a_loader_shares_with_its_sampler_counts_once():
    generator = torch.Generator()
    loader = DataLoader(TensorDataset(torch.zeros(4)), shuffle=True, generator=generator)
    assert own_generators(loader) == [generator]
    assert own_generators([1, 2]) == []


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(5, 2),
        (torch.zeros(5), torch.zeros(3)),
        {"name": "x", "image": torch.zeros(5, 1)},
        ["text", {"inner": (torch.zeros(5),)}],
        {"temperature": torch.tensor(3.0), "x": torch.zeros(5, 2)},
        [[torch.tensor(3.0)], torch.zeros(5)],
    ],
    ids=["tensor", "tuple", "dict", "nested", "number first", "nested number first"],
)
def test_samples_are_counted_in_the_first_tensor(batch):
    assert samples_in(batch) == 5


def test_numbers_alone_are_one_sample():
    assert samples_in((torch.tensor(3.0), torch.tensor(1))) == 1


def test_a_batch_without_a_tensor_cannot_be_counted():
    with pytest.raises(ConfigError, match="samples_of"):
        samples_in({"text": "x"})


def test_the_last_batch_of_an_unknown_number_is_not_known():
    assert not BatchIndex(None, 7).is_last
    assert BatchIndex(8, 7).is_last


class Noisy(Dataset):
    """Items that a worker draws."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(())


def drawn(persistent: bool, lives: list[range]) -> list[float]:
    """What two epochs show, trained in one life or resumed in another, where all is drawn anew."""
    shown, rng = [], None
    torch.manual_seed(0)
    for epochs in lives:
        loader = DataLoader(Noisy(), 2, num_workers=1, persistent_workers=persistent)
        if rng is not None:
            set_rng_state(rng)
        for epoch in epochs:
            shown += torch.cat(list(Replay(loader, epoch, 0, None))).tolist()
        rng = get_rng_state()
    return shown


def test_workers_that_are_started_for_each_epoch_can_be_resumed():
    assert drawn(False, [range(1), range(1, 2)]) == drawn(False, [range(2)])


def test_persistent_workers_cannot_and_it_is_said():
    with pytest.warns(UserWarning, match="persistent_workers=True.*ReplayableLoader"):
        whole = drawn(True, [range(2)])
    with pytest.warns(UserWarning, match="persistent_workers=True"):
        assert drawn(True, [range(1), range(1, 2)]) != whole


def test_an_evaluation_with_persistent_workers_needs_no_word(recwarn):
    loader = DataLoader(Noisy(), 2, num_workers=1, persistent_workers=True)
    Replay(loader, 0, 0, None, evaluation=True)
    assert not recwarn.list
