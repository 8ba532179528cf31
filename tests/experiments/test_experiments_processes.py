"""Two processes make one run of an experiment."""

import os
import subprocess
import sys

from experiment_case import CHECKOUT, rows

from distillation import runs


def launched(*arguments, root):
    """`torchrun` with two processes, on the CPU."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    line += ["-m", "experiments.digits.distill", *arguments, "--runs", str(root)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        line,
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_record_one_run(trained, store):
    said = launched("--teacher", trained.uuid, "--epochs", "1", "--subset", "256", root=store)
    assert said.count("run: ") == 1
    (run,) = (run for run in runs.list(store) if run.uuid != trained.uuid)
    assert run.uuid == said.split()[-1]
    assert run.status == "completed"
    assert run.parent_uuid == trained.uuid
    assert run.checkpoints == [256]  # the samples of both processes
    assert [row["epoch"] for row in rows(run) if "accuracy.test" in row] == [0]
