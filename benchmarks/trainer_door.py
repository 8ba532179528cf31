"""What does `KDTrainer` cost over a bare loop? (`python -m benchmarks.trainer_door`)

The same student learns from the same teacher with the same loss on the same DataLoader: in a loop
by hand, and in `KDTrainer.train` with run store and logging, without and with a train metric. A
step of about 5 ms makes what is fixed per step visible. Loop and trainer take turns of ten steps,
each in a thread of its own of which only one runs, so that whatever else the machine does meets
both alike. Timed is a step: batch, forward, loss, backward, update, logging; not the making of the
run and its last checkpoint.
"""

from __future__ import annotations

import copy
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import Result, Spread, Timing, arguments, cpu_seconds, ratio
from distillation import KDTrainer, data
from distillation.losses import KDLogitsLoss
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel

BATCH, STEPS, FIRST = 64, 130, 10  # the first steps of a run are not timed
TURN = 10  # steps of a turn: alternating at every step empties the caches of both


class Turns:
    """Lets one of several threads run at a time, in turn."""

    def __init__(self, names: Sequence[str]):
        self.waiting = list(names)
        self.condition = threading.Condition()

    def take(self, name: str) -> None:
        """Wait for this thread's turn."""
        with self.condition:
            self.condition.wait_for(lambda: self.waiting[0] == name)

    def pass_on(self, name: str) -> None:
        """Let the next one run, and queue up again."""
        with self.condition:
            self.waiting.remove(name)
            self.waiting.append(name)
            self.condition.notify_all()

    def leave(self, name: str) -> None:
        """Let the others run without this thread."""
        with self.condition:
            self.waiting.remove(name)
            self.condition.notify_all()


class Clocked(DataLoader):
    """A shuffled DataLoader that waits for its turn at every batch, and times what follows."""

    turns: Turns
    name: str

    def __iter__(self) -> Iterator:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        batches = super().__iter__()
        for step in range(len(self)):
            if step % TURN == 0:
                self.turns.take(self.name)
            cpu, wall = cpu_seconds(), time.perf_counter()
            yield next(batches)
            self.cpu.append(cpu_seconds() - cpu)
            self.wall.append(time.perf_counter() - wall)
            if step % TURN == TURN - 1:
                self.turns.pass_on(self.name)

    def per_step(self) -> tuple[float, float]:
        """Mean CPU and wall seconds of a step, from step `FIRST` on; the last one is not timed."""
        steps = len(self.cpu[FIRST : STEPS - 1])
        return sum(self.cpu[FIRST : STEPS - 1]) / steps, sum(self.wall[FIRST : STEPS - 1]) / steps


def loader(name: str, turns: Turns) -> Clocked:
    """`STEPS` shuffled batches of the digits, normalised beforehand."""
    train, _ = data.digits()
    batch = data.TensorLoader(train, len(train), shuffle=False, keys=False).batch(0, 0)
    images, labels = (torch.cat([part] * 6)[: BATCH * STEPS] for part in batch)
    order = torch.Generator().manual_seed(0)
    made = Clocked(TensorDataset(images, labels), batch_size=BATCH, shuffle=True, generator=order)
    made.turns, made.name = turns, name
    return made


def by_hand(student: nn.Module, teacher: nn.Module, batches: Clocked) -> nn.Module:
    """The bare loop."""
    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    teacher.eval().requires_grad_(False)
    student.train()
    loss = KDLogitsLoss(nn.CrossEntropyLoss(), temperature=4.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
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


Variant = Callable[[nn.Module, nn.Module, Clocked], nn.Module]


def side_by_side(
    variants: Mapping[str, Variant], student: nn.Module, teacher: nn.Module, threads: int
) -> tuple[dict[str, tuple[float, float]], dict[str, torch.Tensor]]:
    """Seconds of a step (CPU, wall) and trained weights of each variant, run in turn."""
    turns = Turns(list(variants))
    seconds: dict[str, tuple[float, float]] = {}
    weights: dict[str, torch.Tensor] = {}

    def work(name: str) -> None:
        torch.set_num_threads(threads)
        try:
            batches = loader(name, turns)
            turns.take(name)  # setting up is not to disturb the others' steps
            trained = variants[name](student, teacher, batches)
            weights[name] = torch.cat([p.detach().flatten() for p in trained.parameters()])
            seconds[name] = batches.per_step()
        finally:
            turns.leave(name)

    workers = [threading.Thread(target=work, args=(name,)) for name in variants]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return seconds, weights


def rounds(
    variants: Mapping[str, Variant],
    student: nn.Module,
    teacher: nn.Module,
    number: int,
    threads: int,
) -> tuple[dict[str, Timing], bool]:
    """Timings of a step over several rounds, and whether all trained the same weights."""
    timings = {name: Timing() for name in variants}
    same = True
    for i in range(-1, number):  # the first round is a warm-up
        ordered = dict(variants if i % 2 else reversed(variants.items()))
        gc.collect()
        gc.disable()
        try:
            seconds, weights = side_by_side(ordered, student, teacher, threads)
        finally:
            gc.enable()
        first, *others = weights.values()
        same &= all(torch.equal(first, w) for w in others)
        if i >= 0:
            for name, (cpu, wall) in seconds.items():
                timings[name].cpu.append(cpu)
                timings[name].wall.append(wall)
    return timings, same


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__, rounds=15, argv=argv)
    torch.manual_seed(0)
    teacher, student = DigitsLargeModel(), DigitsSmallModel()
    result = Result("trainer_door", "What does KDTrainer cost over a bare loop?")
    same = True
    for what, metrics in (("step_ratio", []), ("step_ratio_with_metric", ["Accuracy"])):
        name = "trainer_with_metric" if metrics else "trainer"
        hand = "by_hand_beside_" + name
        with tempfile.TemporaryDirectory() as root:
            variants = {hand: by_hand, name: by_trainer(root, metrics)}
            timings, equal = rounds(variants, student, teacher, options.rounds, options.threads)
        result.timings |= timings
        same &= equal
        for clock, suffix in (("cpu", ""), ("wall", "_wall")):
            spread = ratio(timings, name, hand, clock)
            result.figure(what + suffix, spread, "×", f"{clock} time of a step, over by hand")
    plain = Spread.of([1000 * t for t in result.timings["by_hand_beside_trainer"].cpu])
    result.figure("step_by_hand", plain, "ms", "CPU time of a step by hand")
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
