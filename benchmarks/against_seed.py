"""(b) A whole distillation step against the way the labml experiment does it.

The seed's way, written after its description: PIL images through torchvision's transforms in a
`DataLoader`, fp32, contiguous memory, the large model in every step, Adam, its loss, three tracked
numbers brought to the host. Ours: the tensor loader, bf16, channels_last, fused Adam, the teacher
from a table, metrics on the device; once warm (a replayed stream: every entry is there), once cold
(no entry is there, so the teacher runs and the table is written), and once online: the same step
without a table, the teacher in every step as in the seed's way.

Both are the same job: batch 64, the same pair, the same loss and learning rate, one thread.

    python -m benchmarks.against_seed
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

import distillation.torchvision_guard  # noqa: F401
from benchmarks import pair
from benchmarks.common import Result, arguments, measure, ratio
from distillation.data import ImageSet, TensorLoader
from distillation.distiller import Distiller
from distillation.frozen_teacher import FrozenTeacher
from distillation.losses import LogitsDistillationLoss
from distillation.losses.labml import labml_weight
from distillation.meters import Meters
from distillation.table import Execution, ImageInputs, TeacherTable

WEIGHT, LABEL_WEIGHT = 100.0, 0.5


class Pictures(torch.utils.data.Dataset):
    """PIL images with torchvision's transforms, as `torchvision.datasets.CIFAR10` gives them."""

    def __init__(self, images: ImageSet):
        from torchvision import transforms

        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(images.mean, images.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class SeedWay:
    """The step of the labml experiment."""

    def __init__(self, large: nn.Module):
        self.large, self.model = large, pair.student(channels_last=False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=pair.LEARNING_RATE)
        self.kl_div_loss = nn.KLDivLoss(log_target=True)
        self.loss_func = nn.CrossEntropyLoss()
        self.tracked: dict[str, float] = {}

    def step(self, data: torch.Tensor, target: torch.Tensor) -> float:
        self.model.train()
        self.large.eval()
        with torch.no_grad():
            large_logits = self.large(data)
        output = self.model(data)
        soft_targets = F.log_softmax(large_logits / pair.TEMPERATURE, dim=-1)
        soft_prob = F.log_softmax(output / pair.TEMPERATURE, dim=-1)
        soft_targets_loss = self.kl_div_loss(soft_prob, soft_targets)
        label_loss = self.loss_func(output, target)
        loss = WEIGHT * soft_targets_loss + LABEL_WEIGHT * label_loss
        correct = (output.argmax(dim=-1) == target).sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        # What the tracker does with a tensor: it brings it to the host.
        values = {"kl_div": soft_targets_loss, "nll": label_loss, "loss": loss}
        self.tracked = {name: value.item() for name, value in values.items()}
        self.tracked["accuracy"] = float(correct) / len(target)
        return self.tracked["loss"]


class OurWay:
    """The same loss from a teacher source, in `precision`."""

    def __init__(self, teacher, precision: str, channels_last: bool = True):
        self.model = pair.student(channels_last)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=pair.LEARNING_RATE, fused=True
        )
        criterion = LogitsDistillationLoss(temperature=pair.TEMPERATURE)
        self.distiller = Distiller(self.model, teacher, criterion)
        # The seed's weight for its own reduction of the same divergence.
        self.weight = labml_weight(10, pair.TEMPERATURE, WEIGHT)
        self.precision, self.meters = precision, Meters()

    def step(self, batch) -> torch.Tensor:
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.distiller.forward(batch.images, sample=batch.sample, view=batch.view)
        output = output.float()
        soft_targets_loss = self.distiller.compute_kd_loss()
        label_loss = F.cross_entropy(output, batch.labels)
        loss = self.weight * soft_targets_loss + LABEL_WEIGHT * label_loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        correct = (output.detach().argmax(dim=-1) == batch.labels).float().mean()
        values = {"kl_div": soft_targets_loss, "nll": label_loss, "loss": loss}
        self.meters.add({**values, "accuracy": correct}, len(output))
        return loss.detach()


def forever(make_epoch) -> Iterator:
    """Epoch after epoch of a loader."""
    return itertools.chain.from_iterable(make_epoch(epoch) for epoch in itertools.count())


def loss_difference(
    images: ImageSet, folder: str | None, precision: str, same_weights: bool, steps: int = 5
) -> float:
    """Largest relative difference of the losses of the first steps, on the same batches.

    Ours has its teacher from a table of fp16 entries, or online when there is no folder. With
    `same_weights` both sides have the seed's weights at each step; otherwise each goes its own way
    from the same start, and Adam makes steps of full size out of differences in the last bit.
    """
    channels_last = precision == "bf16"
    loader = TensorLoader(images, pair.BATCH, views=pair.views())
    source = FrozenTeacher(pair.teacher(channels_last))
    if folder is not None:
        execution = Execution(precision=precision, channels_last=channels_last)
        source = TeacherTable(source, folder, ImageInputs.of(loader), execution=execution)
    seed = SeedWay(pair.teacher(channels_last=False))
    ours = OurWay(source, precision, channels_last)
    worst = 0.0
    for number in range(steps):
        if same_weights:
            ours.model.load_state_dict(seed.model.state_dict())
        batch = loader.batch(0, number)
        expected = seed.step(batch.images, batch.labels)
        worst = max(worst, abs(ours.step(batch).item() - expected) / abs(expected))
    ours.distiller.release()
    source.release()
    return worst


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, rounds=7, argv=argv)
    result = Result("against_seed", "How much faster is a distillation step than the seed's way?")
    result.settings = {
        "student": "SmallModel",
        "teacher": "LargeModel",
        "batch_size": pair.BATCH,
        "seed": "PIL transforms in a DataLoader without workers, fp32, contiguous, online teacher",
        "ours": "TensorLoader, bf16, channels_last, fused Adam; teacher table, or online",
    }
    images = pair.images(2048)
    loader = TensorLoader(images, pair.BATCH, views=pair.views(), channels_last=True)
    execution = Execution(precision="bf16", channels_last=True)
    dataset = Pictures(images)

    def pictures(epoch: int):
        return torch.utils.data.DataLoader(dataset, pair.BATCH, shuffle=True)

    with tempfile.TemporaryDirectory() as folder:
        table = TeacherTable(
            pair.teacher(channels_last=True),
            f"{folder}/t",
            ImageInputs.of(loader),
            execution=execution,
        )
        replayed = [loader.batch(0, number) for number in range(8)]
        for batch in replayed:
            table(batch.images, sample=batch.sample, view=batch.view)
        seed, warm, cold, online = (
            SeedWay(pair.teacher(False)),
            OurWay(table, "bf16"),
            OurWay(table, "bf16"),
            OurWay(FrozenTeacher(pair.teacher(channels_last=True)), "bf16"),
        )
        seed_stream = forever(pictures)
        warm_stream = itertools.cycle(range(8))
        cold_stream = forever(lambda epoch: loader.batches(epoch + 1))
        online_stream = forever(lambda epoch: loader.batches(epoch + 1))
        variants = {
            "seed": lambda: seed.step(*next(seed_stream)),
            "warm": lambda: warm.step(loader.batch(0, next(warm_stream))),
            "cold": lambda: cold.step(next(cold_stream)),
            "online": lambda: online.step(next(online_stream)),
        }
        result.timings = timings = measure(variants, rounds=options.rounds, calls=4)
        missed = cold.distiller.teacher.misses / (4 * (options.rounds + 1) * pair.BATCH)
        same = {
            "fp32": loss_difference(images, None, "fp32", True),
            "fp32_table": loss_difference(images, f"{folder}/fp32", "fp32", True),
            "bf16": loss_difference(images, f"{folder}/bf16", "bf16", True),
        }
        drift = {
            "fp32": loss_difference(images, None, "fp32", False),
            "bf16": loss_difference(images, f"{folder}/bf16", "bf16", False),
        }
        online.distiller.release()
        online.distiller.teacher.release()
        cold.distiller.release()
        warm.distiller.release()
        table.release()
    result.figure(
        "warm_speedup", ratio(timings, "seed", "warm"), what="CPU time, seed over ours, table warm"
    )
    result.figure(
        "cold_speedup", ratio(timings, "seed", "cold"), what="the same with an empty table"
    )
    result.figure(
        "online_speedup",
        ratio(timings, "seed", "online"),
        what="the same without a table: the teacher in every step",
    )
    result.figure("cold_misses", missed, unit="", what="share of keys the cold table had to fill")
    for name, value in same.items():
        teacher = {"fp32": "fp32, teacher online", "fp32_table": "fp32, fp16 table"}
        what = "largest relative difference of five losses, same weights; ours in {}"
        result.figure(
            f"loss_difference_{name}", value, "", what.format(teacher.get(name, "bf16, bf16 table"))
        )
    for name, value in drift.items():
        what = f"the same in {name} when each side trains on its own from the same start"
        result.figure(f"loss_drift_{name}", value, unit="", what=what)
    result.write(options.out)


if __name__ == "__main__":
    main()
