"""What does `KDTrainer` cost over a bare loop? (`python -m benchmarks.trainer_door`)

The same student learns from the same teacher with the same loss on the same DataLoader: in a loop
by hand, and in `KDTrainer.train` with run store and logging, without and with a train metric. A
step of about 5 ms makes what is fixed per step visible. `benchmarks.doors` says how the two take
turns and what is timed.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.common import Result, arguments
from benchmarks.doors import STEPS, Clock, Variant, compare, digits, finish
from distillation import KDTrainer
from distillation.losses import KDLogitsLoss
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel


class Outputs:
    """A pair of outputs, as plain as can be."""

    def __init__(self, student_output: torch.Tensor, teacher_output: torch.Tensor):
        self.student_output, self.teacher_output = student_output, teacher_output


def by_hand(student: nn.Module, teacher: nn.Module) -> Variant:
    """The bare loop."""

    def run(clock: Clock) -> nn.Module:
        model, guest = copy.deepcopy(student), copy.deepcopy(teacher)
        guest.eval().requires_grad_(False)
        model.train()
        loss = KDLogitsLoss(nn.CrossEntropyLoss(), temperature=4.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for x, y in digits(clock):
            with torch.no_grad():
                t = guest(x)
            total, _ = loss(Outputs(model(x), t), y)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    return run


def by_trainer(student: nn.Module, teacher: nn.Module, root: str, metrics: list[str]) -> Variant:
    """KDTrainer with DataLoader, run store and logging; `metrics` of the training batches."""

    def run(clock: Clock) -> nn.Module:
        model = copy.deepcopy(student)
        KDTrainer("trainer_door", root).train(
            student=model,
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
            train_loader=digits(clock),
        )
        return model

    return run


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__, rounds=31, argv=argv, steps=STEPS)
    torch.manual_seed(0)
    teacher, student = DigitsLargeModel(), DigitsSmallModel()
    result = Result("trainer_door", "What does KDTrainer cost over a bare loop?")
    same = True
    for figure, metrics in (("step_ratio", []), ("step_ratio_with_metric", ["Accuracy"])):
        door = "trainer_with_metric" if metrics else "trainer"
        with tempfile.TemporaryDirectory() as root:
            variants = {
                "by_hand": by_hand(student, teacher),
                door: by_trainer(student, teacher, root, metrics),
            }
            same &= compare(result, figure, door, variants, options)
    finish(
        result,
        "trainer",
        same,
        options,
        data="sklearn digits, 8×8, in a DataLoader without workers",
        trainer="run store, rows every 50 batches, KDLogitsLoss at T=4",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
