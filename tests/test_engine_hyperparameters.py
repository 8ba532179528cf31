"""Hyper-parameters that are given anew on resume win over those in the checkpoint."""

from __future__ import annotations

import math
from functools import partial

import pytest
from engine_case import digits_loader, make_engine, resume, same, train_until_killed, weights
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from distillation import runs
from distillation.errors import CheckpointError
from distillation.hyperparameters import merged

SCHEDULES = {
    "cosine": lambda o: CosineAnnealingLR(o, 20),
    "exponential": lambda o: ExponentialLR(o, 0.9),
    "one cycle": lambda o: OneCycleLR(
        o, max_lr=[g["lr"] for g in o.param_groups], total_steps=21, cycle_momentum=False
    ),
    "steps": lambda o: MultiStepLR(o, [5, 12, 15]),
    "warm-up": lambda o: SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=15), ExponentialLR(o, 0.5)], [15]
    ),
}


def rates(engine):
    """The learning rate of each update to come."""
    seen = []
    engine.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    return seen


def resumed_rates(tmp_path, uuid, **options):
    seen = []

    def make(**more):
        engine = make_engine(**options, **more)
        seen.append(rates(engine))
        return engine

    resume(tmp_path, uuid, make)
    return seen[0]


def test_a_new_learning_rate_without_a_schedule(tmp_path):
    uuid = train_until_killed(tmp_path, 12)
    half = resumed_rates(tmp_path, uuid, optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9))
    assert half == [0.05] * 8


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_new_learning_rate_scales_what_is_left_of_the_schedule(tmp_path, name):
    schedule = SCHEDULES[name]
    whole = make_engine(scheduler=schedule)
    seen = rates(whole)
    whole.fit()
    uuid = train_until_killed(tmp_path, 12, partial(make_engine, scheduler=schedule))
    half = resumed_rates(
        tmp_path, uuid, scheduler=schedule, optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9)
    )
    assert half == pytest.approx([rate / 2 for rate in seen[12:]], rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_same_learning_rate_changes_nothing(tmp_path, name):
    make = partial(make_engine, scheduler=SCHEDULES[name])
    whole = make()
    whole.fit()
    resumed = resume(tmp_path, train_until_killed(tmp_path, 12, make), make)
    assert same(weights(resumed), weights(whole))


def test_other_hyper_parameters_of_the_optimizer_are_taken_over(tmp_path):
    uuid = train_until_killed(tmp_path, 12)
    engine = resume(
        tmp_path,
        uuid,
        partial(make_engine, optimizer=lambda p: SGD(p, lr=0.1, momentum=0.5, weight_decay=0.01)),
    )
    group = engine.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.5, 0.01)


def test_more_epochs_stretch_the_schedule(tmp_path):
    uuid = train_until_killed(tmp_path, 12, partial(make_engine, scheduler=SCHEDULES["cosine"]))
    rest = resumed_rates(tmp_path, uuid, epochs=4, scheduler=lambda o: CosineAnnealingLR(o, 40))
    assert len(rest) == 28
    expected = [0.05 * (1 + math.cos(math.pi * step / 40)) for step in range(12, 40)]
    assert rest == pytest.approx(expected)


def test_a_cosine_that_has_ended_goes_on_where_a_longer_one_stands(tmp_path):
    with runs.create("engine", root=tmp_path) as recorder:
        make_engine(scheduler=SCHEDULES["cosine"], recorder=recorder).fit()
    uuid = recorder.uuid
    rest = resumed_rates(tmp_path, uuid, epochs=4, scheduler=lambda o: CosineAnnealingLR(o, 40))
    expected = [0.05 * (1 + math.cos(math.pi * step / 40)) for step in range(20, 40)]
    assert rest == pytest.approx(expected)


def test_milestones_that_were_moved_stand_alone(tmp_path):
    uuid = train_until_killed(tmp_path, 12, partial(make_engine, scheduler=SCHEDULES["steps"]))
    rest = resumed_rates(tmp_path, uuid, scheduler=lambda o: MultiStepLR(o, [8, 15]))
    assert rest == pytest.approx([0.01] * 3 + [0.001] * 5)


def test_a_schedule_of_another_kind_begins_where_it_would_stand(tmp_path):
    linear = lambda o: LinearLR(o, 1.0, 0.0, total_iters=20)  # noqa: E731
    whole = make_engine(scheduler=linear)
    seen = rates(whole)
    whole.fit()
    uuid = train_until_killed(tmp_path, 12, partial(make_engine, scheduler=SCHEDULES["cosine"]))
    assert resumed_rates(tmp_path, uuid, scheduler=linear) == pytest.approx(seen[12:])


def test_a_schedule_can_be_given_up(tmp_path):
    uuid = train_until_killed(tmp_path, 12, partial(make_engine, scheduler=SCHEDULES["cosine"]))
    assert resumed_rates(tmp_path, uuid) == [0.1] * 8


def test_another_optimizer_is_refused_by_name(tmp_path):
    uuid = train_until_killed(tmp_path, 5)
    with pytest.raises(CheckpointError, match="trained with SGD and cannot go on with Adam"):
        resume(tmp_path, uuid, partial(make_engine, optimizer=Adam))


def test_another_batch_size_goes_on_at_the_same_share_of_the_epoch(tmp_path):
    # Batch 6 of 10 at 32 digits is batch 3 of 5 at 64
    uuid = train_until_killed(tmp_path, 6)
    with pytest.warns(UserWarning, match="5 batches, not 10 as before: going on at batch 3"):
        engine = resume(tmp_path, uuid, partial(make_engine, digits_loader(320, 64)))
    assert (engine.samples, engine.update) == (640, 6 + 2 + 5)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(saved=NESTED, given=PLAIN | st.lists(PLAIN, max_size=3))
def test_what_was_not_given_anew_stays_as_saved(saved, given):
    assert merged(saved, given, given) == saved


@given(saved=st.dictionaries(st.text(max_size=2), NESTED))
def test_what_was_reached_at_any_depth_stays(saved):
    begun = dict.fromkeys(saved, 0)
    assert merged({"inner": [saved]}, {"inner": [begun]}, {"inner": [begun]}) == {"inner": [saved]}


@given(value=st.dictionaries(st.text(max_size=2), st.integers()))
def test_what_was_given_anew_wins(value):
    saved = dict.fromkeys(value, "reached")
    then = {k: v - 1 for k, v in value.items()}
    assert merged(saved, value, then) == value
