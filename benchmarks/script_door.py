"""What does `convert` cost over a loop by hand? (`python -m benchmarks.script_door`)

The same student learns from the same teacher on the same batches of the digits: once in a plain
loop, once converted. A step of about 5 ms makes what is fixed per step visible. Two jobs: logits
only (the target), and logits with one pair of hidden layers, against hooks written by hand.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import Result, arguments, measure, ratio
from distillation import LogitsDistillationLoss, StaticLossBalancer, convert, data
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel

T, WEIGHT, BATCH, STEPS = 4.0, 0.5, 64, 20


def batches() -> list[tuple[Tensor, Tensor]]:
    """The first `STEPS` batches of the digits, normalised."""
    loader = data.TensorLoader(data.digits()[0], BATCH, seed=0, drop_last=True, keys=False)
    return list(loader)[:STEPS]


def divergence(s: Tensor, t: Tensor) -> Tensor:
    """KL(teacher ‖ student)·T² as one writes it by hand."""
    p, q = F.log_softmax(t / T, dim=-1), F.log_softmax(s / T, dim=-1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean() * T**2


class MapLoss(nn.Module):
    """Squared difference of the maps that are left when the channels are averaged."""

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        return F.mse_loss(student_output.mean(1), teacher_output.mean(1))


class ByHand:
    """A training loop without the library; with `layers`, these are compared as well."""

    def __init__(self, student: nn.Module, teacher: nn.Module, layers: tuple[str, str] | None):
        self.student = copy.deepcopy(student)
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.features: dict[str, Tensor] = {}
        for name, net in (("student", self.student), ("teacher", self.teacher)):
            if layers is not None:
                layer = net.get_submodule(layers[name == "teacher"])
                layer.register_forward_hook(
                    lambda _m, _a, output, name=name: self.features.__setitem__(name, output)
                )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            t = self.teacher(x)
        s = self.student(x)
        kd = divergence(s, t)
        if self.features:
            kd = kd + MapLoss()(self.features["student"], self.features["teacher"])
            self.features.clear()
        return WEIGHT * kd + (1 - WEIGHT) * F.cross_entropy(s, y)


class Converted:
    """The same, with `convert`."""

    def __init__(self, student: nn.Module, teacher: nn.Module, layers: tuple[str, str] | None):
        criterion: dict = {("", ""): LogitsDistillationLoss(temperature=T)}
        if layers is not None:
            criterion[layers] = MapLoss()
        self.student = convert(
            copy.deepcopy(student),
            teacher_model=copy.deepcopy(teacher),
            criterion=criterion,
            loss_balancer=StaticLossBalancer(WEIGHT),
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.student.compute_kd_loss(F.cross_entropy(self.student(x), y))


def epoch(job: ByHand | Converted, seen: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """A function that runs `STEPS` steps of training."""
    optimizer = torch.optim.SGD(job.student.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        for x, y in seen:
            optimizer.zero_grad()
            job.loss(x, y).backward()
            optimizer.step()

    return run


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__, rounds=61, argv=argv)
    torch.manual_seed(0)
    teacher, student = DigitsLargeModel(), DigitsSmallModel()
    seen = batches()
    jobs = {"logits": None, "features": ("layers.3", "layers.7")}  # where both have 4×4 pixels
    result = Result("script_door", "What does convert cost over a loop by hand?")
    for job, layers in jobs.items():
        models = {
            "by_hand": ByHand(student, teacher, layers),
            "converted": Converted(student, teacher, layers),
        }
        timings = measure(
            {f"{job}_{name}": epoch(model, seen) for name, model in models.items()},
            rounds=options.rounds,
            calls=1,
        )
        result.timings |= timings
        same = all(
            torch.equal(a, b)
            for a, b in zip(*(m.student.parameters() for m in models.values()), strict=True)
        )
        name = "step_ratio" if job == "logits" else "step_ratio_features"
        for clock, suffix in (("cpu", ""), ("wall", "_wall")):
            spread = ratio(timings, f"{job}_converted", f"{job}_by_hand", clock)
            result.figure(name + suffix, spread, "×", f"{clock} time of {job}, over by hand")
        result.figure(f"same_bits_{job}", float(same), "", "1: the trained weights are equal")
    result.settings = {
        "teacher": type(teacher).__name__,
        "student": type(student).__name__,
        "batch_size": BATCH,
        "steps_per_round": STEPS,
        "data": "sklearn digits, 8×8",
    }
    result.notes.append("Timings are seconds for one round of steps_per_round steps.")
    result.write(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
