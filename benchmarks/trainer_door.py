"""What does `KDTrainer` cost over a bare loop? (`python -m benchmarks.trainer_door`)

The same student learns from the same teacher with the same loss on the same DataLoader: once in a
loop by hand, once in `KDTrainer.train` with run store and logging, once more with a train metric.
A step of about 5 ms makes what is fixed per step visible. Time is taken by the data, at the moment
when a batch is asked for: so it is that of steps, without making the run and its last checkpoint.
"""

from __future__ import annotations

import copy
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import Result, Spread, Timing, arguments, cpu_seconds, ratio
from distillation import KDTrainer, data
from distillation.losses import KDLogitsLoss
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel

BATCH, STEPS, FIRST = 64, 60, 5  # the first steps of a run are not timed


class Clocked(DataLoader):
    """A DataLoader that notes when each batch was asked for."""

    def __iter__(self) -> Iterator:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        batches = super().__iter__()
        for _ in range(len(self)):
            self.cpu.append(cpu_seconds())
            self.wall.append(time.perf_counter())
            yield next(batches)

    def per_step(self) -> tuple[float, float]:
        """CPU and wall seconds of a step, from step `FIRST` on."""
        steps = len(self.cpu) - 1 - FIRST
        return (self.cpu[-1] - self.cpu[FIRST]) / steps, (self.wall[-1] - self.wall[FIRST]) / steps


def loader() -> Clocked:
    """`STEPS` shuffled batches of the digits, normalised beforehand."""
    train, _ = data.digits()
    batch = data.TensorLoader(train, len(train), shuffle=False, keys=False).batch(0, 0)
    images, labels = (torch.cat([part] * 3)[: BATCH * STEPS] for part in batch)
    return Clocked(TensorDataset(images, labels), batch_size=BATCH, shuffle=True, drop_last=True)


def by_hand(student: nn.Module, teacher: nn.Module, batches: Clocked) -> nn.Module:
    """The bare loop."""
    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    teacher.eval().requires_grad_(False)
    student.train()
    loss = KDLogitsLoss(nn.CrossEntropyLoss(), temperature=4.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    torch.manual_seed(0)
    for x, y in batches:
        with torch.no_grad():
            t = teacher(x)
        total, _ = loss(Outputs(student(x), t), y)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student


class Outputs:
    """A pair of outputs, as plain as can be."""

    def __init__(self, student_output: torch.Tensor, teacher_output: torch.Tensor):
        self.student_output, self.teacher_output = student_output, teacher_output


def by_trainer(root: str, metrics: list[str]) -> Callable[..., nn.Module]:
    """KDTrainer with DataLoader, run store and logging; `metrics` of the training batches."""

    def run(student: nn.Module, teacher: nn.Module, batches: Clocked) -> nn.Module:
        student = copy.deepcopy(student)
        KDTrainer("trainer_door", root).train(
            student=student,
            teacher=copy.deepcopy(teacher),
            training_params={
                "max_epochs": 1,
                "loss": KDLogitsLoss(nn.CrossEntropyLoss(), temperature=4.0),
                "initial_lr": 0.01,
                "optimizer_params": {"momentum": 0.9},
                "train_metrics_list": metrics,
                "seed": 0,
                "silent_mode": True,
            },
            train_loader=batches,
        )
        return student

    return run


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__, rounds=51, argv=argv)
    torch.manual_seed(0)
    teacher, student = DigitsLargeModel(), DigitsSmallModel()
    batches = loader()
    timings: dict[str, Timing] = {}
    weights: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as root:
        variants = {
            "by_hand": by_hand,
            "trainer": by_trainer(root, []),
            "trainer_with_metric": by_trainer(root, ["Accuracy"]),
        }
        timings = {name: Timing() for name in variants}
        for number in range(-1, options.rounds):
            for name in list(variants) if number % 2 else reversed(variants):
                gc.collect()
                gc.disable()
                try:
                    trained = variants[name](student, teacher, batches)
                finally:
                    gc.enable()
                weights[name] = torch.cat([p.detach().flatten() for p in trained.parameters()])
                if number >= 0:
                    cpu, wall = batches.per_step()
                    timings[name].cpu.append(cpu)
                    timings[name].wall.append(wall)
    result = Result("trainer_door", "What does KDTrainer cost over a bare loop?")
    result.timings = timings
    for name, what in (
        ("trainer", "step_ratio"),
        ("trainer_with_metric", "step_ratio_with_metric"),
    ):
        for clock, suffix in (("cpu", ""), ("wall", "_wall")):
            spread = ratio(timings, name, "by_hand", clock)
            result.figure(what + suffix, spread, "×", f"{clock} time of a step, over by hand")
    plain = Spread.of([1000 * t for t in timings["by_hand"].cpu])
    result.figure("step_by_hand", plain, "ms", "CPU time of a step by hand")
    same = all(torch.equal(weights["by_hand"], w) for w in weights.values())
    result.figure("same_bits", float(same), "", "1: the trained weights are equal")
    result.settings = {
        "teacher": type(teacher).__name__,
        "student": type(student).__name__,
        "batch_size": BATCH,
        "steps_timed": STEPS - 1 - FIRST,
        "data": "sklearn digits, 8×8, in a DataLoader without workers",
        "trainer": "run store, rows every 50 batches, KDLogitsLoss at T=4",
    }
    result.write(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
