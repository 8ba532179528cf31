"""Learning rates after every optimizer update, exactly."""

import math
import random

import pytest
import torch
from torch import nn

from distillation.errors import ConfigError
from distillation.trainer.params import TrainingParams
from distillation.trainer.schedules import Schedule


def make(updates_per_epoch=2, lr=1.0, **params):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=lr, momentum=0.9)
    params = TrainingParams.from_any({"max_epochs": 4, "initial_lr": lr, **params})
    return optimizer, Schedule(optimizer, params, updates_per_epoch)


def sequence(updates_per_epoch=2, lr=1.0, **params):
    """The rate that each update of the training uses."""
    optimizer, schedule = make(updates_per_epoch, lr, **params)
    rates = []
    for _ in range(params.get("max_epochs", 4) * updates_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def cosine(s, whole, r=0.01):
    return r + (1 - r) * (1 + math.cos(math.pi * s / whole)) / 2


HALF = [1 / 2, 1 / 2]  # one epoch of two updates at initial * (0 + 1) / (1 + 1)

TABLE = {
    "constant": ({}, [1.0] * 8),
    "warm-up by epochs, constant": ({"lr_warmup_epochs": 1}, HALF + [1.0] * 6),
    "warm-up by two epochs": (
        {"lr_warmup_epochs": 2},
        [1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1],
    ),
    "warm-up by two epochs from 0.2": (
        {"lr_warmup_epochs": 2, "warmup_initial_lr": 0.2},
        [0.2, 0.2, 0.6, 0.6, 1, 1, 1, 1],
    ),
    "warm-up by an epoch's batches": (
        {"lr_warmup_epochs": 1, "warmup_mode": "linear_batch_step"},
        [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1],
    ),
    "warm-up by three steps": (
        {"lr_warmup_steps": 3},
        [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1],
    ),
    "warm-up by three steps from 0.1": (
        {"lr_warmup_steps": 3, "warmup_initial_lr": 0.1},
        [0.1, 0.4, 0.7, 1, 1, 1, 1, 1],
    ),
    "cosine": ({"lr_mode": "Cosine"}, [cosine(s, 8) for s in range(8)]),
    "cosine to 0.2": (
        {"lr_mode": "Cosine", "cosine_final_lr_ratio": 0.2},
        [cosine(s, 8, 0.2) for s in range(8)],
    ),
    "cosine, warm-up and cooldown": (
        {"lr_mode": "Cosine", "lr_warmup_epochs": 1, "lr_cooldown_epochs": 1},
        HALF + [cosine(s, 4) for s in range(4)] + [cosine(3, 4)] * 2,
    ),
    "cosine, warm-up by steps": (
        {"lr_mode": "cosine", "lr_warmup_steps": 3},
        [1 / 4, 2 / 4, 3 / 4] + [cosine(s, 5) for s in range(5)],
    ),
    "poly": ({"lr_mode": "Poly"}, [(1 - s / 8) ** 0.9 for s in range(8)]),
    "poly, warm-up and cooldown": (
        {"lr_mode": "poly", "lr_warmup_epochs": 1, "lr_cooldown_epochs": 1},
        HALF + [(1 - s / 4) ** 0.9 for s in range(4)] + [(1 - 3 / 4) ** 0.9] * 2,
    ),
    "exponential": (
        {"lr_mode": "Exponential", "lr_decay_factor": 0.5},
        [0.5 ** (s / 2) for s in range(8)],
    ),
    "exponential, warm-up and cooldown": (
        {"lr_mode": "exp", "lr_decay_factor": 0.5, "lr_warmup_epochs": 1, "lr_cooldown_epochs": 1},
        HALF + [0.5 ** (s / 2) for s in range(4)] + [0.5 ** (3 / 2)] * 2,
    ),
    "step": (
        {"lr_mode": "Step", "lr_updates": [1, 3]},
        [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01],
    ),
    "step from SuperGradients' spelling": (
        {"lr_mode": "StepLRScheduler", "lr_updates": [2], "lr_decay_factor": 0.5},
        [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5],
    ),
    "step every 1.5 epochs": (
        {"lr_mode": "Step", "step_lr_update_freq": 1.5},
        [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01],
    ),
    "step counts the warm-up's epochs": (
        {"lr_mode": "Step", "lr_updates": [2], "lr_warmup_epochs": 1, "lr_cooldown_epochs": 1},
        [*HALF, 1, 1, 0.1, 0.1, 0.1, 0.1],
    ),
    "step, no drop in the cooldown": (
        {"lr_mode": "Step", "lr_updates": [3], "lr_cooldown_epochs": 1},
        [1.0] * 8,
    ),
    "function": (
        {
            "lr_mode": "Function",
            "lr_schedule_function": lambda initial_lr, epoch, iter, max_epoch, iters_per_epoch: (
                initial_lr * (epoch + iter / iters_per_epoch + 1) / max_epoch
            ),
        },
        [(s / 2 + 1) / 4 for s in range(8)],
    ),
    "function, warm-up": (
        {
            "lr_mode": "Function",
            "lr_warmup_epochs": 1,
            "lr_schedule_function": lambda initial_lr, epoch, **_: initial_lr / 10**epoch,
        },
        [*HALF, 1, 1, 0.1, 0.1, 0.01, 0.01],
    ),
    "torch, by epochs": (
        {"lr_mode": {"StepLR": {"step_size": 2}}},
        [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1],
    ),
    "torch, by steps": (
        {"lr_mode": {"ExponentialLR": {"gamma": 0.5, "phase": "TRAIN_BATCH_STEP"}}},
        [0.5**s for s in range(8)],
    ),
    "torch class, warm-up and cooldown": (
        {
            "lr_mode": {"ExponentialLR": {"gamma": 0.5}},
            "lr_warmup_epochs": 1,
            "lr_cooldown_epochs": 1,
        },
        [*HALF, 1, 1, 0.5, 0.5, 0.5, 0.5],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_sequence(name):
    params, expected = TABLE[name]
    assert sequence(**params) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("warm_up", [{}, {"lr_warmup_epochs": 1}, {"lr_warmup_steps": 3}])
def test_warm_up_mode_none_is_no_warm_up(warm_up):
    assert sequence(warmup_mode=None, **warm_up) == [1.0] * 8


def test_one_cycle_is_torchs_between_warm_up_and_cooldown():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=8)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert sequence(lr_mode="OneCycle") == pytest.approx(expected, rel=1e-12)
    inner = sequence(lr_mode="OneCycle", max_epochs=6, lr_warmup_epochs=1, lr_cooldown_epochs=1)
    assert inner == pytest.approx(HALF + expected + [expected[-1]] * 2, rel=1e-12)


def test_plateau_follows_its_metric_and_rests_in_warm_up():
    lr_mode = {"ReduceLROnPlateau": {"patience": 0, "metric_name": "Loss"}}
    optimizer, schedule = make(1, lr_mode=lr_mode, lr_warmup_epochs=1)
    rates = []
    for loss in (3.0, 2.0, 2.5, 2.6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        schedule.epoch_end({"Loss": loss})
    rates.append(optimizer.param_groups[0]["lr"])
    # warm-up; its first loss (3.0 after the warm-up's step) counts; 2.5 and 2.6 do not improve
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.1, 0.1])


def test_plateau_with_an_unknown_metric_names_the_known_ones():
    lr_mode = {"ReduceLROnPlateau": {"metric_name": "Acuracy"}}
    optimizer, schedule = make(1, lr_mode=lr_mode)
    optimizer.step()
    schedule.step()
    with pytest.raises(ConfigError, match="did you mean 'Accuracy'"):
        schedule.epoch_end({"Accuracy": 0.5})


MODES = ["Cosine", "Poly", "Exponential", "OneCycle", "CosineAnnealingLR", "WarmRestarts", "Step"]


@pytest.mark.parametrize("mode", MODES)
def test_resumed_in_the_middle_the_sequence_goes_on_bit_for_bit(mode):
    lr_mode = {
        "CosineAnnealingLR": {"CosineAnnealingLR": {"T_max": 3}},
        "WarmRestarts": {"CosineAnnealingWarmRestarts": {"T_0": 1, "T_mult": 2}},
    }.get(mode, mode)
    params = {
        "lr_mode": lr_mode,
        "lr_updates": [1] if mode == "Step" else [],
        "lr_warmup_epochs": 1,
        "lr_cooldown_epochs": 1,
        "max_epochs": 6,
    }
    whole = sequence(lr=0.037, **params)
    stop = random.Random(mode).randrange(1, 12)
    optimizer, schedule = make(lr=0.037, **params)
    for _ in range(stop):
        optimizer.step()
        schedule.step()
    saved = schedule.state_dict()
    groups = [dict(g, params=None) for g in optimizer.param_groups]

    optimizer, schedule = make(lr=0.037, **params)
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        group.update({k: v for k, v in values.items() if k != "params"})
    schedule.load_state_dict(saved)
    rest = []
    for _ in range(stop, 12):
        rest.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rest == whole[stop:]


def test_a_new_initial_rate_on_resume_wins():
    optimizer, schedule = make(lr=1.0, lr_mode="Cosine")
    for _ in range(4):
        optimizer.step()
        schedule.step()
    saved = schedule.state_dict()
    optimizer, schedule = make(lr=0.5, lr_mode="Cosine")
    schedule.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * cosine(4, 8))


@pytest.mark.parametrize(
    ("lr_mode", "said"),
    [
        ("Cosin", "did you mean 'Cosine'"),
        ({"Cosine": {"T_max": 3}}, "has no arguments"),
        ({"StepLR": {"stepsize": 3}}, "StepLR does not take"),
        ({"StepLR": {"step_size": 3, "phase": "EPOCH"}}, "unknown phase"),
        ("Step", "lr_updates"),
        ("Function", "lr_schedule_function"),
    ],
)
def test_wrong_schedules_are_named(lr_mode, said):
    with pytest.raises(ConfigError, match=said):
        make(lr_mode=lr_mode)


def test_warm_up_rates_by_prefix():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    groups = [
        {"params": net["a"].parameters(), "lr": 1.0, "name": "a"},
        {"params": net["b"].parameters(), "lr": 0.5, "name": "default"},
    ]
    optimizer = torch.optim.SGD(groups)
    params = {
        "max_epochs": 4,
        "initial_lr": {"a": 1.0, "default": 0.5},
        "lr_warmup_epochs": 1,
        "warmup_initial_lr": {"a": 0.1},
    }
    Schedule(optimizer, TrainingParams.from_any(params), 2)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.25])
    params["warmup_initial_lr"] = {"c": 0.1}
    with pytest.raises(ConfigError, match="unknown prefix"):
        Schedule(optimizer, TrainingParams.from_any(params), 2)


def test_a_lambda_of_the_user_counts_epochs_as_other_schedulers_of_torch_do():
    halving = {"LambdaLR": {"lr_lambda": lambda epoch: 0.5**epoch}}
    assert sequence(lr_mode=halving) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    each = {"LambdaLR": {"lr_lambda": lambda step: 0.5**step, "phase": "TRAIN_BATCH_STEP"}}
    assert sequence(lr_mode=each) == [0.5**i for i in range(8)]
