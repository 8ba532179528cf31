"""What a training prints, where it prints it, and what it leaves alone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest
import yaml
from experiment_case import CHECKOUT, wait_for

from distillation import runs


@pytest.fixture(scope="module")
def piped(tmp_path_factory):
    """`python -m experiments.digits.small`, as a user types it, in a home that is empty."""
    folder = tmp_path_factory.mktemp("piped")
    home = folder / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "LABML"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.digits.small", "--epochs=2", "--set=device=cpu"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done, folder


def test_the_last_line_names_the_run(piped):
    done, folder = piped
    word, uuid = done.stdout.splitlines()[-1].split(" ")
    assert word == "run:"
    # Where no root is named it lies in ./logs
    run = runs.find(uuid, root=folder / "logs")
    assert (run.uuid, run.status, run.experiment, run.name) == (
        uuid,
        "completed",
        "digits",
        "small",
    )


def test_the_record_says_where_and_in_what_precision_it_ran(piped):
    done, folder = piped
    run = runs.find(done.stdout.split()[-1], root=folder / "logs")
    assert (run.info["device"], run.info["precision"]) == ("cpu", "fp32")


def test_a_pipe_gets_a_line_an_epoch_and_no_escape_codes(piped):
    done, _ = piped
    assert "\x1b" not in done.stdout + done.stderr
    assert [line[:9] for line in done.stdout.splitlines()[1:-1]] == ["epoch 1/2", "epoch 2/2"]
    assert done.stderr == ""


def test_nothing_is_written_outside_the_store(piped):
    _, folder = piped
    assert list((folder / "home").rglob("*")) == []
    assert sorted(p.name for p in folder.iterdir()) == ["home", "logs"]


def test_labmls_own_record_of_the_configuration_holds_what_ours_does(piped):
    done, folder = piped
    run = runs.find(done.stdout.split()[-1], root=folder / "logs")
    labmls = yaml.safe_load((run.path / "configs.yaml").read_text())
    given = {k: v["value"] for k, v in labmls.items() if v["is_explicitly_specified"]}
    assert {"epochs": 2, "device": "cpu"}.items() <= given.items()
    assert given.items() <= run.config.items()


def test_no_file_of_the_run_holds_an_escape_code_or_the_address_of_this_machine(piped):
    import uuid

    _, folder = piped
    address = f"{uuid.getnode():012x}"
    binary = (".safetensors", ".pt")
    files = [p for p in (folder / "logs").rglob("*") if p.is_file() and p.suffix not in binary]
    assert {"run.json", "config.json", "metrics.jsonl", "log.jsonl"} <= {p.name for p in files}
    for path in files:
        content = path.read_bytes()
        assert b"\x1b[" not in content, path
        assert address.encode() not in content, path


def test_the_statistics_of_every_parameter_are_in_the_row_of_the_epoch(piped):
    _, folder = piped
    (run,) = runs.list(folder / "logs")
    names = [name for name in run.load_model().state_dict() if "running" not in name]
    parameters = [name for name in names if "num_batches" not in name]
    last = run.metrics[-1]
    for name in parameters:
        for kind in ("param", "grad"):
            for what in ("norm", "mean", "std"):
                assert isinstance(last[f"{kind}.{name}.{what}"], float)


def in_a_terminal(warm, root, **environment):
    ours, theirs = pty.openpty()
    job = {"name": "digits.small", "arguments": ["--epochs", "1", "--runs", str(root)]}
    job |= {"out": os.ttyname(theirs), "err": str(root) + ".err"}
    job |= {"environment": {"TERM": "xterm", **environment}}
    pid = warm._ask(job)
    shown = b""
    os.set_blocking(ours, False)

    def read():
        nonlocal shown
        try:
            shown += os.read(ours, 65536)
        except BlockingIOError:
            return b"run: " in shown and shown.endswith(b"\n")
        return False

    wait_for(read)
    assert warm._ask({"wait": pid}) == 0
    os.close(ours)
    os.close(theirs)
    return shown.decode()


def test_a_terminal_gets_a_live_bar(warm, tmp_path):
    shown = in_a_terminal(warm, tmp_path / "runs")
    assert "━" in shown
    assert "23/23" in shown
    assert "\x1b[3" in shown  # coloured
    # The bar has been wiped before the last line is printed
    assert re.fullmatch(r"(\x1b\[[0-9;]*[A-Za-z]|\r)*run: [0-9a-f]{32}", shown.splitlines()[-1])


def test_no_color_is_respected(warm, tmp_path):
    shown = in_a_terminal(warm, tmp_path / "runs", NO_COLOR="1")
    assert "epoch 1/1" in shown
    assert "\x1b[3" not in shown
