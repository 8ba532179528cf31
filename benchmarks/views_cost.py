"""What do K = 4, 16, 64, 162 views of an image cost in accuracy?

A student that sees K fixed views of each image needs a table K/162 as large as one that sees all.
This trains students from one teacher with each K and several seeds, and compares their accuracy on
the test images with that of students that see all views.

Hours of work for CIFAR-10, so it is resumable: the runs are those of the run store, finished ones
are read, interrupted ones go on, missing ones are made. Stop it at any moment, start it again.

    python -m benchmarks.views_cost --teacher 3fa9 --epochs 20 --seeds 3
    python -m benchmarks.views_cost --experiment digits --teacher 3fa9 --views 1 3 9 --epochs 3
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import HERE, RESULTS, Result, Spread
from distillation import runs
from distillation.errors import RunError
from distillation.runs import Run

ALL = {"cifar10": 162, "digits": 9}
METRIC = "accuracy.test"


def matching(teacher: Run, experiment: str, config: dict[str, object], root: str | None):
    """The student runs of this teacher with exactly these configuration values, newest first."""
    for run in runs.list(root, experiment=experiment):
        same = all(run.config.get(key) == value for key, value in config.items())
        if same and run.parent_uuid == teacher.uuid and run.status != "running":
            yield run


def student(teacher: Run, experiment: str, config: dict[str, object], root: str | None) -> Run:
    """The completed run with this configuration: found, taken up again, or made."""
    found = list(matching(teacher, experiment, config, root))
    for run in found:
        if run.status == "completed":
            return run
    command = [sys.executable, "-m", f"experiments.{experiment}.distill"]
    if found:
        command += ["--resume", found[0].uuid]
    else:
        command += ["--teacher", teacher.uuid]
        for key, value in config.items():
            command += ["--set", f"{key}={value}"]
    if root is not None:
        command += ["--runs", root]
    subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
    for run in matching(teacher, experiment, config, root):
        if run.status == "completed":
            return run
    raise RunError(f"{' '.join(command)} has left no completed run")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="UUID of the teacher's run")
    parser.add_argument("--experiment", choices=sorted(ALL), default="cifar10")
    parser.add_argument("--views", type=int, nargs="+", help="default: 4 16 64 and all")
    parser.add_argument("--seeds", type=int, default=3, help="students of each K")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", help="root of the run store")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    every = ALL[options.experiment]
    ks = options.views or [k for k in (4, 16, 64) if k < every] + [every]
    teacher = runs.find(options.teacher, options.runs)

    accuracies: dict[int, list[float]] = {k: [] for k in ks}
    for seed in range(options.seeds):
        for k in ks:
            config = {
                "views_per_image": 0 if k == every else k,
                "seed": seed,
                "epochs": options.epochs,
                "precision": options.precision,
                "teacher_table": "auto",
            }
            run = student(teacher, options.experiment, config, options.runs)
            accuracies[k].append(run.summary[METRIC])
            print(f"K={k} seed {seed}: {run.summary[METRIC]:.4f} ({run.uuid[:8]})", flush=True)

    name = "views_cost" if options.experiment == "cifar10" else f"views_cost_{options.experiment}"
    result = Result(name, "What do K views of each image cost in accuracy?")
    result.settings = {
        "experiment": options.experiment,
        "epochs": options.epochs,
        "seeds": options.seeds,
        "precision": options.precision,
        "teacher": f"{teacher.experiment} {teacher.name}",
        "teacher_accuracy": teacher.summary.get(METRIC),
    }
    for k, values in accuracies.items():
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        result.figure(
            f"accuracy_{k}_views",
            Spread.of(values),
            unit="",
            what=f"test accuracy, {len(values)} seeds, mean {statistics.mean(values):.4f}, "
            f"standard deviation {deviation:.4f}",
        )
    result.write(options.out)


if __name__ == "__main__":
    main()
