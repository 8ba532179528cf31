"""Who is told of an experiment's metrics beside the run store."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys

import pytest
from experiment_case import command, rows, wait_for

from distillation import runs
from distillation.runs.metrics import is_quiet

TENSORBOARD = ["--set", "tracker=tensorboard", "--set", "log_every=5"]
installed = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


def events(run: runs.Run) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each scalar, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def recorded(run: runs.Run) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows(run):
        step, _ = row.pop("step"), row.pop("epoch")
        for name, value in row.items():
            if not is_quiet(name):
                found.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    return found


@installed
def test_tensorboard_shows_what_was_recorded(tmp_path):
    uuid = command("digits.small", "--epochs=1", *TENSORBOARD, root=tmp_path).uuid
    run = runs.find(uuid, root=tmp_path)
    shown = events(run)
    assert shown == recorded(run)
    assert {"loss.train_step", "loss.train", "accuracy.test", "ece.test"} <= set(shown)
    # By sample: rows of five batches of 64
    assert [step for step, _ in shown["loss.train_step"]] == [320, 640, 960, 1280]


@installed
def test_a_run_that_is_killed_and_goes_on_has_each_row_once(warm, tmp_path):
    line = ["--epochs=4", *TENSORBOARD, "--set", "save_seconds=0.05"]
    job = warm.start("digits.small", *line, root=tmp_path)
    wait_for(lambda: job.printed("recording run"))
    uuid = job.out.read_text().split("recording run ")[1].split()[0]
    metrics = tmp_path / "digits" / uuid / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and "accuracy.test" in metrics.read_text())
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert warm.run("digits.small", "--resume", uuid, root=tmp_path).code == 0
    run = runs.find(uuid, root=tmp_path)
    assert run.status == "completed"
    assert events(run) == recorded(run)


@installed
def test_a_run_may_be_given_tensorboard_when_it_goes_on(tmp_path):
    uuid = command("digits.small", "--epochs=1", root=tmp_path).uuid
    assert not (tmp_path / "digits" / uuid / "tensorboard").exists()
    again = command("digits.small", "--resume", uuid, "--epochs=2", *TENSORBOARD, root=tmp_path)
    run = runs.find(again.uuid, root=tmp_path)
    assert events(run) == recorded(run)
    assert len(events(run)["accuracy.test"]) == 2


def test_by_default_there_are_the_screen_and_labmls_log(tmp_path):
    done = command("digits.small", "--epochs=1", root=tmp_path)
    run = runs.find(done.uuid, root=tmp_path)
    assert run.config["tracker"] == ["screen", "file"]
    assert "epoch 1/1" in done.out
    tracked = {}
    for line in (run.path / "log.jsonl").read_text().splitlines():
        tracked |= json.loads(line)["track"]
    step, (value,) = tracked["accuracy.test"][-1]
    assert (step, value) == (1437, run.summary["accuracy.test"])


def test_a_tracker_that_is_not_named_is_not_told(tmp_path):
    done = command("digits.small", "--epochs=1", "--set", "tracker=file", root=tmp_path)
    assert "epoch 1/1" not in done.out
    done = command("digits.small", "--epochs=1", "--set", "tracker=screen", root=tmp_path)
    assert "epoch 1/1" in done.out
    assert not (tmp_path / "digits" / done.uuid / "log.jsonl").exists()


def test_a_misspelt_tracker_names_the_nearest(tmp_path):
    done = command("digits.small", "--set", "tracker=screen,tensorbord", root=tmp_path)
    assert done.code == 2
    assert "unknown value for 'tracker': 'tensorbord'; did you mean 'tensorboard'?" in done.err


def test_a_missing_package_is_said_before_a_run_is_opened(tmp_path, monkeypatch):
    # As Python sees it where the package is not installed
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = command("digits.small", *TENSORBOARD, root=tmp_path)
    assert done.code == 2
    assert "pip install 'distillation[tensorboard]'" in done.err
    assert not runs.list(root=tmp_path)


def test_a_value_that_is_no_number_is_left_out():
    from experiments.trackers import scalars

    row = {"step": 1, "epoch": 0, "time": 0.5, "loss.train": None, "ece.test": 0.5}
    assert scalars(row | {"param.w.norm": 1.0}) == {"ece.test": 0.5}
