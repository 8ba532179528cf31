"""Datasets of plain images: gathered into memory when they fit, streamed when they do not."""

import numpy as np
import pytest
import torch
from PIL import Image

from distillation.data import (
    CropFlip,
    ImageSet,
    ReplayableLoader,
    TensorLoader,
    digits,
    gather,
    make_loader,
)
from distillation.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return digits()[0].subset(60)


def items(images: ImageSet, kind: str) -> list:
    """The images as a dataset would give them."""
    make = {
        "tensor": lambda x: x,
        "array": lambda x: x[0].numpy(),
        "PIL": lambda x: Image.fromarray(x[0].numpy()),
    }[kind]
    return [(make(x), int(y)) for x, y in zip(images.images, images.labels, strict=True)]


@pytest.mark.parametrize("kind", ["tensor", "array", "PIL"])
def test_gathering_keeps_every_pixel_and_label(train, kind):
    found = gather(items(train, kind))
    assert torch.equal(found.images, train.images)
    assert torch.equal(found.labels, train.labels)
    assert found.classes == tuple("0123456789")


def test_colour_arrays_are_height_width_channel():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    found = gather([(Image.fromarray(pixels), 0)])
    assert found.images.shape == (1, 3, 2, 3)
    assert found.images[0, 2, 1, 0] == pixels[1, 0, 2]


def test_data_that_fits_is_taken_into_memory_and_data_that_does_not_is_streamed(train):
    """Both loaders make the same batches, so a run may move to a smaller machine."""
    options = {"views": CropFlip(1, 8), "views_per_image": 3, "cutout": 2, "seed": 4}
    common = {"mean": train.mean, "std": train.std, **options}
    whole = make_loader(items(train, "PIL"), 16, memory_limit=60 * 64, **common)
    streamed = make_loader(items(train, "PIL"), 16, memory_limit=60 * 64 - 1, **common)
    assert isinstance(whole, TensorLoader)
    assert isinstance(streamed, ReplayableLoader)
    for one, two in zip(whole.batches(1), streamed.batches(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert isinstance(make_loader(items(train, "PIL"), 16), TensorLoader)


def test_an_image_set_is_in_memory_already(train):
    made = make_loader(train, 16, seed=3, memory_limit=0).batch(0, 0)
    assert torch.equal(made.images, TensorLoader(train, 16, seed=3).batch(0, 0).images)


def test_wrong_datasets_are_named(train):
    with pytest.raises(DataError, match=r"item 1 of list has shape \(1, 9, 9\), item 0"):
        gather([(torch.zeros(1, 8, 8).byte(), 0), (torch.zeros(1, 9, 9).byte(), 0)])
    with pytest.raises(DataError, match=r"item 0 of list is torch.float32.*leave the"):
        gather([(torch.zeros(1, 8, 8), 0)])
    with pytest.raises(DataError, match="item 0 of list is no pair"):
        gather([torch.zeros(1, 8, 8).byte()])
    with pytest.raises(ConfigError, match="list has no items"):
        make_loader([], 4)
    with pytest.raises(ConfigError, match=r"60 images of 64 bytes do not fit in 100 bytes.*mean="):
        make_loader(items(train, "tensor"), 4, memory_limit=100)


def test_an_item_that_cannot_be_read_is_named(tmp_path):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return (tmp_path / f"{i}.png").read_bytes(), 0

    with pytest.raises(DataError, match=r"item 0 of Broken .*No such file"):
        gather(Broken(), file=tmp_path / "images.npy")
