"""(f) How much memory does a process take at its peak: plain training, a table, a teacher online?

Each variant is a process of its own that trains the seed's pair for a few steps and reports its
highest resident size; what it had after its imports is taken off. Processes alternate.

    python -m benchmarks.memory
"""

from __future__ import annotations

import argparse
import gc
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.common import HERE, Result, Spread, arguments

VARIANTS = ("plain", "table", "online")
STEPS = 4


def peak() -> float:
    """Highest resident size of this process so far, in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)


def train(variant: str, folder: str) -> float:
    """Peak of a few training steps over what the process had before, in MB."""
    import torch
    from torch.nn import functional as F

    from benchmarks import pair
    from distillation.data import TensorLoader
    from distillation.distiller import Distiller
    from distillation.losses import LogitsDistillationLoss, StaticLossBalancer
    from distillation.models.vgg import LargeModel
    from distillation.table import Execution, ImageInputs, TeacherTable

    def large_model():
        return LargeModel().eval().to(memory_format=torch.channels_last)

    torch.set_num_threads(1)
    images = pair.images(2048)
    gc.collect()
    before = peak()
    loader = TensorLoader(images, pair.BATCH, views=pair.views(), channels_last=True)
    model = pair.student(channels_last=True)
    source = None
    if variant == "online":
        source = large_model()
    elif variant in ("table", "fill"):
        execution = Execution(precision="bf16", channels_last=True)
        teacher = large_model() if variant == "fill" else None
        source = TeacherTable(teacher, folder, ImageInputs.of(loader), execution=execution)
    distiller = None
    if source is not None:
        loss_fn = LogitsDistillationLoss(temperature=pair.TEMPERATURE)
        distiller = Distiller(model, source, loss_fn, StaticLossBalancer(0.9))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for number in range(STEPS):
        batch = loader.batch(0, number)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if distiller is None:
                output = model(batch.images)
            else:
                output = distiller.forward(batch.images, sample=batch.sample, view=batch.view)
        loss = F.cross_entropy(output.float(), batch.labels)
        if distiller is not None:
            loss = distiller.compute_kd_loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return peak() - before


def in_a_process(variant: str, folder: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", "--variant", variant, "--folder", folder]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    inner = argparse.ArgumentParser(add_help=False)
    inner.add_argument("--variant", help=argparse.SUPPRESS)
    inner.add_argument("--folder", help=argparse.SUPPRESS)
    own, rest = inner.parse_known_args(argv)
    if own.variant:
        print(train(own.variant, own.folder))
        return
    options = arguments(__doc__, rounds=3, argv=rest)
    result = Result("memory", "How much memory does a training process take at its peak?")
    result.settings = {"batch_size": 64, "precision": "bf16", "images": 2048, "steps": STEPS}
    measured: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        in_a_process("fill", folder)
        for round_ in range(options.rounds):
            for variant in VARIANTS if round_ % 2 == 0 else reversed(VARIANTS):
                measured[variant].append(in_a_process(variant, folder))
    for variant, values in measured.items():
        result.figure(f"{variant}_peak", Spread.of(values), "MB", "over what it had before")
    for variant in ("table", "online"):
        over = [a / b for a, b in zip(measured[variant], measured["plain"], strict=True)]
        result.figure(f"{variant}_over_plain", Spread.of(over), what="peak over plain training's")
    result.write(options.out)


if __name__ == "__main__":
    main()
