"""A training that begins in a fork is what one in a new process is."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
import torch
from experiment_case import last_weights, rows

from distillation import runs
from experiments.warm import Fork, NewProcess, Nursery, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

# What `python -m told` sees, and how it ends
TOLD = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv[1:], "command": sys.orig_argv[1:], "name": __name__, "file": __file__,
    "folder": os.getcwd(), "value": os.environ.get("VALUE"), "pid": os.getpid(),
    "spec": sys.modules["__main__"].__spec__.name, "stdin": sys.stdin.fileno(),
}))
if "fail" in sys.argv:
    raise SystemExit(7)
if "raise" in sys.argv:
    raise KeyError("nothing of the kind")
if "wait" in sys.argv:
    print("waiting")
    import time
    time.sleep(60)
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    (tmp_path / "told.py").write_text(TOLD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(process) -> tuple[str, int]:
    output = process.lines.read()
    code, seconds = process.wait()
    assert seconds > 0
    return output, code


def test_both_see_the_same(told, monkeypatch):
    monkeypatch.setenv("VALUE", "given now")
    seen = []
    for kind in (start, NewProcess):
        output, code = ended(kind("told", ["--one", "two words"]))
        assert code == 0
        facts = json.loads(output)
        assert facts.pop("pid") != os.getpid()
        # Whether lines are buffered is no matter of the training's
        facts["command"] = [part for part in facts["command"] if part != "-u"]
        seen.append(facts)
    assert seen[0] == seen[1]
    assert seen[0]["value"] == "given now"
    assert seen[0]["argv"] == ["--one", "two words"]
    assert seen[0]["command"] == ["-m", "told", "--one", "two words"]
    assert (seen[0]["name"], seen[0]["folder"]) == ("__main__", str(told))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU each is a new process")
def test_without_a_gpu_a_training_is_a_fork(told):
    process = start("told", [])
    assert isinstance(process, Fork)
    assert ended(process)[1] == 0


def test_code_that_was_changed_meanwhile_is_what_runs(told):
    for text in ("first", "second"):
        (told / "told.py").write_text(f"print('{text}')")
        assert ended(start("told", [])) == (f"{text}\n", 0)


@pytest.mark.parametrize("kind", [start, NewProcess])
def test_how_it_ended_is_told(told, kind, capfd):
    assert ended(kind("told", ["fail"]))[1] == 7
    assert ended(kind("told", ["raise"]))[1] == 1
    assert "KeyError: 'nothing of the kind'" in capfd.readouterr().err


@pytest.mark.parametrize("kind", [start, NewProcess])
@pytest.mark.parametrize("how", ["asked", "killed"])
def test_one_that_was_ended_names_the_signal(told, kind, how):
    process = kind("told", ["wait"])
    facts = process.lines.readline()
    assert process.lines.readline() == "waiting\n", "a line comes when it is printed"
    if how == "asked":
        process.terminate()
        expected = -signal.SIGTERM
    else:
        os.kill(json.loads(facts)["pid"], signal.SIGKILL)
        expected = -signal.SIGKILL
    assert process.wait()[0] == expected


def test_without_the_process_that_starts_them_there_is_an_error(told):
    nursery = Nursery()
    assert ended(nursery.start("told", []))[1] == 0
    nursery.process.kill()
    nursery.process.wait()
    with pytest.raises(ChildProcessError, match=f"process {nursery.process.pid}, which starts"):
        nursery.start("told", [])


def test_the_weights_are_the_same_bits(tmp_path):
    made = []
    for number, kind in enumerate((start, NewProcess)):
        root = tmp_path / str(number)
        line = ["--epochs", "2", "--subset", "320", "--runs", str(root)]
        output, code = ended(kind("experiments.digits.small", line))
        assert code == 0
        made.append(runs.find(output.split()[-1], root=root))
    one, other = map(last_weights, made)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert rows(made[0]) == rows(made[1])
    assert made[0].info["git_commit"] == made[1].info["git_commit"]
    commands = [[part for part in run.info["command"] if part != "-u"][:3] for run in made]
    assert commands == 2 * [["python", "-m", "experiments.digits.small"]]
