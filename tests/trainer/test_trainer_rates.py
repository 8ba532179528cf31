"""The learning rates that the optimizer of a real training sees, update by update."""

import pytest
from test_trainer_schedules import TABLE
from torch.optim.lr_scheduler import ReduceLROnPlateau
from trainer_kit import Recorder, effect_of, loaders, make

from distillation.trainer import Trainer


@effect_of(
    "lr_mode",
    "lr_updates",
    "step_lr_update_freq",
    "lr_decay_factor",
    "lr_schedule_function",
    "cosine_final_lr_ratio",
    "lr_warmup_epochs",
    "lr_warmup_steps",
    "warmup_mode",
    "warmup_initial_lr",
    "lr_cooldown_epochs",
)
@pytest.mark.parametrize("name", TABLE)
def test_the_training_uses_the_sequence(name, tmp_path):
    params, expected = TABLE[name]
    recorder = Recorder()
    train, _ = loaders(64)  # two updates an epoch
    Trainer("rates", tmp_path).train(
        make(),
        {
            "max_epochs": 4,
            "initial_lr": 1.0,
            "silent_mode": True,
            "phase_callbacks": [recorder],
            **params,
        },
        train,
    )
    assert recorder.rates == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("named", ["ReduceLROnPlateau", ReduceLROnPlateau])
@pytest.mark.parametrize("metric", [{}, {"metric_name": "Loss"}])
def test_plateau_watches_a_result_by_its_short_name(tmp_path, named, metric):
    recorder = Recorder()
    train, valid = loaders(64)
    plateau = {named: {"patience": 0, "threshold": 1e9, "threshold_mode": "abs", **metric}}
    Trainer("rates", tmp_path).train(
        make(),
        {
            "max_epochs": 3,
            "initial_lr": 1e-3,
            "silent_mode": True,
            "phase_callbacks": [recorder],
            "lr_mode": plateau,
        },
        train,
        valid,
    )
    # no loss improves by the absurd threshold, so the rate drops after the second epoch
    assert recorder.rates == pytest.approx([1e-3] * 4 + [1e-4] * 2)


def test_plateau_compares_validated_epochs_alone(tmp_path):
    recorder = Recorder()
    options = {"patience": 0, "metric_name": "Accuracy", "mode": "max", "threshold": 1e9}
    train, valid = loaders(64)
    Trainer("rates", tmp_path).train(
        make(),
        {
            "max_epochs": 5,
            "initial_lr": 1e-3,
            "silent_mode": True,
            "phase_callbacks": [recorder],
            "run_validation_freq": 2,
            "valid_metrics_list": ["Accuracy"],
            "lr_mode": {"ReduceLROnPlateau": {**options, "threshold_mode": "abs"}},
        },
        train,
        valid,
    )
    # of the second and the fourth epoch, the fourth is no better
    assert recorder.rates == pytest.approx([1e-3] * 8 + [1e-4] * 2)


def test_the_recorded_rate_is_that_of_the_epochs_end(tmp_path):
    train, _ = loaders(64)
    trainer = Trainer("rates", tmp_path)
    params = {"max_epochs": 2, "lr_mode": "Step", "lr_updates": [1], "silent_mode": True}
    trainer.train(make(), {**params, "initial_lr": {"features": 0.2, "default": 0.1}}, train)
    assert trainer.run.curve("learning_rate.features")[1][-1] == pytest.approx(0.02)
    assert trainer.run.curve("learning_rate.default")[1][-1] == pytest.approx(0.01)
