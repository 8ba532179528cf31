"""How many images a second one core makes ready: ours against PIL transforms in a DataLoader.

    python -m benchmarks.loader

Both make the usual training batches of CIFAR-10 (pad by 4, crop, flip, normalise, float32) from
50,000 images in memory, in a new random order: torchvision's transforms on PIL images through
`torch.utils.data.DataLoader(num_workers=0)`, as torchvision's CIFAR-10 examples have it, and
`TensorLoader` with `CropFlip`. The pixels are random, since neither way looks at them. One variant
of ours reads them from a mapped file, which the system then holds in its page cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import distillation.torchvision_guard  # noqa: F401
from benchmarks.common import Result, arguments, measure, ratio
from distillation.data import CropFlip, ImageSet, TensorLoader, map_images
from distillation.data.pictures import CLASSES

IMAGES, BATCH_SIZE, BATCHES = 50_000, 64, 60


class PilImages(Dataset):
    """What `torchvision.datasets.CIFAR10` does for an item: array, PIL image, transform."""

    def __init__(self, image_set: ImageSet) -> None:
        from torchvision import transforms

        self.pixels = image_set.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = image_set.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(image_set.mean, image_set.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[i])), self.targets[i]


def random_images(n: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet.of(pixels, torch.arange(n) % 10, CLASSES)


def drawing(loader):
    """A unit of work: begin an epoch and take its first batches."""

    def draw() -> None:
        for _ in islice(iter(loader), BATCHES):
            pass

    return draw


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, rounds=11, argv=argv)
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options, folder: Path) -> None:
    """Time all loaders over the same images and write the result; `folder` is for the file."""
    images = random_images(IMAGES)
    np.save(folder / "images.npy", images.images.numpy())
    facts = {name: getattr(images, name) for name in ("classes", "mean", "std", "fingerprint")}
    mapped = map_images(folder / "images.npy", images.labels, **facts)
    common = {"batch_size": BATCH_SIZE, "views": CropFlip()}
    variants = {
        "pil": DataLoader(PilImages(images), BATCH_SIZE, shuffle=True, num_workers=0),
        "ours": TensorLoader(images, **common),
        "ours_mapped": TensorLoader(mapped, **common),
        "ours_16_views": TensorLoader(images, views_per_image=16, **common),
        "ours_cutout": TensorLoader(images, cutout=8, **common),
        "ours_channels_last_bf16": TensorLoader(
            images, channels_last=True, dtype=torch.bfloat16, **common
        ),
    }
    timings = measure(
        {name: drawing(loader) for name, loader in variants.items()}, rounds=options.rounds
    )
    result = Result("loader", "How many images a second does one core make ready?")
    result.settings = {
        "images": IMAGES,
        "batch_size": BATCH_SIZE,
        "batches_a_round": BATCHES,
        "rounds": options.rounds,
        "augmentation": "pad 4, random crop 32, random flip, normalise, float32",
    }
    result.timings = timings
    result.figure("speedup", ratio(timings, "pil", "ours"), "×", "PIL and DataLoader over ours")
    for name in variants:
        spent = sorted(timings[name].cpu)[len(timings[name].cpu) // 2]
        rate = BATCHES * BATCH_SIZE / spent
        result.figure(f"images_per_second_{name}", rate, "images/s", "CPU time, one core")
    result.notes.append("Every round begins an epoch: drawing its order is part of the time.")
    result.write(options.out)


if __name__ == "__main__":
    main()
