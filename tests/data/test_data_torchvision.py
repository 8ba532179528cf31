"""Our numbered views are torchvision's random ones, which the benchmark compares them with."""

import torch

from benchmarks.loader import PilImages, random_images
from distillation.data import CropFlip, TensorLoader


def test_crop_and_flip_makes_exactly_what_torchvisions_transforms_make():
    """Of 3,000 random pictures of one image each is one of the 162, and all 162 appear."""
    images = random_images(1)
    loader = TensorLoader(images, 1, views=CropFlip())
    every = loader.images(torch.zeros(162, dtype=torch.int64), torch.arange(162))
    numbers = {picture.numpy().tobytes(): view for view, picture in enumerate(every)}
    torch.manual_seed(0)
    theirs = PilImages(images)
    seen = torch.bincount(
        torch.tensor([numbers[theirs[0][0].numpy().tobytes()] for _ in range(3000)])
    )
    assert len(seen) == 162
    assert int(seen.min()) > 0
