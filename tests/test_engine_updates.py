"""What one optimizer update is made of: groups of batches, clipping, the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from engine_case import digits_loader, images, make_engine, same, weights

from distillation.errors import ConfigError


def largest_difference(a: dict, b: dict) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def test_four_batches_of_16_train_like_one_of_64():
    # 200 digits are 13 batches of 16: the last group is partial, its last batch has 8
    small = make_engine(digits_loader(200, 16), accumulate=4)
    large = make_engine(digits_loader(200, 64))
    small.fit()
    large.fit()
    assert small.update == large.update == 8
    assert largest_difference(weights(small), weights(large)) < 1e-5


def test_a_group_weighs_its_batches_by_their_samples():
    data, labels = images(32)
    uneven = [(data[:1], labels[:1]), (data[1:], labels[1:])]
    accumulated = make_engine(uneven, accumulate=2, epochs=1)
    whole = make_engine([(data, labels)], epochs=1)
    accumulated.fit()
    whole.fit()
    assert largest_difference(weights(accumulated), weights(whole)) < 1e-6


def test_the_last_partial_group_is_not_lost():
    data, labels = images(40)
    batches = [(data[i : i + 8], labels[i : i + 8]) for i in range(0, 40, 8)]
    engine = make_engine(batches, accumulate=3, epochs=1)
    engine.fit()
    assert engine.update == 2
    last_group = make_engine([(data, labels)], epochs=1)
    last_group.fit()
    assert not same(weights(engine), weights(last_group))


def test_gradients_are_clipped_to_the_norm_over_all_parameters():
    engine = make_engine(
        [images(64)],
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        clip_grad_norm=1e-3,
        epochs=1,
    )
    before = weights(engine)
    engine.fit()
    after = weights(engine)
    moved = math.sqrt(sum(float((after[k] - before[k]).pow(2).sum()) for k in before))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_the_schedule_steps_once_an_update_not_once_a_batch():
    seen = []

    def halve(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    engine = make_engine(digits_loader(160, 16), accumulate=5, scheduler=halve, epochs=2)
    engine.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    engine.fit()
    assert seen == [0.1, 0.05, 0.025, 0.0125]


def test_gradients_are_cleared_after_each_group_only():
    engine = make_engine(digits_loader(64, 16), accumulate=2, epochs=1)
    present = []
    zero = engine.zero_grad
    parameter = next(engine.modules["model"].parameters())

    def watched():
        zero()
        present.append(parameter.grad is not None)

    engine.zero_grad = watched
    engine.fit()
    assert present == [True, False, True, False]


def test_samples_and_updates_are_counted():
    engine = make_engine(digits_loader(100, 32), epochs=3)
    engine.fit()
    assert (engine.epoch, engine.samples, engine.update) == (3, 300, 12)


def test_an_epoch_can_be_cut_short():
    engine = make_engine(digits_loader(320, 32), epochs=2, max_train_batches=3)
    engine.fit()
    assert (engine.samples, engine.update) == (192, 6)


def test_a_group_ends_where_a_cut_epoch_ends():
    engine = make_engine(digits_loader(320, 32), epochs=1, max_train_batches=3, accumulate=2)
    engine.fit()
    assert engine.update == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", True),
        ("accumulate", 0),
        ("validate_every", 0),
        ("log_every", -1),
        ("watch_mode", "best"),
        ("clip_grad_norm", 0.0),
        ("clip_grad_norm", float("nan")),
        ("max_train_batches", 0),
    ],
)
def test_an_option_out_of_range_is_named(option, value):
    with pytest.raises(ConfigError, match=option):
        make_engine(**{option: value})
