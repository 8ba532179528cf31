"""Callbacks: which phase is called when, and with what."""

import pytest
import torch
from trainer_kit import distilled, loaders, make, trained, weights

from distillation.errors import ConfigError
from distillation.trainer import Callback, Trainer
from distillation.trainer.callbacks import PHASES


def logging_callback():
    """A callback that writes down every phase."""
    log = []

    def method(phase):
        return lambda self, context: log.append(phase)

    kind = type("Logs", (Callback,), {phase: method(phase) for phase in PHASES})
    return kind(), log


BATCH = [
    "on_train_batch_start",
    "on_train_batch_loss_end",
    "on_train_batch_backward_end",
    "on_train_batch_gradient_step_start",
    "on_train_batch_gradient_step_end",
    "on_train_batch_end",
]
NO_STEP = [phase for phase in BATCH if "gradient_step" not in phase]
VALIDATION = [
    "on_validation_loader_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_loader_end",
]


def test_the_phases_in_their_order(tmp_path):
    callback, log = logging_callback()
    trainer = trained(tmp_path, max_epochs=1, batch_accumulate=2, phase_callbacks=[callback])
    assert log == [
        "on_training_start",
        "on_train_loader_start",
        *NO_STEP,
        *BATCH,
        *NO_STEP,
        *BATCH,
        "on_train_loader_end",
        *VALIDATION,
        "on_validation_end_best_epoch",
        "on_training_end",
    ]
    log.clear()
    _, test = loaders()
    trainer.test(test_loader=test, test_phase_callbacks=[callback])
    assert log == [phase.replace("validation", "test") for phase in VALIDATION]


def test_averaging_has_phases_of_its_own(tmp_path):
    callback, log = logging_callback()
    trained(tmp_path, average_best_models=1, phase_callbacks=[callback])
    assert (
        log[-7:]
        == [
            "on_validation_end_best_epoch",
            "on_average_best_models_validation_start",
            *VALIDATION,
            "on_average_best_models_validation_end",
            "on_training_end",
        ][-7:]
    )


def test_the_context_tells_what_is_going_on(tmp_path):
    seen = {}

    class Look(Callback):
        def on_train_batch_end(self, context):
            seen["batch"] = vars(context).copy()

        def on_validation_loader_end(self, context):
            seen["valid"] = vars(context).copy()

    trainer = distilled(
        tmp_path, phase_callbacks=[Look()], valid_metrics_list=["Accuracy"], max_epochs=2
    )
    batch = seen["batch"]
    assert batch["net"] is trainer.net
    assert (batch["epoch"], batch["batch_idx"]) == (1, 3)
    assert batch["preds"].student_output.shape == batch["preds"].teacher_output.shape == (32, 10)
    assert batch["inputs"].shape == (32, 1, 8, 8) and batch["target"].shape == (32,)
    assert batch["loss"].dim() == 0
    assert batch["ckpt_dir"] == trainer.checkpoints_dir
    assert batch["run_uuid"] == trainer.run.uuid
    assert batch["experiment_name"] == "kd"
    assert isinstance(batch["optimizer"], torch.optim.SGD)
    assert seen["valid"]["metrics_dict"]["Accuracy"] == trainer.results["accuracy.valid"]


def test_a_callback_can_stop_the_training_after_a_batch_or_an_epoch(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, context):
            context.stop_training = context.epoch == 1 and context.batch_idx == 1

    trainer = trained(tmp_path, max_epochs=5, phase_callbacks=[Stop()])
    steps, _ = trainer.run.curve("loss.train")
    assert steps == [128, 128 + 64]
    assert "loss.valid" in trainer.results


def test_callbacks_do_not_change_the_result(tmp_path):
    one, two = make(), make()
    callback, _ = logging_callback()
    trained(tmp_path, one, phase_callbacks=[callback])
    trained(tmp_path, two)
    assert torch.equal(weights(one), weights(two))


def test_what_is_no_callback_is_told(tmp_path):
    class Misspelt(Callback):
        def on_train_batch_ended(self, context):
            pass

    with pytest.raises(ConfigError, match="Subclass it"):
        trained(tmp_path, phase_callbacks=[print])
    with pytest.raises(ConfigError, match="did you mean 'on_train_batch_end'"):
        trained(tmp_path, phase_callbacks=[Misspelt()])


@pytest.mark.parametrize("splits", [("test",), ("a", "b")])
def test_early_stopping_follows_the_first_validation_loader_whatever_its_name(tmp_path, splits):
    train, test = loaders()
    callback, log = logging_callback()
    trainer = Trainer("plain", tmp_path)
    params = {"max_epochs": 9, "initial_lr": 0.0, "silent_mode": True}
    params |= {"early_stopping": {"patience": 2}, "phase_callbacks": [callback]}
    trainer.train(make(), params, train, dict.fromkeys(splits, test))
    assert log.count("on_validation_loader_end") == 3 * len(splits)
    assert "on_test_loader_end" not in log


def test_a_callback_is_told_whose_batches_it_sees(tmp_path):
    train, test = loaders()
    seen = []

    class Splits(Callback):
        def on_train_batch_end(self, context):
            seen.append(context.split)

        on_validation_batch_end = on_train_batch_end

    params = {"max_epochs": 1, "silent_mode": True, "phase_callbacks": [Splits()]}
    Trainer("plain", tmp_path).train(make(), params, train, {"valid": test, "test": test})
    assert seen == ["train"] * 4 + ["valid", "test"]
