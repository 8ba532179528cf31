"""Writing a run: status, metrics in time, checkpoints, resuming, kills."""

from __future__ import annotations

import atexit
import json
import math
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from runs_kit import FORK, save

from distillation import runs
from distillation.errors import ConfigError, RunError
from distillation.runs import metrics

# Status


def test_a_run_is_running_and_then_completed(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        assert runs.find(recorder.uuid, tmp_path).status == "running"
    run = runs.find(recorder.uuid, tmp_path)
    assert run.status == "completed"
    assert run.ended > run.started


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (ValueError("no such layer"), "crashed"),
        (SystemExit(2), "crashed"),
        (SystemExit(0), "completed"),
    ],
)
def test_how_a_run_ended_is_recorded(tmp_path, error, status):
    with pytest.raises(type(error)), runs.create("digits", root=tmp_path) as recorder:
        recorder.log(1, 0, {"loss.train": 1.0})
        raise error
    run = runs.find(recorder.uuid, tmp_path)
    assert run.status == status
    assert run.summary == {"loss.train": 1.0}
    expected = f"{type(error).__name__}: {error}" if status == "crashed" else None
    assert run.info.get("error") == expected


def test_finish_tells_the_end_once(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.finish("interrupted")
    recorder.finish("completed")
    assert runs.find(recorder.uuid, tmp_path).status == "interrupted"
    with pytest.raises(RunError, match=r"has ended .interrupted.; runs.resume goes on with it"):
        recorder.log(1, 0, {})
    with pytest.raises(ConfigError, match="unknown status 'done'"):
        recorder.finish("done")


def _record_and_wait(root: Path, pipe) -> None:
    recorder = runs.create("digits", root=root)
    save(recorder, 10)
    recorder.log(20, 1, {"loss.train": 0.25})
    pipe.send(recorder.uuid)
    time.sleep(60)


def _record_beside_a_worker(root: Path, pipe) -> None:
    recorder = runs.create("digits", root=root)
    worker = FORK.Process(target=time.sleep, args=(60,))  # as a DataLoader's
    worker.start()
    pipe.send((recorder.uuid, worker.pid))
    worker.join()


def started(target, root: Path):
    """A process that records a run, and what it says of it."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=target, args=(root, theirs))
    process.start()
    return process, ours.recv()


def test_a_resumed_run_notes_which_values_it_goes_on_with(tmp_path):
    config = {"training": {"epochs": 1, "rate": 0.1, "resume": False}}
    with runs.create("digits", config=config, root=tmp_path) as recorder:
        pass
    with runs.resume(recorder.uuid, tmp_path) as again:
        again.set_config({"training": {"epochs": 2, "rate": 0.1, "resume": True}, "new": 1})
    run = runs.find(recorder.uuid, tmp_path)
    assert run.info["resumed"][-1]["changed"] == {"training.epochs": [1, 2]}
    assert run.config["training"]["epochs"] == 2


def test_a_resumption_that_is_withdrawn_leaves_no_trace(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        pass
    before = runs.find(recorder.uuid, tmp_path).info
    runs.resume(recorder.uuid, tmp_path).withdraw()
    assert runs.find(recorder.uuid, tmp_path).info == before
    runs.resume(recorder.uuid, tmp_path).finish()  # nobody holds it


def test_a_refused_resumption_leaves_the_run_as_it_was(tmp_path):
    with runs.create("digits", config={"epochs": 1}, root=tmp_path) as recorder:
        pass
    before = runs.find(recorder.uuid, tmp_path)
    expected = (before.info, before.config, before.status)
    with pytest.raises(ConfigError), runs.resume(recorder.uuid, tmp_path) as again:
        again.set_config({"epochs": 2})
        again.update(comment="longer")
        raise ConfigError("refused")
    after = runs.find(recorder.uuid, tmp_path)
    assert (after.info, after.config, after.status) == expected


def test_a_refused_resumption_of_a_run_without_configuration_leaves_none(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        pass
    (recorder.path / "config.json").unlink()
    with pytest.raises(ConfigError), runs.resume(recorder.uuid, tmp_path) as again:
        again.set_config({"epochs": 2})
        raise ConfigError("refused")
    assert not (recorder.path / "config.json").exists()


def _log(recorder):
    recorder.log(1, 0, {"loss.train": 1.0})


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (_log, ConfigError),
        (lambda recorder: save(recorder, 1), ConfigError),
        (lambda recorder: recorder.rewind(None), ConfigError),
        (lambda recorder: None, ValueError),
    ],
    ids=["row", "checkpoint", "rewind", "an error that is no refusal"],
)
def test_a_resumed_run_that_fails_at_work_is_crashed(tmp_path, work, error):
    with runs.create("digits", root=tmp_path) as recorder:
        pass
    with pytest.raises(error), runs.resume(recorder.uuid, tmp_path) as again:
        work(again)
        raise error("failed")
    run = runs.find(recorder.uuid, tmp_path)
    assert (run.status, run.info["error"]) == ("crashed", f"{error.__name__}: failed")


def test_a_killed_run_reads_as_interrupted_and_can_be_resumed(tmp_path):
    process, uuid = started(_record_and_wait, tmp_path)
    run = runs.find(uuid, tmp_path)
    assert run.status == "running"
    assert runs.list(tmp_path, status="running")[0].uuid == uuid
    with pytest.raises(RunError, match="is running: another process writes it"):
        runs.resume(uuid, tmp_path)

    os.kill(process.pid, signal.SIGKILL)
    process.join()

    with pytest.raises(RunError, match="names a step, but this is about the whole run"):
        runs.resume(f"{uuid}@10", tmp_path)
    assert run.status == "interrupted"
    assert runs.list(tmp_path, status="interrupted")[0].uuid == uuid
    with pytest.raises(ConfigError), runs.resume(uuid, tmp_path):
        raise ConfigError("refused")
    assert runs.find(uuid, tmp_path).status == "interrupted"
    with runs.resume(uuid[:8], tmp_path) as recorder:
        assert recorder.run.status == "running"
        assert recorder.last_step() == 10
    resumed = runs.find(uuid, tmp_path)
    assert resumed.status == "completed"
    assert resumed.started == run.started
    assert len(resumed.info["resumed"]) == 1


def test_a_worker_that_outlives_the_killed_process_does_not_hold_the_run(tmp_path):
    process, (uuid, worker) = started(_record_beside_a_worker, tmp_path)
    assert runs.find(uuid, tmp_path).status == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    try:
        assert runs.find(uuid, tmp_path).status == "interrupted"
    finally:
        os.kill(worker, signal.SIGKILL)


# Metrics


def test_metrics_are_on_disk_within_five_seconds_without_another_call(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.log(10, 0, {"loss.train": 0.5})
        logged = time.monotonic()
        while not metrics.read(recorder.path / "metrics.jsonl"):
            assert time.monotonic() - logged < 5
            time.sleep(0.05)
    assert runs.find(recorder.uuid, tmp_path).summary == {"loss.train": 0.5}


def _fork_while_recording(root: Path, pipe) -> None:
    recorder = runs.create("digits", root=root)
    recorder.log(10, 0, {"loss.train": 0.5})
    if os.fork() == 0:
        atexit._run_exitfuncs()  # as the interpreter does when it ends
        os._exit(0)
    os.wait()
    recorder.finish()
    pipe.send(recorder.uuid)


def test_a_forked_child_writes_no_row_twice(tmp_path):
    process, uuid = started(_fork_while_recording, tmp_path)
    process.join()
    assert [row["step"] for row in runs.find(uuid, tmp_path).metrics] == [10]


def test_the_summary_holds_the_last_value_of_each_metric(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.log(10, 0, {"loss.train": 0.5, "loss.test": 0.7})
        recorder.log(20, 1, {"loss.train": math.inf})
    run = runs.find(recorder.uuid, tmp_path)
    assert run.summary == {"loss.train": None, "loss.test": 0.7}
    steps, values = run.curve("loss.train")
    assert steps == [10, 20]
    assert values[0] == 0.5
    assert math.isnan(values[1])
    with pytest.raises(RunError, match=r"unknown metric 'loss.tarin'; did you mean 'loss.train'"):
        run.curve("loss.tarin")


def _log_with_a_file_size_limit(root: Path, pipe) -> None:
    recorder = runs.create("digits", root=root)
    recorder.log(0, 0, {"loss.train": 0.0})
    assert recorder.run.metrics  # which flushes
    size = (recorder.path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
    recorder.log(1, 0, {"loss.train": 1.0})
    try:
        failure = repr(recorder.run)
    except RunError as error:
        failure = str(error)
    rows = len(metrics.read(recorder.path / "metrics.jsonl"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    recorder.finish()
    pipe.send((recorder.uuid, failure, rows))


def test_rows_that_a_full_disk_refuses_are_kept_until_there_is_room(tmp_path):
    process, (uuid, failure, rows) = started(_log_with_a_file_size_limit, tmp_path)
    process.join()
    assert "metrics.jsonl" in failure
    assert rows == 1
    assert [row["step"] for row in runs.find(uuid, tmp_path).metrics] == [0, 1]


# run.json and config.json


def test_fields_are_merged_into_the_run(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.update(facts={"parameters": 10}, evaluation={"dataset": "digits"})
        recorder.update(facts={"macs": 20}, name="renamed")
        recorder.set_config({"epochs": 2, "optimizer": {"momentum": 0.9}})
        with pytest.raises(ConfigError, match="status, uuid cannot be set"):
            recorder.update(uuid="0", status="completed")
        with pytest.raises(ConfigError, match=r"a object at 'facts.x' cannot be written"):
            recorder.update(facts={"x": object()})
    run = runs.find(recorder.uuid, tmp_path)
    assert run.facts == {"parameters": 10, "macs": 20}
    assert run.name == "renamed"
    assert run.info["evaluation"] == {"dataset": "digits"}
    assert run.config == {"epochs": 2, "optimizer": {"momentum": 0.9}}


def test_a_run_is_plain_json_files(tmp_path):
    with runs.create("digits", config={"a": 1}, root=tmp_path) as recorder:
        save(recorder, 10)
    names = {p.name for p in recorder.path.iterdir()}
    assert {"run.json", "config.json", "metrics.jsonl", "checkpoints"} - names <= {"metrics.jsonl"}
    manifest = json.loads((recorder.path / "checkpoints/10/manifest.json").read_text())
    assert sorted(manifest["files"]) == ["model.safetensors", "state.pt"]
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
    assert manifest["info"] == {"epoch": 0}
