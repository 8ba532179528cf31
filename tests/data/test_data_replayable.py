"""The DataLoader for data that does not fit in memory: the same protocol, the same replay."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from distillation.data import (
    Batch,
    CropFlip,
    ImageSet,
    Rendering,
    ReplayableLoader,
    TensorLoader,
    digits,
)
from distillation.errors import ConfigError


class Noisy(Dataset):
    """Random transforms of three kinds: python's, numpy's and torch's generators."""

    def __len__(self) -> int:
        return 37

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        noise = [float(i), random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
        return torch.tensor(noise), i % 10


def equal(one: Batch, two: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_workers_make_the_batches_that_this_process_makes():
    """Two workers, from the second batch on, against batches made alone and backwards."""
    loader = ReplayableLoader(Noisy(), 10, seed=3, num_workers=2)
    iterated = list(loader.batches(epoch=4, start=1))
    assert len(iterated) == 3
    for i in (3, 1, 2):
        assert equal(loader.batch(4, i), iterated[i - 1])


def test_a_sample_looks_the_same_in_every_batch_of_its_epoch():
    small = torch.cat([b.images[b.sample == 5] for b in ReplayableLoader(Noisy(), 3)])
    large = torch.cat([b.images[b.sample == 5] for b in ReplayableLoader(Noisy(), 37)])
    assert torch.equal(small, large)


def test_noise_changes_with_sample_epoch_and_seed():
    loader = ReplayableLoader(Noisy(), 37, shuffle=False, seed=0)
    first, later = loader.batch(0, 0).images, loader.batch(1, 0).images
    other = ReplayableLoader(Noisy(), 37, shuffle=False, seed=1).batch(0, 0).images
    for column in (1, 2, 3):
        assert first[:, column].unique().numel() == 37
        assert not (first[:, column] == later[:, column]).any()
        assert not (first[:, column] == other[:, column]).any()


def test_the_key_is_sample_and_epoch():
    batch = ReplayableLoader(Noisy(), 10).batch(6, 0)
    assert batch.view.tolist() == [6] * 10
    assert batch.images[:, 0].tolist() == batch.sample.tolist()
    assert torch.equal(batch.labels, batch.sample % 10)


def test_the_global_generators_keep_their_place():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    list(ReplayableLoader(Noisy(), 10))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_order_and_shares_are_those_of_the_tensor_loader():
    train, _ = digits()
    pairs = [(image, int(label)) for image, label in zip(train.images, train.labels, strict=True)]
    options = {"seed": 8, "rank": 1, "world_size": 3, "drop_last": True}
    listed, tensor = ReplayableLoader(pairs, 100, **options), TensorLoader(train, 100, **options)
    assert len(listed) == len(tensor)
    for i in (0, 13):
        one, two = listed.batch(2, i), tensor.batch(2, i)
        assert torch.equal(one.sample, two.sample)
        assert torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("channels_last", [False, True])
def test_rendered_batches_are_the_tensor_loaders_to_the_bit(channels_last):
    """So a teacher's table made with one serves the other."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    train = ImageSet.of(pixels, torch.arange(50) % 10, "0123456789")
    pairs = [(image, int(label)) for image, label in zip(train.images, train.labels, strict=True)]
    options = {
        "views": CropFlip(2, 8),
        "views_per_image": 5,
        "cutout": 3,
        "channels_last": channels_last,
        "dtype": torch.bfloat16,
    }
    rendering = Rendering(train.mean, train.std, seed=6, **options)
    listed = ReplayableLoader(pairs, 20, rendering=rendering, seed=6)
    tensor = TensorLoader(train, 20, seed=6, **options)
    assert all(equal(a, b) for a, b in zip(listed.batches(3), tensor.batches(3), strict=True))


def test_rendering_takes_bytes_only():
    with pytest.raises(ConfigError, match=r"it gave torch.float32 of shape \(4,\)"):
        ReplayableLoader(Noisy(), 4, rendering=Rendering([0.5], [0.5])).batch(0, 0)


def test_pairs_for_loops_that_expect_pairs():
    images, labels = next(iter(ReplayableLoader(Noisy(), 10, keys=False)))
    assert images.shape == (10, 4)
    assert labels.shape == (10,)


def test_datasets_that_cannot_be_replayed_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ConfigError, match="Stream is no map-style dataset"):
        ReplayableLoader(Stream(), 4)
    with pytest.raises(ConfigError, match="item 0 of list is no pair"):
        ReplayableLoader([(1, 2, 3)], 1, shuffle=False).batch(0, 0)
