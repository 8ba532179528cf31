"""A training that begins in a fork is what one in a new process is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from experiment_case import CHECKOUT, last_weights, rows

from distillation import runs
from distillation.errors import RunError
from experiments.warm import Fork, ForkServer, NewProcess, _server, start_training

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
    # A job in the background ignores Ctrl-C, and so would all that it starts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    _server.cache_clear()
    yield tmp_path
    signal.signal(signal.SIGINT, before)


def ended(process) -> tuple[str, int]:
    output = process.lines.read()
    code, seconds = process.wait()
    assert seconds > 0
    return output, code


def test_both_see_the_same(told, monkeypatch):
    monkeypatch.setenv("VALUE", "given now")
    seen = []
    for kind in (start_training, NewProcess):
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
    process = start_training("told", [])
    assert isinstance(process, Fork)
    assert ended(process)[1] == 0


def test_code_that_was_changed_meanwhile_is_what_runs(told):
    for text in ("first", "second"):
        (told / "told.py").write_text(f"print('{text}')")
        assert ended(start_training("told", [])) == (f"{text}\n", 0)


@pytest.mark.parametrize("kind", [start_training, NewProcess])
def test_how_it_ended_is_told(told, kind, capfd):
    assert ended(kind("told", ["fail"]))[1] == 7
    assert ended(kind("told", ["raise"]))[1] == 1
    assert "KeyError: 'nothing of the kind'" in capfd.readouterr().err


@pytest.mark.parametrize("kind", [start_training, NewProcess])
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


def test_a_server_that_was_killed_is_an_error_to_its_trainings_and_not_to_later_ones(told):
    server = ForkServer()
    assert ended(server.start("told", []))[1] == 0
    running = server.start("told", ["wait"])
    server.process.kill()
    server.process.wait()
    with pytest.raises(RunError, match=f"process {server.process.pid}, .* was killed, .*--resume"):
        running.wait()
    running.terminate()
    with pytest.raises(OSError):
        server.start("told", [])
    # The next one is a new process
    mine = start_training("told", [])
    mine.server.process.kill()
    mine.server.process.wait()
    assert isinstance(start_training("told", []), NewProcess)


def test_an_environment_too_long_for_a_message_is_no_obstacle(told, monkeypatch):
    for name in ("VALUE", "OTHER"):
        monkeypatch.setenv(name, 120_000 * "x")
    output, code = ended(start_training("told", []))
    assert code == 0
    assert len(json.loads(output)["value"]) == 120_000


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_for_the_training(told, sent):
    """As of Ctrl-C, `timeout`, or a cluster that ends a job."""
    (told / "waits.py").write_text(
        "from experiments.warm import start_training\n"
        "process = start_training('told', ['wait'])\n"
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(process.lines.readline() and process.lines.readline(), end='', flush=True)\n"
        "print(process.wait()[0])\n"
    )
    command = [sys.executable, "-u", "waits.py"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    parent = subprocess.Popen(command, text=True, start_new_session=True, **options)
    assert parent.stdout.readline() == "waiting\n"
    os.killpg(parent.pid, sent)
    output, errors = parent.communicate(timeout=60)
    assert (int(output), parent.returncode) == (-sent, 0), errors


def test_a_signal_just_after_the_start_is_not_lost(told):
    for _ in range(3):
        process = start_training("told", ["wait"])
        os.kill(process.pid, signal.SIGINT)
        process.lines.read()
        assert process.wait()[0] != 0


def test_the_weights_are_the_same_bits(tmp_path):
    made = []
    for number, kind in enumerate((start_training, NewProcess)):
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
