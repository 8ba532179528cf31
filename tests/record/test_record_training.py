"""A part that was killed goes on where it was, with what its first process was allowed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from distillation import runs
from distillation.data import cifar10
from experiments.record.protocol import DISTILL, LARGE, Part
from experiments.record.subset import write_subset
from experiments.record.training import Runs, arguments

pytestmark = pytest.mark.timeout(300)

VALUES = {"epochs": 1, "threads": 1}
NOTHING = {"schedule": "constant", "optimizer.learning_rate": 0.0, "batch_size": 32}
UNTRAINED = Part("untrained", "untrained", LARGE, VALUES | NOTHING)
STUDENT = Part("from_untrained", "from_untrained", DISTILL, VALUES, "untrained", weak_teacher=True)


@pytest.fixture
def store(tmp_path, cifar_archive) -> Runs:
    write_subset(*cifar10(cifar_archive), tmp_path / "data", per_class=(8, 5))
    return Runs(tmp_path / "logs", str(tmp_path / "data"))


def test_a_killed_student_of_an_untrained_teacher_goes_on(store):
    teacher = store.train(UNTRAINED).uuid
    command = [sys.executable, "-u", "-m", STUDENT.module, *arguments(STUDENT, teacher)]
    command += ["--runs", str(store.root), "--data", store.data]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    killed = next(line.split()[2] for line in process.stdout if line.startswith("recording run "))
    process.send_signal(signal.SIGKILL)
    process.wait()

    run = store.train(STUDENT, teacher)
    assert run.uuid == killed
    assert run.status == "completed"
    # What was killed and what went on are told apart, with the code that each ran
    assert [again["git_commit"] for again in run.info["resumed"]] == [run.info["git_commit"]]
    assert store.train(STUDENT, teacher).uuid == killed, "a run that has ended is trained again"
    assert len(runs.list(store.root)) == 2
