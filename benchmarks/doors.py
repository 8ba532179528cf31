"""What the benchmarks of the doors share: two loops side by side, a few steps each in turn.

A framework owns its loop, so it cannot be called step by step as `common.measure` would. Instead
each variant runs in a thread of its own, of which only one is ever awake: they take turns of ten
steps, handing over in the data loader, so that whatever else the machine does meets both alike.

Timed is a step: batch, forward, loss, backward, update, logging. Not timed are the making of the
run, the last checkpoint and the evaluation, during which the others wait, and the first step of a
turn, which finds the caches full of the other variant, as no training of its own does.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import Result, Spread, Timing, cpu_seconds, ratio
from distillation import data

BATCH, STEPS, FIRST = 64, 130, 10  # the first steps of a run are not timed
TURN = 10  # steps of a turn


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


class Clock:
    """Times the steps of one variant, and waits for its turns."""

    def __init__(self, name: str, turns: Turns, steps: int = STEPS):
        self.name, self.turns, self.steps = name, turns, steps
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def over(self, batches: Iterable) -> Iterator:
        """The batches; a step ends when the next batch is asked for."""
        batches = iter(batches)
        for step in range(self.steps):
            if step % TURN == 0:
                self.turns.take(self.name)
            cpu, wall = cpu_seconds(), time.perf_counter()
            yield next(batches)
            self.cpu.append(cpu_seconds() - cpu)
            self.wall.append(time.perf_counter() - wall)
            # After the last step the turn is kept, until all work is done.
            if step % TURN == TURN - 1 and step + 1 < self.steps:
                self.turns.pass_on(self.name)

    def per_step(self) -> tuple[float, float]:
        """Mean seconds of a step, CPU and wall; the last one's end is not seen."""
        timed = [step for step in range(FIRST, self.steps - 1) if step % TURN]
        return tuple(
            sum(seconds[i] for i in timed) / len(timed) for seconds in (self.cpu, self.wall)
        )


class Clocked(DataLoader):
    """A `DataLoader` whose steps are timed."""

    clock: Clock

    def __iter__(self) -> Iterator:
        return self.clock.over(super().__iter__())


def digits(clock: Clock) -> Clocked:
    """Shuffled batches of the digits, normalised beforehand."""
    train, _ = data.digits()
    batch = data.TensorLoader(train, len(train), shuffle=False, keys=False).batch(0, 0)
    images, labels = (torch.cat([part] * 6)[: BATCH * clock.steps] for part in batch)
    order = torch.Generator().manual_seed(0)
    made = Clocked(TensorDataset(images, labels), batch_size=BATCH, shuffle=True, generator=order)
    made.clock = clock
    return made


#: A variant trains a model of its own to the end of its clock's steps, and returns it.
Variant = Callable[[Clock], nn.Module]


def side_by_side(
    variants: Mapping[str, Variant], threads: int, steps: int = STEPS
) -> tuple[dict[str, tuple[float, float]], dict[str, torch.Tensor]]:
    """Seconds of a step (CPU, wall) and trained weights of each variant, run in turn.

    Raises what a variant raised.
    """
    turns = Turns(list(variants))
    seconds: dict[str, tuple[float, float]] = {}
    weights: dict[str, torch.Tensor] = {}
    errors: list[BaseException] = []

    def work(name: str) -> None:
        torch.set_num_threads(threads)
        try:
            turns.take(name)  # setting up is not to disturb the others' steps
            clock = Clock(name, turns, steps)
            trained = variants[name](clock)
            weights[name] = torch.cat([p.detach().flatten() for p in trained.parameters()])
            seconds[name] = clock.per_step()
        except BaseException as error:  # raised below, in the caller's thread
            errors.append(error)
        finally:
            turns.leave(name)

    workers = [threading.Thread(target=work, args=(name,)) for name in variants]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return seconds, weights


def rounds(
    variants: Mapping[str, Variant], number: int, threads: int, steps: int = STEPS
) -> tuple[dict[str, Timing], bool]:
    """Timings of a step over several rounds, and whether all trained the same weights."""
    timings = {name: Timing() for name in variants}
    same = True
    for i in range(-1, number):  # the first round is a warm-up
        ordered = dict(variants if i % 2 else reversed(variants.items()))
        gc.collect()
        gc.disable()
        try:
            seconds, weights = side_by_side(ordered, threads, steps)
        finally:
            gc.enable()
        first, *others = weights.values()
        same &= all(torch.equal(first, w) for w in others)
        if i >= 0:
            for name, (cpu, wall) in seconds.items():
                timings[name].cpu.append(cpu)
                timings[name].wall.append(wall)
    return timings, same


def compare(
    result: Result, figure: str, door: str, variants: Mapping[str, Variant], options
) -> bool:
    """Time `variants`, "by_hand" and `door`; record the door's cost as `figure` and `figure_wall`.

    Returns whether both trained the same weights.
    """
    timings, same = rounds(variants, options.rounds, options.threads, options.steps)
    named = {f"by_hand_beside_{door}": timings["by_hand"], door: timings[door]}
    result.timings |= named
    for clock, suffix in (("cpu", ""), ("wall", "_wall")):
        spread = ratio(named, door, f"by_hand_beside_{door}", clock)
        what = f"{clock} time of a step, over by hand; median of paired rounds"
        result.figure(figure + suffix, spread, "×", what)
    return same


def finish(result: Result, first: str, same: bool, options, **settings: object) -> None:
    """Add the time of a step by hand and the settings, and write the file."""
    plain = Spread.of([1000 * t for t in result.timings[f"by_hand_beside_{first}"].cpu])
    result.figure("step_by_hand", plain, "ms", "CPU time of a step by hand")
    result.figure("same_bits", float(same), "", "1: the trained weights are equal")
    timed = len([step for step in range(FIRST, options.steps - 1) if step % TURN])
    result.settings = {
        "teacher": "DigitsLargeModel",
        "student": "DigitsSmallModel",
        "batch_size": BATCH,
        "steps_timed": timed,
        **settings,
    }
    result.write(options.out)
