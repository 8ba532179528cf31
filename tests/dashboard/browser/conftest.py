"""A store that real trainings on digits wrote, the dashboard as a process, and a Chromium."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chromium
import pages_kit as kit
import pytest
from filelock import FileLock
from pages_kit import HOSTILE

from distillation import runs


def _train(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, cwd=kit.ROOT, stdout=subprocess.PIPE, text=True)


def _trained(root: Path) -> None:
    """A teacher, two seeds of a small model alone, and the teacher's student, two epochs each."""
    options = ("--epochs", "2", "--runs", str(root))
    first = [
        _train("experiments.digits.large", *options, "--comment", "the teacher"),
        _train("experiments.digits.small", *options, "--seed", "0"),
        _train("experiments.digits.small", *options, "--seed", "1"),
    ]
    said = [process.communicate(timeout=200)[0] for process in first]
    assert all(process.returncode == 0 for process in first)
    teacher = said[0].rpartition("run: ")[2].strip()
    student = _train("experiments.digits.distill", *options, "--teacher", teacher)
    student.communicate(timeout=200)
    assert student.returncode == 0


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The root of what was trained, once for all processes of the tests."""
    if chromium.executable() is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    root = base / "dashboard_digits"
    with FileLock(base / "dashboard_digits.lock"):
        if not (root / "done").exists():
            shutil.rmtree(root, ignore_errors=True)
            _trained(root)
            (root / "done").touch()
    return root


@pytest.fixture(scope="session")
def store(trained, tmp_path_factory) -> Path:
    """A copy of it for this process, with a run of hostile texts and one that went wrong."""
    root = tmp_path_factory.mktemp("dashboard") / "runs"
    shutil.copytree(trained, root)
    config = {"epochs": 3, HOSTILE: HOSTILE, "seed": 0}
    options = {"comment": HOSTILE, "config": config, "root": root, "seed": 0}
    with runs.create("hostile", name=HOSTILE, **options) as recorder:
        recorder.log(10, 0, {"accuracy.test": 0.25, HOSTILE: 1.0})
        (recorder.path / "words.log").write_text(HOSTILE)
    with runs.create("broken", name="diverged", root=root) as recorder:
        for i, loss in enumerate([2.0, math.nan, 1.0, math.inf, -math.inf, 0.0, 0.5]):
            recorder.log(10 * (i + 1), i, {"loss.train": loss, "never.train": math.nan})
    return root


@pytest.fixture(scope="session")
def origin(store):
    with kit.dashboard(store) as address:
        yield address


@pytest.fixture(scope="session")
def window(trained, tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(window, origin):
    """A window that must stay without console errors and without requests to elsewhere."""
    window.open("about:blank")
    window.errors.clear()
    window.requests.clear()
    yield window
    errors, requests = list(window.errors), list(window.requests)
    if window.run("location.origin") == origin:
        window.run("localStorage.clear()")
    assert errors == []
    assert requests
    assert window.outside("http://127.0.0.1") == []


@pytest.fixture
def named(store) -> dict[str, runs.Run]:
    """The runs that were trained: large, small, small_1 (another seed) and distill."""
    found = runs.list(store, experiment="digits")
    return {run.name + (f"_{run.seed}" if run.seed else ""): run for run in found}
