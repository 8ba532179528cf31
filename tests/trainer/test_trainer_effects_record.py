"""What training parameters keep, print and tell others, seen from outside."""

import pytest
import torch
from accelerate.tracking import GeneralTracker, on_main_process
from trainer_kit import Recorder, effect_of, rows, trained, weights

from distillation import runs
from distillation.errors import CheckpointError, ConfigError
from distillation.trainer import Callback

# -- checkpoints


@effect_of("save_ckpt_epoch_list")
def test_listed_epochs_are_kept_with_what_latest_holds(tmp_path):
    trainer = trained(tmp_path, max_epochs=3, save_ckpt_epoch_list=[1, 3])
    names = {p.name for p in trainer.checkpoints_dir.iterdir()}
    assert names == {"ckpt_latest.pth", "ckpt_best.pth", "ckpt_epoch_1.pth", "ckpt_epoch_3.pth"}

    def load(name):
        return torch.load(trainer.checkpoints_dir / name, weights_only=True)

    third, latest = load("ckpt_epoch_3.pth"), load("ckpt_latest.pth")
    assert third.keys() == latest.keys()
    assert all(torch.equal(third["net"][k], v) for k, v in latest["net"].items())
    assert load("ckpt_epoch_1.pth")["epoch"] == 1


@effect_of("average_best_models")
def test_the_best_epochs_are_averaged(tmp_path):
    class Keep(Callback):
        def __init__(self):
            self.weights, self.values = [], []

        def on_validation_loader_end(self, context):
            if len(self.values) < 4:
                self.weights.append(weights(context.net))
                self.values.append(context.metrics_dict["CrossEntropyLoss/Loss"])

    keep = Keep()
    trainer = trained(
        tmp_path, max_epochs=4, initial_lr=1.0, average_best_models=2, phase_callbacks=[keep]
    )
    best = sorted(range(4), key=keep.values.__getitem__)[:2]
    expected = (keep.weights[best[0]] + keep.weights[best[1]]) / 2
    saved = torch.load(trainer.checkpoints_dir / "average_model.pth", weights_only=True)
    found = torch.cat([t.double().flatten() for t in saved["net"].values()])
    assert torch.allclose(found, expected, atol=1e-6)
    assert trainer.results["loss.average_model"] == saved["metrics"]["loss.average_model"]
    assert trainer.run.summary["loss.average_model"] > 0
    snapshots = {p.name for p in trainer.checkpoints_dir.glob("snapshot*")}
    assert snapshots == {f"snapshot_epoch_{i + 1}.pth" for i in best}


@effect_of("save_seconds")
def test_a_checkpoint_is_due_within_an_epoch(tmp_path):
    def stops_in_the_second_epoch(seconds):
        class Stop(Callback):
            def on_train_batch_end(self, context):
                if context.epoch == 1 and context.batch_idx == 2:
                    raise RuntimeError("stopped here")

        with pytest.raises(RuntimeError, match="stopped here"):
            trained(tmp_path, max_epochs=2, save_seconds=seconds, phase_callbacks=[Stop()])
        return runs.list(tmp_path)[0].checkpoints[-1]

    assert stops_in_the_second_epoch(3600) == 128
    assert stops_in_the_second_epoch(0) == 128 + 2 * 32


# -- what is told


@effect_of("silent_mode")
def test_silent_mode_prints_nothing_and_records_all(tmp_path, capsys):
    trainer = trained(tmp_path, silent_mode=True)
    assert capsys.readouterr().out == ""
    assert rows(trainer, "loss.train")
    loud = trained(tmp_path, silent_mode=False)
    told = capsys.readouterr().out
    assert "loss.train" in told
    assert told.startswith(f"recording run {loud.run.uuid} in {loud.run.path}\n")


@effect_of("log_every")
def test_running_means_are_recorded_every_so_many_batches(tmp_path):
    trainer = trained(tmp_path, max_epochs=2, log_every=2)
    steps, values = trainer.run.curve("loss.train_step")
    assert steps == [64, 128, 192, 256]
    assert len(set(values)) == 4


@effect_of("phase_callbacks")
def test_callbacks_are_called(tmp_path):
    recorder = Recorder()
    trained(tmp_path, phase_callbacks=[recorder])
    assert recorder.phases == ["training_start", "training_end"]
    assert len(recorder.losses) == 4


@effect_of("early_stopping")
def test_early_stopping_ends_a_training_that_makes_no_progress(tmp_path):
    still = trained(tmp_path, max_epochs=9, initial_lr=0.0, early_stopping={"patience": 2})
    assert len(rows(still, "loss.train")) == 3
    options = {"patience": 2, "monitor": "Loss", "mode": "max"}
    falling = trained(tmp_path, max_epochs=9, early_stopping=options)
    assert len(rows(falling, "loss.train")) == 3
    assert len(rows(trained(tmp_path, max_epochs=5, early_stopping={}), "loss.train")) == 5


def test_early_stopping_options_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'patience'"):
        trained(tmp_path, early_stopping={"patiance": 2})
    with pytest.raises(ConfigError, match="unknown metric of early_stopping 'F1'"):
        trained(tmp_path, early_stopping={"monitor": "F1"})
    with pytest.raises(ConfigError, match="needs a valid_loader"):
        trained(tmp_path, early_stopping={}, valid=False)


class ListTracker(GeneralTracker):
    name = "list"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.config, self.rows, self.finished = None, [], False

    @property
    def tracker(self):
        return self.rows

    @on_main_process
    def store_init_configuration(self, values):
        self.config = values

    @on_main_process
    def log(self, values, step=None, **_):
        self.rows.append((step, values))

    @on_main_process
    def finish(self):
        self.finished = True


@effect_of("trackers")
def test_trackers_get_configuration_and_every_epoch(tmp_path):
    tracker = ListTracker()
    trained(tmp_path, max_epochs=2, trackers=[tracker])
    assert tracker.config["training_params.max_epochs"] == 2
    assert [step for step, _ in tracker.rows] == [128, 256]
    assert "loss.valid" in tracker.rows[0][1]
    assert tracker.finished


def test_a_tracker_is_not_told_of_a_resumption_that_is_refused(tmp_path):
    trained(tmp_path, max_epochs=1)
    tracker = ListTracker()
    with pytest.raises(CheckpointError, match="without 'ema'"):
        trained(tmp_path, max_epochs=2, resume=True, ema=True, trackers=[tracker])
    assert tracker.config is None


def test_a_tracker_that_cannot_start_is_a_warning_and_an_unknown_one_an_error(tmp_path):
    class Broken(ListTracker):
        def store_init_configuration(self, values):
            raise ConnectionError("no network")

    with pytest.warns(UserWarning, match="no network"):
        trainer = trained(tmp_path, trackers=[Broken()])
    assert trainer.run.status == "completed"
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        trained(tmp_path, trackers=["wandbb"])
