"""Does `torch.compile` pay for the small student's step? (`python -m benchmarks.compiling`)

Plain training steps of the seed's small model, eager and compiled, in fp32 and in bf16, in turn on
the same batches: forward, loss, backward, update. Compiled is the model's call, as the doors do it
(`distillation.compiling.CompiledCall`). What compiling costs once is a figure of its own; with it
follows after how many steps it is earned back, if ever.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from benchmarks import pair
from benchmarks.common import Result, Spread, Timing, arguments, measure, ratio
from distillation.compiling import CompiledCall
from distillation.data import TensorLoader

PRECISIONS = ("fp32", "bf16")


def training_step(precision: str, compiled: bool) -> Callable[[], None]:
    """A function that makes one training step; always on the same few batches, in turn."""
    model = pair.student(channels_last=True)
    call = CompiledCall(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), lr=pair.LEARNING_RATE, fused=True)
    loader = TensorLoader(pair.images(512), pair.BATCH, views=pair.views(), channels_last=True)
    batches, place = list(loader.batches(0)), 0

    def step() -> None:
        nonlocal place
        batch = batches[place % len(batches)]
        place += 1
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = call(batch.images)
        F.cross_entropy(output.float(), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def first_steps(step: Callable[[], None], number: int = 2) -> float:
    """Seconds of the first steps, in which torch compiles. Raises what a failed compilation warns
    of: the model would run uncompiled, and eager would be compared with eager."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        for _ in range(number):
            step()
    return time.perf_counter() - began


def verdict(seconds: float, timings: dict[str, Timing], eager: str, compiled: str) -> str:
    """Whether `seconds` of compiling are ever earned back, in words."""
    spread = ratio(timings, compiled, eager, "wall")
    if spread.upper is None or spread.lower <= 1 <= spread.upper:
        return "a difference cannot be told from noise"
    if spread.median > 1:
        return "a compiled step is slower"
    gain = (1 - spread.median) * Spread.of(timings[eager].wall).median
    return f"compiling is earned back after {seconds / gain:,.0f} steps"


def compare(result: Result, precision: str, rounds: int) -> None:
    """Time both variants in this precision, and record the figures."""
    variants = {
        f"eager {precision}": training_step(precision, compiled=False),
        f"compiled {precision}": training_step(precision, compiled=True),
    }
    eager, compiled = variants
    spent = first_steps(variants[compiled]) - first_steps(variants[eager])
    timings = measure(variants, rounds=rounds, calls=8)
    result.timings |= timings
    for clock, suffix in (("cpu", ""), ("wall", "_wall")):
        result.figure(
            f"step_ratio_{precision}{suffix}",
            ratio(timings, compiled, eager, clock),
            what=f"{clock} time of a compiled step over an eager one, {precision}",
        )
    result.figure(f"compile_seconds_{precision}", spent, "s", "wall time, once, for training")
    result.notes.append(f"{precision}: {verdict(spent, timings, eager, compiled)}.")


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__, rounds=11, argv=argv)
    result = Result("compiling", "Does torch.compile pay for the small student's step?")
    result.settings = {
        "student": "SmallModel",
        "batch_size": pair.BATCH,
        "channels_last": True,
        "optimizer": "Adam, fused",
        "compiled": "the model's call, default options (inductor)",
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing that was compiled before
        for precision in PRECISIONS:
            compare(result, precision, options.rounds)
    result.write(options.out)
    for note in result.notes:
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
