"""A training that was killed goes on exactly where it was."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killable import train
from trainer_kit import Recorder, distilled, effect_of, loaders, make, trained, weights

from distillation import runs
from distillation.errors import CheckpointError, ConfigError, RunError, TeacherError
from distillation.trainer import Callback

HERE = Path(__file__).parent


def rows(run):
    """The metric rows without the times at which they were written."""
    return [{k: v for k, v in row.items() if k != "time"} for row in run.metrics]


@pytest.mark.parametrize("loader", ["TensorLoader", "DataLoader"])
def test_killed_and_resumed_is_bit_identical_to_uninterrupted(tmp_path, loader):
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    killed = subprocess.run(
        [sys.executable, str(HERE / "killable.py"), str(tmp_path / "killed"), loader, "4"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = runs.list(tmp_path / "killed")
    assert left.status == "interrupted"
    assert left.checkpoints[-1] == 128 + 48  # in the middle of the second epoch

    resumed = train(tmp_path / "killed", loader, resume=True)
    whole = train(tmp_path / "whole", loader)
    assert resumed.run.uuid == left.uuid
    assert torch.equal(weights(resumed.net.student), weights(whole.net.student))
    assert torch.equal(weights(resumed.ema_model), weights(whole.ema_model))
    assert rows(resumed.run) == rows(whole.run)
    assert resumed.run.status == "completed"
    for name in ("ckpt_latest.pth", "ckpt_best.pth"):
        ours, theirs = (
            torch.load(t.checkpoints_dir / name, weights_only=True) for t in (resumed, whole)
        )
        assert all(torch.equal(ours["net"][k], v) for k, v in theirs["net"].items())
        assert ours["epoch"] == theirs["epoch"]


class Stop(Callback):
    """Raises in the given epoch."""

    def __init__(self, epoch, batch=0):
        self.place = (epoch, batch)

    def on_train_batch_end(self, context):
        if (context.epoch, context.batch_idx) == self.place:
            raise RuntimeError("stopped")


def stopped(root, epoch, batch=0, **params):
    with pytest.raises(RuntimeError, match="stopped"):
        trained(root, phase_callbacks=[Stop(epoch, batch)], **{"max_epochs": 4, **params})
    return runs.list(root)[0]


@effect_of("resume")
def test_resume_goes_on_with_the_newest_run_in_its_folder(tmp_path):
    left = stopped(tmp_path, 2)
    resumed = trained(tmp_path, max_epochs=4, resume=True)
    whole = trained(tmp_path / "whole", max_epochs=4)
    assert resumed.run.uuid == left.uuid
    assert torch.equal(weights(resumed.net), weights(whole.net))
    assert resumed.run.curve("loss.train") == whole.run.curve("loss.train")


def test_the_best_value_comes_back(tmp_path):
    bad = {"initial_lr": 5.0, "valid_metrics_list": ["Accuracy"]}
    left = stopped(tmp_path, 3, **bad)
    best = left.best_step
    resumed = trained(tmp_path, max_epochs=6, resume=True, **bad)
    steps, values = resumed.run.curve("accuracy.valid")
    assert resumed.run.best_step == steps[values.index(max(values))]
    assert best in steps
    kept = torch.load(resumed.checkpoints_dir / "ckpt_best.pth", weights_only=True)
    assert kept["step"] == resumed.run.best_step


def test_killed_before_the_first_checkpoint_it_starts_over_there(tmp_path):
    left = stopped(tmp_path, 0, 1)
    assert left.checkpoints == []
    resumed = trained(tmp_path, max_epochs=1, resume=True)
    assert resumed.run.uuid == left.uuid
    assert torch.equal(weights(resumed.net), weights(trained(tmp_path / "w").net))


def test_new_hyper_parameters_win(tmp_path):
    stopped(tmp_path, 2, initial_lr=0.1, optimizer_params={"momentum": 0.9})
    recorder = Recorder()
    resumed = trained(
        tmp_path,
        max_epochs=5,
        initial_lr=0.02,
        optimizer_params={"momentum": 0.5},
        resume=True,
        phase_callbacks=[recorder],
    )
    assert recorder.rates == pytest.approx([0.02] * 12)
    group = torch.load(resumed.checkpoints_dir / "ckpt_latest.pth", weights_only=True)["state"]
    assert group["optimizer"]["param_groups"][0]["momentum"] == 0.5
    assert resumed.run.config["training_params"]["max_epochs"] == 5


@effect_of("resume_path")
@pytest.mark.parametrize("how", ["uuid", "folder", "latest", "epoch"])
def test_resume_path_names_the_run_by_uuid_folder_or_file(tmp_path, how):
    first = trained(tmp_path, max_epochs=3, save_ckpt_epoch_list=[1])
    trained(tmp_path, max_epochs=1)  # a newer run
    path = {
        "uuid": first.run.uuid[:12],
        "folder": first.run.path,
        "latest": str(first.checkpoints_dir / "ckpt_latest.pth"),
        "epoch": str(first.checkpoints_dir / "ckpt_epoch_1.pth"),
    }[how]
    recorder = Recorder()
    resumed = trained(tmp_path, max_epochs=4, resume_path=path, phase_callbacks=[recorder])
    assert resumed.run.uuid == first.run.uuid
    assert len(recorder.losses) == {"epoch": 12}.get(how, 4)
    assert torch.equal(weights(resumed.net), weights(trained(tmp_path / "w", max_epochs=4).net))
    assert len(resumed.run.curve("loss.train")[0]) == 4


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(RunError, match="has no run in"):
        trained(tmp_path, resume=True)
    with pytest.raises(RunError, match="neither a run's UUID nor an existing path"):
        trained(tmp_path, resume_path=str(tmp_path / "ckpt_latest.pth"))
    (tmp_path / "loose.pth").write_bytes(b"")
    with pytest.raises(RunError, match="lies in no run's folder"):
        trained(tmp_path, resume_path=str(tmp_path / "loose.pth"))


def test_a_best_checkpoint_is_no_place_to_go_on_from(tmp_path):
    first = trained(tmp_path)
    with pytest.raises(CheckpointError, match="holds no state of a training"):
        trained(tmp_path, resume_path=str(first.checkpoints_dir / "ckpt_best.pth"))


@effect_of("allow_changed_teacher")
def test_another_teacher_on_resume_is_refused_unless_allowed(tmp_path):
    first = distilled(tmp_path, teacher=make(width=32, seed=1))
    again = {"resume": True, "max_epochs": 2}
    with pytest.raises(TeacherError, match="allow_changed_teacher=True"):
        distilled(tmp_path, teacher=make(width=32, seed=2), **again)
    allowed = distilled(
        tmp_path, teacher=make(width=32, seed=2), allow_changed_teacher=True, **again
    )
    assert allowed.run.uuid == first.run.uuid


def test_early_stopping_and_snapshots_come_back(tmp_path):
    still = {"initial_lr": 0.0, "early_stopping": {"patience": 3}, "average_best_models": 2}
    stopped(tmp_path, 2, max_epochs=9, **still)
    resumed = trained(tmp_path, max_epochs=9, resume=True, **still)
    assert len(resumed.run.curve("loss.train")[0]) == 4
    assert (resumed.checkpoints_dir / "average_model.pth").exists()


def test_a_completed_training_goes_on_to_more_epochs(tmp_path):
    first = trained(tmp_path, max_epochs=2, average_best_models=2)
    longer = trained(tmp_path, max_epochs=4, average_best_models=2, resume=True)
    whole = trained(tmp_path / "whole", max_epochs=4, average_best_models=2)
    assert longer.run.uuid == first.run.uuid
    assert torch.equal(weights(longer.net), weights(whole.net))
    assert longer.results == whole.results


def test_files_that_a_kill_left_behind_the_checkpoint_are_mended(tmp_path):
    first = trained(tmp_path, max_epochs=2)
    expected = {}
    for name in ("ckpt_latest.pth", "ckpt_best.pth"):
        path = first.checkpoints_dir / name
        expected[name] = torch.load(path, weights_only=True)["net"]
        path.unlink()
    again = trained(tmp_path, max_epochs=2, resume=True)
    for name, net in expected.items():
        found = torch.load(again.checkpoints_dir / name, weights_only=True)["net"]
        assert all(torch.equal(found[k], v) for k, v in net.items())


def test_other_losses_on_resume_are_told(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return torch.nn.functional.cross_entropy(output, target) * self.scale

    stopped(tmp_path, 2)
    (before,) = runs.list(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        trained(tmp_path, max_epochs=4, resume=True, loss=Scaled())
    (after,) = runs.list(tmp_path)  # it can be resumed as if this had not been tried
    assert (after.info, after.config, rows(after)) == (before.info, before.config, rows(before))


@pytest.mark.parametrize("by", ["run", "file"])
def test_an_average_that_the_run_did_not_begin_with_is_told_by_its_name(tmp_path, by):
    plain = trained(tmp_path / "plain")
    averaged = trained(tmp_path / "averaged", ema=True, average_best_models=2)

    def again(trainer, **params):
        place = trainer.run.path if by == "run" else trainer.checkpoints_dir / "ckpt_latest.pth"
        trained(trainer.root, max_epochs=2, resume_path=place, **params)

    with pytest.raises(CheckpointError, match="without 'ema', which this training has, so it"):
        again(plain, ema=True)
    with pytest.raises(CheckpointError, match="with 'ema', 'average_best_models', which this"):
        again(averaged)
    again(averaged, ema=True, average_best_models=2)


def swinging(*factors):
    """A learning rate of its own for each epoch; a negative one makes the model worse."""
    return {
        "lr_mode": "Function",
        "lr_schedule_function": lambda initial_lr, epoch, **_: initial_lr * factors[epoch],
        "save_ckpt_epoch_list": list(range(1, len(factors) + 1)),
        "max_epochs": len(factors),
    }


def test_going_back_to_an_epoch_that_was_the_best_makes_it_the_best_again(tmp_path):
    first = trained(tmp_path, **swinging(1, 1, 1))
    assert first.run.best_step == 3 * 128
    there = first.checkpoints_dir / "ckpt_epoch_1.pth"
    back = trained(tmp_path, resume_path=there, **swinging(1))
    assert back.run.best_step == 128
    best, kept = (
        torch.load(path, weights_only=True)
        for path in (back.checkpoints_dir / "ckpt_best.pth", there)
    )
    assert best["step"] == 128
    assert all(torch.equal(best["net"][k], v) for k, v in kept["net"].items())


def test_going_back_behind_a_best_that_was_pruned_chooses_anew(tmp_path):
    first = trained(tmp_path, **swinging(1, -1, 4))
    assert first.run.best_step == 3 * 128
    there = first.checkpoints_dir / "ckpt_epoch_2.pth"
    with pytest.warns(UserWarning, match="the best epoch until then, 1, is no longer kept"):
        back = trained(tmp_path, resume_path=there, **swinging(1, -1))
    assert back.run.best_step is None
    assert not (back.checkpoints_dir / "ckpt_best.pth").exists()
    on = trained(tmp_path, resume_path=there, **swinging(1, -1, 0))
    assert on.run.best_step == 3 * 128  # no better than the first, which is gone


def test_going_back_averages_only_epochs_whose_weights_are_kept(tmp_path):
    first = trained(tmp_path, average_best_models=1, **swinging(1, 1))
    there = first.checkpoints_dir / "ckpt_epoch_1.pth"
    with pytest.warns(UserWarning, match="the weights of epoch 1 are no longer kept"):
        back = trained(tmp_path, resume_path=there, average_best_models=1, **swinging(1, 0))
    assert back.results["loss.average_model"] == back.results["loss.valid"]


def test_killed_after_going_back_it_goes_on_from_there(tmp_path):
    first = trained(tmp_path, **swinging(1, 1, 1))
    with pytest.raises(RuntimeError, match="stopped"):
        trained(
            tmp_path,
            resume_path=first.checkpoints_dir / "ckpt_epoch_2.pth",
            phase_callbacks=[Stop(2)],
            **swinging(1, 1, 1),
        )
    assert first.run.checkpoints == [2 * 128]


@pytest.mark.parametrize("phase", ["on_train_batch_end", "on_validation_loader_start"])
def test_ctrl_c_in_the_last_epoch_lets_the_run_end_and_is_not_swallowed(tmp_path, phase):
    def signalled(self, context):
        signal.raise_signal(signal.SIGINT)

    late = type("Late", (Callback,), {phase: signalled})()
    if phase == "on_train_batch_end":
        late = LastBatch()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, phase_callbacks=[late], valid=phase != "on_train_batch_end")
    (run,) = runs.list(tmp_path)
    assert (run.status, run.checkpoints) == ("completed", [128])


class LastBatch(Callback):
    def on_train_batch_end(self, context):
        if context.batch_idx == 3:
            signal.raise_signal(signal.SIGINT)


def test_resume_goes_on_from_the_last_checkpoint_of_a_run_and_no_other(tmp_path):
    uuid = trained(tmp_path, max_epochs=2).run.uuid
    with pytest.raises(RunError, match="names a step"):
        trained(tmp_path, max_epochs=3, resume_path=f"{uuid}@best")


def test_a_training_that_is_refused_leaves_the_one_before(tmp_path):
    trainer = trained(tmp_path)
    run, net = trainer.run.uuid, trainer.net
    with pytest.raises(ConfigError):
        trainer.train(make(), {"max_epochs": 1, "metric_to_watch": "Acuracy"}, *loaders())
    assert (trainer.run.uuid, trainer.net) == (run, net)
