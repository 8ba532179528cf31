"""(a) What does a distillation step cost over a plain student step when the table is warm?

Both sides train the same small model on the same batches of one `TensorLoader`, with the same
optimizer and precision; one with cross entropy alone, the other with the loss to the teacher's
table as well. Everything is in the step: making the batch, forward, loss, backward, update.

    python -m benchmarks.warm_table
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from benchmarks import pair
from benchmarks.common import Result, arguments, measure, ratio
from distillation.data import TensorLoader
from distillation.distiller import Distiller
from distillation.losses import LogitsDistillationLoss, StaticLossBalancer
from distillation.table import Execution, ImageInputs, TeacherTable


def endless(loader: TensorLoader):
    """The batches of epoch 0, again and again: a replayed stream."""
    return itertools.chain.from_iterable(loader.batches(0) for _ in itertools.count())


def plain_step(loader: TensorLoader, precision: str):
    model = pair.student(channels_last=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=pair.LEARNING_RATE, fused=True)
    stream = endless(loader)

    def step():
        batch = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = model(batch.images)
        F.cross_entropy(output.float(), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def distillation_step(loader: TensorLoader, precision: str, table: TeacherTable):
    model = pair.student(channels_last=True)
    loss_fn = LogitsDistillationLoss(temperature=pair.TEMPERATURE)
    distiller = Distiller(model, table, loss_fn, StaticLossBalancer(0.9))
    optimizer = torch.optim.Adam(model.parameters(), lr=pair.LEARNING_RATE, fused=True)
    stream = endless(loader)

    def step():
        batch = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = distiller.forward(batch.images, sample=batch.sample, view=batch.view)
        loss = distiller.compute_kd_loss(F.cross_entropy(output.float(), batch.labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, rounds=15, argv=argv)
    result = Result(
        "warm_table", "What does a distillation step cost over a plain one, with a warm table?"
    )
    result.settings = {
        "student": "SmallModel",
        "teacher": "LargeModel",
        "batch_size": pair.BATCH,
        "channels_last": True,
        "optimizer": "Adam, fused",
        "views": len(pair.views()),
    }
    data = pair.images(512)
    loader = TensorLoader(data, pair.BATCH, views=pair.views(), channels_last=True)
    with tempfile.TemporaryDirectory() as folder:
        execution = Execution(precision="bf16", channels_last=True)
        table = TeacherTable(
            pair.teacher(channels_last=True), folder, ImageInputs.of(loader), execution=execution
        )
        for batch in loader.batches(0):
            table(batch.images, sample=batch.sample, view=batch.view)
        variants = {}
        for precision in ("bf16", "fp32"):
            variants[f"plain {precision}"] = plain_step(loader, precision)
            variants[f"table {precision}"] = distillation_step(loader, precision, table)
        timings = measure(variants, rounds=options.rounds, calls=8)
        table.release()
    result.timings = timings
    result.figure(
        "step_ratio",
        ratio(timings, "table bf16", "plain bf16"),
        what="CPU time of a distillation step over a plain step, bf16",
    )
    result.figure(
        "step_ratio_fp32",
        ratio(timings, "table fp32", "plain fp32"),
        what="the same in fp32",
    )
    result.write(options.out)


if __name__ == "__main__":
    main()
