"""Create, find, list, compare, remove."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation import runs
from distillation.errors import ConfigError, RunError
from distillation.runs import store


def record(root: Path, experiment: str = "digits", **options) -> runs.Run:
    """A completed run with one metric."""
    with runs.create(experiment, root=root, **options) as recorder:
        recorder.log(10, 0, {"loss.train": 0.5})
    return runs.find(recorder.uuid, root)


def uuid(start: str) -> str:
    return start + uuid4().hex[len(start) :]


def test_a_run_records_where_it_came_from(tmp_path):
    teacher = record(tmp_path, "large")
    run = record(
        tmp_path,
        "small",
        name="first",
        comment="a trial",
        config={"optimizer": {"learning_rate": 0.1}, "epochs": 3},
        parent=teacher,
        seed=7,
    )
    info = json.loads((tmp_path / "small" / run.uuid / "run.json").read_text())
    assert info["uuid"] == run.uuid
    assert info["name"] == "first"
    assert info["comment"] == "a trial"
    assert info["status"] == "completed"
    assert info["started"] < info["ended"]
    assert info["command"][0] == "python"
    assert {"python", "torch", "distillation"} <= info["versions"].keys()
    assert info["threads"] >= 1
    assert info["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", info["git_commit"])
    assert info["seed"] == 7
    assert info["parent"] == teacher.uuid
    assert info["summary"] == {"loss.train": 0.5}
    assert run.parent.uuid == teacher.uuid
    assert run.config == {"optimizer": {"learning_rate": 0.1}, "epochs": 3}
    assert run.curve("loss.train") == ([10], [0.5])
    assert [child.uuid for child in runs.children(teacher)] == [run.uuid]


def test_a_uuid_is_random_and_names_no_machine(tmp_path):
    run = record(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", run.uuid)


def test_the_root_is_the_argument_else_the_environment_else_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path / "env"))
    assert runs.root() == tmp_path / "env"
    assert runs.root(tmp_path) == tmp_path
    monkeypatch.delenv("DISTILLATION_RUNS")
    assert runs.root() == Path("logs")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "-flag", "a\n", "x" * 101, 3])
def test_an_experiment_must_be_a_folder_name(tmp_path, name):
    with pytest.raises(ConfigError, match="makes no folder"):
        runs.create(name, root=tmp_path)


def test_a_given_uuid_is_checked_and_never_reused(tmp_path):
    with pytest.raises(ConfigError, match="'abc' is no run UUID"):
        runs.create("digits", uuid="abc", root=tmp_path)
    run = record(tmp_path, uuid=uuid("abc"))
    with pytest.raises(ConfigError, match=f"there is a run {run.uuid} already"):
        runs.create("digits", uuid=run.uuid, root=tmp_path)


# Finding


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=12),
    st.text("ab", min_size=1, max_size=7),
)
@settings(max_examples=40, deadline=None)
def test_any_unique_prefix_finds_the_run_and_no_other_does(starts, prefix):
    names = {start.ljust(32, "0") for start in starts}
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            folder = Path(root, "exp", name)
            folder.mkdir(parents=True)
            info = {"uuid": name, "status": "completed", "started": "2026-01-01T00:00:00"}
            (folder / "run.json").write_text(json.dumps(info))
        matching = [name for name in names if name.startswith(prefix)]
        if len(matching) == 1:
            assert runs.find(prefix, root).uuid == matching[0]
        else:
            with pytest.raises(RunError) as error:
                runs.find(prefix, root)
            expected = f"begins {len(matching)} runs" if matching else "unknown run"
            assert expected in str(error.value)
        for name in names:
            assert runs.find(name, root).uuid == name


def test_an_ambiguous_prefix_lists_the_runs_with_experiment_and_start(tmp_path):
    one, two = record(tmp_path, "large", uuid=uuid("ab1")), record(tmp_path, uuid=uuid("ab2"))
    with pytest.raises(RunError, match="'ab' begins 2 runs; give more of it") as error:
        runs.find("ab", tmp_path)
    for run in (one, two):
        line = f"{run.uuid}  {run.experiment}  started {run.started[:19]}"
        assert line in str(error.value)


def test_an_unknown_run_lists_the_nearest(tmp_path):
    near = record(tmp_path, uuid=uuid("abcdef"))
    far = record(tmp_path, uuid=uuid("0123"))
    with pytest.raises(RunError, match=r"unknown run 'abcdff' in .*; the nearest are:") as error:
        runs.find("abcdff", tmp_path)
    assert f"{near.uuid}  digits  started" in str(error.value)
    assert far.uuid not in str(error.value)


def test_the_name_of_an_experiment_lists_its_newest_runs(tmp_path):
    run = record(tmp_path, "digits_small")
    with pytest.raises(RunError, match="'digits_small' is an experiment, not a run") as error:
        runs.find("digits_small", tmp_path)
    assert run.uuid in str(error.value)


def test_an_empty_store_says_so(tmp_path):
    with pytest.raises(RunError, match=r"unknown run 'ab' in .*: there are no runs"):
        runs.find("ab", tmp_path)
    with pytest.raises(RunError, match=r"unknown run 'ab' in .*: there is no such folder"):
        runs.find("ab", tmp_path / "absent")


def test_a_uuid_is_found_with_dashes_and_capitals_too(tmp_path):
    run = record(tmp_path, uuid=uuid("abcdef0123456789"))
    assert runs.find("ABCDEF01-2345", tmp_path).uuid == run.uuid


@given(st.text("0123456789abcdef", min_size=1, max_size=32), st.integers(0))
@settings(deadline=None)
def test_run_at_step_is_split(prefix, step):
    assert runs.parse(prefix) == (prefix, None)
    assert runs.parse(f"{prefix}@{step}") == (prefix, step)
    assert runs.parse(f"{prefix}@{step:_}") == (prefix, step)
    assert runs.parse(f"{prefix}@best") == (prefix, "best")


@pytest.mark.parametrize(
    "text", ["", "@", "@100", "ab@", "ab@x", "ab@-1", "ab@1.5", "ab@1@2", "a@²"]
)
def test_what_names_no_run_or_no_step_is_refused(text):
    with pytest.raises(RunError, match=r"names no run|is no step"):
        runs.parse(text)


# Listing


def test_runs_are_listed_newest_first_and_by_experiment_and_status(tmp_path):
    first, second = record(tmp_path, "large"), record(tmp_path, "small")
    with pytest.raises(ZeroDivisionError), runs.create("small", root=tmp_path) as crashed:
        raise ZeroDivisionError

    def uuids(**options) -> list[str]:
        return [run.uuid for run in runs.list(tmp_path, **options)]

    assert uuids() == [crashed.uuid, second.uuid, first.uuid]
    assert uuids(experiment="small") == [crashed.uuid, second.uuid]
    assert uuids(status="completed") == [second.uuid, first.uuid]
    assert uuids(experiment="small", status="crashed") == [crashed.uuid]
    with pytest.raises(ConfigError, match="unknown status 'complete'; did you mean 'completed'"):
        runs.list(tmp_path, status="complete")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "it has no run.json"),
        ("", "cannot be read"),
        ('{"uuid": ', "cannot be read"),
        ("[]", "holds no object"),
        ('{"uuid": "0"}', "its uuid is '0'"),
        ('{"uuid": "UUID", "status": "done"}', "its status is 'done'"),
        ('{"uuid": "UUID", "status": "completed", "started": 3}', "it started at 3"),
        (
            '{"uuid": "UUID", "status": "completed", "started": "", "summary": [1]}',
            "its summary is",
        ),
    ],
)
def test_an_unreadable_run_is_left_out_of_the_list_but_finding_it_says_why(tmp_path, content, why):
    run = record(tmp_path)
    broken = tmp_path / "digits" / uuid4().hex
    broken.mkdir()
    if content is not None:
        (broken / "run.json").write_text(content.replace("UUID", broken.name))

    assert [found.uuid for found in runs.list(tmp_path)] == [run.uuid]
    with pytest.raises(RunError, match=re.escape(why)):
        runs.find(broken.name, tmp_path)
    _, (left_out,) = runs.scan(tmp_path)
    assert broken.name in str(left_out)


def test_other_things_in_the_store_are_no_runs(tmp_path):
    record(tmp_path)
    (tmp_path / "digits" / "report").mkdir()
    (tmp_path / "digits" / "notes.txt").write_text("")
    (tmp_path / "file").write_text("")
    assert store.experiments(tmp_path) == ["digits"]
    assert len(runs.list(tmp_path)) == 1
    assert runs.scan(tmp_path)[1] == []


# Removing


def test_a_run_is_removed_with_everything_in_it(tmp_path):
    run = record(tmp_path)
    runs.remove(run)
    assert runs.list(tmp_path) == []
    assert list((tmp_path / "digits").iterdir()) == []


def test_a_folder_that_is_no_run_is_not_removed(tmp_path):
    runs.create("digits", root=tmp_path).finish()
    with pytest.raises(RunError, match="is no run's folder"):
        runs.remove(tmp_path / "digits", force=True)
    assert len(runs.list(tmp_path)) == 1


def test_a_teacher_is_removed_only_by_force(tmp_path):
    teacher = record(tmp_path, "large")
    student = record(tmp_path, "small", parent=teacher.uuid[:10])
    with pytest.raises(RunError, match="is the teacher of 1; remove them first") as error:
        runs.remove(teacher.uuid, root=tmp_path)
    assert student.uuid in str(error.value)
    runs.remove(teacher, force=True)
    assert [run.uuid for run in runs.list(tmp_path)] == [student.uuid]
    orphan = runs.find(student.uuid, tmp_path)
    assert orphan.parent is None
    assert orphan.parent_uuid == teacher.uuid


def test_a_running_run_is_never_removed(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        with pytest.raises(RunError, match="is running"):
            runs.remove(recorder.run, force=True)
        assert runs.find(recorder.uuid, tmp_path).status == "running"


def test_the_parent_must_be_a_run(tmp_path):
    with pytest.raises(RunError, match="unknown run 'ab'"):
        runs.create("small", parent="ab", root=tmp_path)
    with pytest.raises(ConfigError, match="not a int"):
        runs.create("small", parent=3, root=tmp_path)
    assert runs.list(tmp_path) == []


# Comparing


def test_runs_are_compared_by_config_metrics_and_facts(tmp_path):
    found = []
    for temperature, loss in ((2.0, 0.4), (4.0, 0.3)):
        config = {"kd": {"temperature": temperature}, "epochs": 2}
        if temperature == 4.0:
            config["extra"] = None
        with runs.create("digits", config=config, root=tmp_path) as recorder:
            recorder.log(10, 0, {"loss.test": loss, "accuracy.test": 0.9})
            recorder.log(20, 1, {"loss.test": loss + 1, "accuracy.test": 0.8})
            recorder.update(facts={"parameters": 1198, "macs": 5000})
        found.append(runs.find(recorder.uuid, tmp_path))
    one, two = (run.uuid for run in found)

    comparison = runs.compare([*found, found[0]])

    assert comparison.config == {"kd.temperature": {one: 2.0, two: 4.0}, "extra": {two: None}}
    assert comparison.final["loss.test"] == {one: 1.4, two: 1.3}
    assert comparison.best["loss.test"] == {one: (0.4, 10), two: (0.3, 10)}
    assert comparison.best["accuracy.test"][one] == (0.9, 10)
    assert comparison.facts["macs"] == {one: 5000, two: 5000}
    told = json.loads(json.dumps(comparison.to_dict()))
    assert [run["uuid"] for run in told["runs"]] == [one, two]
    assert told["metrics"]["loss.test"]["better"] == "lower"
    assert told["metrics"]["loss.test"]["best"][two] == {"value": 0.3, "step": 10}


def test_values_of_different_types_differ(tmp_path):
    found = [record(tmp_path, config={"flag": value}) for value in (1, True)]
    assert list(runs.compare(found).config) == ["flag"]


def test_comparing_takes_two_runs(tmp_path):
    run = record(tmp_path)
    with pytest.raises(RunError, match="at least two different runs, not 1"):
        runs.compare([run, run])


# Many processes

CREATE_FIVE = """
import sys
from distillation import runs
print("ready", flush=True)
sys.stdin.readline()
for i in range(5):
    with runs.create("digits", root=sys.argv[1]) as recorder:
        recorder.log(i, 0, {"loss.train": float(i)})
    print(recorder.uuid, flush=True)
"""


def test_ten_processes_create_runs_at_once(tmp_path):
    command = [sys.executable, "-c", CREATE_FIVE, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    made = {line for process in processes for line in process.communicate()[0].split()}

    assert [process.returncode for process in processes] == [0] * 10
    assert len(made) == 50
    found, skipped = runs.scan(tmp_path)
    assert {run.uuid for run in found} == made
    assert skipped == []
    assert all(run.status == "completed" and len(run.metrics) == 1 for run in found)
