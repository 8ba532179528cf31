"""The seed's pair and data for benchmarks: large and small model, CIFAR-sized images, Adam.

The images are noise, made from a seed: nothing that is timed depends on what they show. The models
have running batch-norm statistics and no training; the teacher's logits are of a trained one's
size, so that rounding and losses are too.
"""

from __future__ import annotations

import torch

from distillation.data import CropFlip, ImageSet, TensorLoader
from distillation.models.vgg import LargeModel, SmallModel

BATCH = 64
TEMPERATURE = 5.0
LEARNING_RATE = 2.5e-4


def images(n: int = 2048, seed: int = 0) -> ImageSet:
    """n images of 32×32 pixels and three channels in ten classes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n,), generator=generator)
    return ImageSet.of(pixels, labels, [str(i) for i in range(10)])


def views() -> CropFlip:
    """The 162 views of padding by four, cropping and mirroring."""
    return CropFlip(padding=4, size=32, flip=True)


def teacher(channels_last: bool) -> LargeModel:
    """The large model in evaluation mode, with logits that differ from image to image.

    Fresh weights give the same logits for every image. Batch norm is shown some images, and the
    last layer scaled, until logits spread as those of a trained model do: by about four units.
    """
    torch.manual_seed(0)
    model = LargeModel()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    shown = TensorLoader(images(256), 256, views=views()).batch(0, 0).images
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # statistics of these images alone
        model.train()(shown)
        logits = model.eval()(shown)
        spread = logits.std(dim=0).mean()
        model.fc.weight.mul_(4.0 / spread)
        model.fc.bias.sub_(logits.mean(dim=0)).mul_(4.0 / spread)
    return _format(model, channels_last)


def student(channels_last: bool) -> SmallModel:
    """The small model; always the same initial weights."""
    torch.manual_seed(1)
    return _format(SmallModel().train(), channels_last)


def _format(model, channels_last: bool):
    if channels_last:
        return model.to(memory_format=torch.channels_last)
    return model
