"""(e) How fast does a table fill and read, how large is it, how wrong are its short forms?

Filling is measured with the seed's large model in bf16 against the bare forward passes it needs;
reading for batches of keys drawn at random from a table of CIFAR-10's full size (50,000 samples,
162 views). The short storage forms are compared on 1,000 classes with a long tail: their bytes, and
the error of the loss's gradient, once (`noise`) and in expectation over draws (`bias`).

    python -m benchmarks.table_rates
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import pair
from benchmarks.common import Result, arguments, measure, ratio
from distillation.losses import LogitsDistillationLoss
from distillation.table import (
    Dense,
    Execution,
    ImageInputs,
    Sampled,
    SampledDistillationLoss,
    TableStorage,
    TeacherTable,
    TopK,
)

SAMPLES, VIEWS, WIDTH = 50_000, 162, 10
DRAWS = 2000


def rates(result: Result, rounds: int, folder: Path) -> None:
    """Entries a second of filling and of reading, and what filling costs over the teacher."""
    inputs = ImageInputs(pair.images(2048), pair.views())
    execution = Execution(precision="bf16", channels_last=True)
    model = pair.teacher(channels_last=True)
    table = TeacherTable(model, folder / "fill", inputs, execution=execution)
    table.fill([0], limit=1)
    pictures = inputs.render(np.arange(64), np.zeros(64, dtype=np.int64))
    pictures = pictures.to(memory_format=torch.channels_last)
    samples = iter(range(1, 2048))

    def bare():
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(2):
                model(pictures)

    def fill():
        table.fill([next(samples)], limit=128)

    timings = measure({"teacher, 128 images": bare, "fill, 128 entries": fill}, rounds=rounds)
    result.figure(
        "fill_overhead",
        ratio(timings, "fill, 128 entries", "teacher, 128 images"),
        what="CPU time of filling over the teacher's bare forward passes",
    )
    seconds = sorted(timings["fill, 128 entries"].wall)[rounds // 2]
    result.figure("fill_rate", 128 / seconds, unit="entries/s", what="wall time, bf16, one thread")
    result.timings |= timings
    table.release()

    (folder / "read").mkdir()
    TableStorage.create(folder / "read", (SAMPLES, VIEWS, WIDTH))
    storage = TableStorage(folder / "read", (SAMPLES, VIEWS, WIDTH))
    random = np.random.default_rng(0)
    sample, view = random.integers(0, SAMPLES, 20_000), random.integers(0, VIEWS, 20_000)
    entries = random.normal(size=(20_000, WIDTH)).astype(np.float16)
    storage.write(sample, view, entries)

    def read():
        rows = random.integers(0, 20_000, 128)
        storage.read(sample[rows], view[rows])

    def write():
        rows = random.integers(0, 20_000, 128)
        keys = sample[rows], (view[rows] + 1) % VIEWS
        storage.write(*keys, entries[rows])

    timings = measure(
        {"read, 128 entries": read, "write, 128 entries": write}, rounds=rounds, calls=20
    )
    for name in ("read", "write"):
        seconds = sorted(timings[f"{name}, 128 entries"].wall)[rounds // 2]
        what = "checksum verified" if name == "read" else "checksummed and synced to the disk"
        result.figure(f"{name}_rate", 128 / seconds, "entries/s", f"batches of 128 keys, {what}")
    full = SAMPLES * VIEWS * (WIDTH + 1) * 2
    result.figure("full_size", full / 1e6, "MB", "CIFAR-10 with all 162 views, marks included")
    result.timings |= timings
    storage.close()


def short_forms(result: Result) -> None:
    """Bytes an entry, and the error of the gradient of the student's logits."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(1, 1000, generator=generator) * 2.5
    student = torch.randn(1, 1000, generator=generator) * 2.5

    def gradients(codec, loss, draws: int) -> torch.Tensor:
        keys = np.arange(draws), np.zeros(draws, dtype=np.int64)
        entries = codec.encode(teacher.expand(draws, -1), *keys)
        z = student.expand(draws, -1).clone().requires_grad_()
        (loss(z, codec.decode(entries, (1000,))) * draws).backward()
        return z.grad

    exact = gradients(Dense(), LogitsDistillationLoss(), 1)
    for k in (12, 50):
        for name, codec, loss, draws in (
            ("top_k", TopK(k), LogitsDistillationLoss(), 1),
            ("sampled", Sampled(k), SampledDistillationLoss(), DRAWS),
        ):
            found = gradients(codec, loss, draws)
            bias = (found.mean(0) - exact[0]).norm() / exact.norm()
            noise = ((found - exact).norm(dim=1) / exact.norm()).mean()
            size = codec.width((1000,)) * 2
            what = f"of the gradient, relative; {size} bytes an entry instead of 2,000"
            mean = f"mean of {draws:,} draws" if draws > 1 else "it does not average out"
            result.figure(f"{name}_{k}_bias", bias.item(), "", f"error {what}; {mean}")
            result.figure(f"{name}_{k}_noise", noise.item(), "", f"error of one entry {what}")


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, rounds=9, argv=argv)
    result = Result("table_rates", "How fast is a table, how large, how wrong are its short forms?")
    result.settings = {"teacher": "LargeModel, bf16, channels_last", "fill_batch": 64}
    with tempfile.TemporaryDirectory() as folder:
        rates(result, options.rounds, Path(folder))
    short_forms(result)
    result.write(options.out)


if __name__ == "__main__":
    main()
