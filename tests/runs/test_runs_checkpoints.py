"""Checkpoints of a run: which stay, going back, and kills at any moment."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from kills import die_at
from runs_kit import FORK, save

from distillation import runs
from distillation.errors import CheckpointError, ConfigError, RunError


def test_the_last_and_the_best_checkpoint_stay(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        for step, best in ((10, False), (20, True), (30, False), (40, False)):
            save(recorder, step, best)
    run = runs.find(recorder.uuid, tmp_path)
    assert run.checkpoints == [20, 40]
    assert run.best_step == 20
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["20", "40"]
    assert run.checkpoint().state == {"step": 40}
    assert run.checkpoint("best").state == {"step": 20}
    assert run.checkpoint(20).weights["model"]["w"][0] == 20


def test_more_checkpoints_stay_when_asked_for(tmp_path):
    with runs.create("digits", root=tmp_path, keep=3) as recorder:
        for step in (10, 20, 30, 40):
            save(recorder, step)
        assert recorder.run.checkpoints == [20, 30, 40]
        recorder.update(keep=1)
        save(recorder, 50)
        assert recorder.run.checkpoints == [50]
    with pytest.raises(ConfigError, match="keep must be a whole number from 1 up, not 0"):
        runs.create("digits", root=tmp_path, keep=0)


def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    with runs.create("digits", root=tmp_path, keep=2) as recorder:
        save(recorder, 10)
        save(recorder, 20)
    prefix = recorder.uuid[:6]
    assert runs.find(f"{prefix}@10", tmp_path).checkpoint().state == {"step": 10}
    with pytest.raises(RunError, match="no checkpoint at step 15; there are: 10, 20"):
        runs.find(f"{prefix}@15", tmp_path)
    with pytest.raises(RunError, match="no best checkpoint, because none was chosen"):
        runs.find(f"{prefix}@best", tmp_path)


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        assert recorder.last_step() is None
    with pytest.raises(RunError, match="has no checkpoint; its status is completed"):
        runs.find(recorder.uuid, tmp_path).load_model()


def test_a_damaged_checkpoint_is_named(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        save(recorder, 10)
    file = recorder.path / "checkpoints" / "10" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"10/model\.safetensors is damaged"):
        runs.find(recorder.uuid, tmp_path).checkpoint()


def test_rewinding_drops_rows_and_checkpoints_past_the_step(tmp_path):
    with runs.create("digits", root=tmp_path, keep=3) as recorder:
        for step in (10, 20, 30):
            recorder.log(step, 0, {"loss.train": float(step)})
            save(recorder, step, best=step == 30)
    with runs.resume(recorder.uuid, tmp_path) as recorder:
        recorder.rewind(20)
        run = recorder.run
        assert [row["step"] for row in run.metrics] == [10, 20]
        assert run.checkpoints == [10, 20]
        assert run.best_step is None
        assert run.summary == {"loss.train": 20.0}
        save(recorder, 30)
        assert recorder.run.best_step is None  # this 30 is another one
        recorder.rewind(20)
        recorder.log(25, 0, {"loss.train": 25.0})
    assert runs.find(recorder.uuid, tmp_path).curve("loss.train")[0] == [10, 20, 25]

    with runs.resume(recorder.uuid, tmp_path) as recorder:
        recorder.rewind(None)
    emptied = runs.find(recorder.uuid, tmp_path)
    assert (emptied.metrics, emptied.checkpoints, emptied.summary) == ([], [], {})


def _save_for_ever(root: Path, pipe) -> None:
    recorder = runs.resume(*pipe.recv(), keep=2)
    step = recorder.last_step() or 0
    recorder.rewind(step or None)
    pipe.send("at work")
    while True:
        step += 1
        recorder.log(step, 0, {"loss.train": float(step)})
        save(recorder, step, best=step % 5 == 0)
        save(recorder, step)  # the same step once more, as at the end of an epoch
        pipe.send(step)


def test_a_run_killed_at_any_moment_goes_on_from_a_whole_checkpoint(tmp_path):
    recorder = runs.create("digits", root=tmp_path)
    recorder.finish("interrupted")
    chance = random.Random(1)
    for _ in range(8):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=_save_for_ever, args=(tmp_path, theirs))
        process.start()
        ours.send((recorder.uuid, tmp_path))
        assert ours.recv() == "at work"
        saved = ours.recv()
        time.sleep(chance.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()

        run = runs.find(recorder.uuid, tmp_path)
        assert run.status == "interrupted"
        for step in run.checkpoints:
            read = run.checkpoint(step)
            assert read.state == {"step": step}
            assert set(read.weights["model"]["w"].tolist()) == {float(step)}
        last = run.checkpoints[-1]
        assert last >= saved
        logged = [row["step"] for row in run.metrics]
        assert logged[:last] == list(range(1, last + 1))
    assert last >= 8
    runs.resume(recorder.uuid, tmp_path).finish()
    left = [p.name for p in (recorder.path / "checkpoints").iterdir()]
    assert all(name.isdecimal() for name in left)


def _go_on_and_die(root: Path, uuid: str, operation: int) -> None:
    die_at(operation)
    with runs.resume(uuid, root) as recorder:
        recorder.rewind(10)
        recorder.log(20, 1, {"loss.train": 20.0})
        save(recorder, 10)
        save(recorder, 20)


def test_a_run_killed_before_any_one_file_operation_keeps_a_whole_checkpoint(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.log(10, 0, {"loss.train": 10.0})
        save(recorder, 10)
        recorder.finish("interrupted")
    for operation in itertools.count(1):
        arguments = (tmp_path, recorder.uuid, operation)
        process = FORK.Process(target=_go_on_and_die, args=arguments)
        process.start()
        process.join()
        run = runs.find(recorder.uuid, tmp_path)
        last = run.checkpoint()
        assert last.state["step"] in (10, 20)
        assert set(last.weights["model"]["w"].tolist()) == {float(last.state["step"])}
        assert [row["step"] for row in run.metrics] in ([10], [10, 20])
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert run.status == "interrupted" or run.ended is not None
    assert run.status == "completed"
    assert (run.checkpoints, run.summary) == ([20], {"loss.train": 20.0})
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["20"]
    assert operation > 40
