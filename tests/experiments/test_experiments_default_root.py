"""Runs in `./logs`, where they are when nothing else is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from distillation import runs

CHECKOUT = Path(__file__).resolve().parents[2]


def small(*arguments, folder):
    """`python -m experiments.digits.small …` as it is typed, in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.digits.small", "--subset", "128", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return runs.find(done.stdout.split()[-1], folder / "logs")


def test_a_killed_run_in_the_default_root_goes_on(tmp_path):
    first = small("--epochs", "1", folder=tmp_path)
    # labml's files lie beside the store's, in the run's own folder
    assert (first.path / "run.yaml").exists()
    assert [folder.name for folder in (tmp_path / "logs").iterdir()] == ["digits"]
    # What a killed run leaves behind, and labml would stop at
    (first.path / "run.pid").write_text("1")
    again = small("--resume", first.uuid, "--epochs", "2", folder=tmp_path)
    assert (again.uuid, again.status, again.config["epochs"]) == (first.uuid, "completed", 2)
