"""What do K = 4, 16, 64, 162 views of an image cost in accuracy?

A student that sees K fixed views of each image needs a table K/162 as large as one that sees all.
This trains students from one teacher with each K and several seeds, and compares their accuracy on
the test images with that of students that see all views: with the same seed, so that weights and
order of the images are the same.

Hours of work for CIFAR-10, so it is resumable: the runs are those of the run store, finished ones
are read, interrupted ones go on, missing ones are made. Stop it at any moment, start it again. The
figures are written whenever a seed is complete.

    python -m benchmarks.views_cost --teacher 3fa9 --epochs 20 --seeds 3
    python -m benchmarks.views_cost --teacher 3fa9 --subset 10000 --epochs 30 --seeds 2
    python -m benchmarks.views_cost --experiment digits --teacher 3fa9 --views 1 3 9 --epochs 3
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.common import HERE, RESULTS, Result, Spread
from distillation import runs
from distillation.errors import RunError
from distillation.runs import Run

ALL = {"cifar10": 162, "digits": 9}
METRIC = "accuracy.test"
# What has no bearing on the accuracy: two runs may differ in these and be the same
INDIFFERENT = {"data", "device", "threads", "log_every", "save_seconds", "compile"}


def whole_config(
    experiment: str, teacher: Run, config: Mapping[str, object], root: str | None
) -> dict[str, object]:
    """The student's whole configuration, defaults included, as a run records it."""
    from experiments.command_line import parse

    configs = importlib.import_module(f"experiments.{experiment}.distill").Configs
    place = [] if root is None else ["--runs", root]
    return parse(
        configs,
        ["--teacher", teacher.uuid, *place, *_sets(config)],
        title="",
        has_teacher=True,
    ).config


def _sets(config: Mapping[str, object]) -> list[str]:
    return [text for key, value in config.items() for text in ("--set", f"{key}={value}")]


def matching(
    teacher: Run, experiment: str, config: Mapping[str, object], root: str | None
) -> Iterator[Run]:
    """The student runs of this teacher with exactly this configuration, newest first."""
    wanted = {key: value for key, value in config.items() if key not in INDIFFERENT}
    for run in runs.list(root, experiment=experiment):
        same = all(run.config.get(key) == value for key, value in wanted.items())
        if same and run.parent_uuid == teacher.uuid and run.status != "running":
            yield run


def student(teacher: Run, experiment: str, config: dict[str, object], root: str | None) -> Run:
    """The completed run with this configuration: found, taken up again, or made."""
    whole = whole_config(experiment, teacher, config, root)
    found = list(matching(teacher, experiment, whole, root))
    for run in found:
        if run.status == "completed":
            return run
    command = [sys.executable, "-m", f"experiments.{experiment}.distill"]
    if found:
        command += ["--resume", found[0].uuid]
    else:
        command += ["--teacher", teacher.uuid, *_sets(config)]
    if root is not None:
        command += ["--runs", root]
    subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
    for run in matching(teacher, experiment, whole, root):
        if run.status == "completed":
            return run
    raise RunError(f"{' '.join(command)} has left no completed run")


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """`0.8294 ± 0.0012 (3 seeds)`, with the sample standard deviation; without it for one seed."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (1 seed)"
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f} ({len(values)} seeds)"


def report(accuracies: Mapping[int, Sequence[float]], every: int, result: Result) -> None:
    """Record accuracy, and cost over seeing all `every` views, for each K."""
    for k, values in accuracies.items():
        mean = mean_and_deviation(values, 4)
        result.figure(f"accuracy_{k}_views", Spread.of(values), "", f"test accuracy, mean {mean}")
    for k, values in accuracies.items():
        if k != every and every in accuracies:
            pairs = zip(accuracies[every], values, strict=True)
            costs = [100 * (whole - part) for whole, part in pairs]
            what = f"lost over all {every}, same seed, mean {mean_and_deviation(costs, 2)}"
            result.figure(f"cost_{k}_views", Spread.of(costs), "points", what)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="UUID of the teacher's run")
    parser.add_argument("--experiment", choices=sorted(ALL), default="cifar10")
    parser.add_argument("--views", type=int, nargs="+", help="default: 4 16 64 and all")
    parser.add_argument("--seeds", type=int, default=3, help="students of each K: seeds 0, 1, …")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--subset", type=int, default=0, help="of the training images; 0 is all")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", help="root of the run store")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error("at least one seed")
    every = ALL[options.experiment]
    ks = options.views or [k for k in (4, 16, 64) if k < every] + [every]
    teacher = runs.find(options.teacher, options.runs)

    name = "views_cost" if options.experiment == "cifar10" else f"views_cost_{options.experiment}"
    name += "_subset" if options.subset else ""
    accuracies: dict[int, list[float]] = {k: [] for k in ks}
    for seed in range(options.seeds):
        for k in ks:
            config = {
                "views_per_image": 0 if k == every else k,
                "seed": seed,
                "epochs": options.epochs,
                "subset": options.subset,
                "precision": options.precision,
                "teacher_table": "auto",
            }
            run = student(teacher, options.experiment, config, options.runs)
            accuracies[k].append(run.summary[METRIC])
            print(f"K={k} seed {seed}: {run.summary[METRIC]:.4f} ({run.uuid[:8]})", flush=True)
        result = Result(name, "What do K views of each image cost in accuracy?", elsewhere=True)
        result.settings = {
            "experiment": options.experiment,
            "epochs": options.epochs,
            "subset": options.subset,
            "seeds": seed + 1,
            "precision": options.precision,
            "teacher": f"{teacher.experiment} {teacher.name}",
            "teacher_accuracy": teacher.summary.get(METRIC),
        }
        report(accuracies, every, result)
        result.write(options.out)


if __name__ == "__main__":
    main()
