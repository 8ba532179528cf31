"""The whole-tensor loader: every batch is a pure function of (seed, epoch, position)."""

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distillation.torchvision_guard  # noqa: F401
from distillation.data import Batch, CropFlip, ImageSet, TensorLoader, digits
from distillation.errors import ConfigError

AUGMENT = CropFlip(padding=1, size=8, flip=False)


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return digits()[0]


@pytest.fixture(scope="module")
def colour() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (70, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet.of(images, torch.arange(70) % 10, "0123456789")


def equal(one: Batch, two: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def digest(batch: Batch) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in batch)).hexdigest()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 70),
    batch_size=st.integers(1, 80),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_shows_every_sample_once(n, batch_size, seed, epoch):
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    whole = ImageSet.of(images, torch.zeros(n, dtype=torch.int64), "a", (0.0,), (1.0,))
    loader = TensorLoader(whole, batch_size, seed=seed)
    shown = [batch.sample for batch in loader.batches(epoch)]
    assert len(shown) == len(loader)
    assert sorted(torch.cat(shown).tolist()) == list(range(n))


def test_any_batch_can_be_made_again_alone(train):
    loader = TensorLoader(train, 100, views=AUGMENT, seed=3)
    iterated = list(loader.batches(epoch=2))
    assert len(iterated) == 15
    assert len(iterated[-1].labels) == 37
    other = TensorLoader(train, 100, views=AUGMENT, seed=3)
    for i in (14, 0, 7):
        assert equal(other.batch(2, i), iterated[i])


def test_an_epoch_can_start_anywhere(train):
    loader = TensorLoader(train, 400, views=AUGMENT)
    rest = list(loader.batches(epoch=1, start=2))
    assert len(rest) == 2
    assert equal(rest[0], loader.batch(1, 2))
    assert list(loader.batches(epoch=1, start=4)) == []


def test_another_process_makes_the_same_batch(train):
    """No state is shared: not python's hash seed, not a generator, not the order of asking."""
    program = (
        "import hashlib\n"
        "from distillation.data import CropFlip, TensorLoader, digits\n"
        "loader = TensorLoader(digits()[0], 64, views=CropFlip(1, 8, False), seed=9)\n"
        "batch = loader.batch(5, 11)\n"
        "print(hashlib.sha256(b''.join(t.numpy().tobytes() for t in batch)).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    here = TensorLoader(train, 64, views=AUGMENT, seed=9)
    assert done.stdout.strip() == digest(here.batch(5, 11))


def test_orders_and_views_change_with_epoch_and_seed(train):
    loader = TensorLoader(train, 1437, views=AUGMENT, seed=0)
    first, second = loader.batch(0, 0), loader.batch(1, 0)
    other = TensorLoader(train, 1437, views=AUGMENT, seed=1).batch(0, 0)
    for changed in (second, other):
        assert not torch.equal(first.sample, changed.sample)
        views = [batch.view[batch.sample.argsort()] for batch in (first, changed)]
        assert 0.05 < float((views[0] == views[1]).double().mean()) < 0.2  # one in nine


def test_the_global_generators_are_neither_read_nor_moved(train):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(TensorLoader(train, 500, views=AUGMENT, cutout=3))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    again = list(TensorLoader(train, 500, views=AUGMENT, cutout=3))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))


def test_plain_iteration_goes_on_to_the_next_epoch(train):
    loader = TensorLoader(train, 720, seed=2)
    for epoch in range(2):
        shown = list(loader)
        assert equal(shown[1], loader.batch(epoch, 1))
    loader.set_epoch(0)
    assert equal(next(iter(loader)), loader.batch(0, 0))
    assert loader.epoch == 0  # an epoch that was broken off is not over


def test_images_are_normalised_in_float32_to_the_bit(colour):
    """`(x / 255 - mean) / std`, which is what torchvision's ToTensor and Normalize reckon."""
    from torchvision import transforms

    loader = TensorLoader(colour, 70, shuffle=False)
    made = loader.batch(0, 0).images
    assert made.dtype == torch.float32
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (colour.mean, colour.std))
    assert torch.equal(made, (colour.images.float() / 255 - mean) / std)
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(colour.mean, colour.std)]
    )
    pictures = colour.images.permute(0, 2, 3, 1).numpy()
    assert torch.equal(made, torch.stack([transform(picture) for picture in pictures]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cutout", [0, 8])
def test_memory_format_and_dtype_do_not_change_the_pictures(colour, dtype, cutout):
    options = {"views": CropFlip(), "cutout": cutout, "seed": 4}
    plain = TensorLoader(colour, 64, **options).batch(1, 0)
    made = TensorLoader(colour, 64, channels_last=True, dtype=dtype, **options).batch(1, 0)
    assert made.images.is_contiguous(memory_format=torch.channels_last)
    assert made.images.dtype == dtype
    assert torch.equal(made.images, plain.images.to(dtype))
    assert torch.equal(made.view, plain.view)


def test_a_single_channel_may_be_channels_last(train):
    made = TensorLoader(train, 64, views=AUGMENT, channels_last=True).batch(0, 0)
    assert equal(made, TensorLoader(train, 64, views=AUGMENT).batch(0, 0))


def test_keys_name_the_picture(train):
    """`images(sample, view)` makes it again; labels and sample numbers belong together."""
    loader = TensorLoader(train, 64, views=AUGMENT, cutout=2)
    batch = loader.batch(7, 3)
    assert torch.equal(batch.labels, train.labels[batch.sample])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loader.images(batch.sample[order], batch.view[order]), batch.images[order])


def test_evaluation_shows_the_images_as_they_are_and_in_order(train):
    loader = TensorLoader(train, 500, shuffle=False, mean=[0.0], std=[1.0])
    images, labels, sample, view = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal((images * 255).round().to(torch.uint8), train.images)
    assert torch.equal(labels, train.labels)
    assert torch.equal(sample, torch.arange(1437))
    assert not view.any()


def test_pairs_for_loops_that_expect_pairs(train):
    images, labels = TensorLoader(train, 8, keys=False).batch(0, 0)
    assert images.shape == (8, 1, 8, 8)
    assert labels.shape == (8,)


def test_a_loop_written_for_a_dataloader_runs_as_it_is(train):
    """With `keys=False` it is a drop-in: same pairs, same lengths, same names."""

    def loop(loader):
        assert len(loader.dataset) == 1437
        assert (loader.batch_size, loader.drop_last, len(loader)) == (500, True, 2)
        return [(x, y) for _, (x, y) in enumerate(loader)]

    mean, std = (torch.tensor(value).view(1, 1, 1) for value in (train.mean, train.std))
    pixels = (train.images.float() / 255 - mean) / std
    theirs = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(pixels, train.labels), 500, drop_last=True
    )
    ours = TensorLoader(train, 500, shuffle=False, drop_last=True, keys=False)
    assert all(equal(a, b) for a, b in zip(loop(ours), loop(theirs), strict=True))


def test_restricted_views_are_the_same_for_every_seed(train):
    loaders = [TensorLoader(train, 1437, views=AUGMENT, views_per_image=2, seed=s) for s in (0, 1)]
    allowed = AUGMENT.restrict(2).choices(torch.arange(1437))
    for loader in loaders:
        for epoch in range(3):
            batch = loader.batch(epoch, 0)
            assert (allowed[batch.sample] == batch.view[:, None]).any(1).all()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(5, 70),
    batch_size=st.integers(5, 40),
    world_size=st.integers(1, 5),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_the_parts_of_all_processes_are_the_batch_of_one(
    n, batch_size, world_size, shuffle, drop_last
):
    tail = n % batch_size
    if (drop_last and n < batch_size) or (shuffle and not drop_last and 0 < tail < world_size):
        return  # refused: see below
    images = torch.arange(n).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8)
    whole = ImageSet.of(images, torch.zeros(n, dtype=torch.int64), "a", (0.0,), (1.0,))
    options = {"views": AUGMENT, "shuffle": shuffle, "drop_last": drop_last, "seed": 1}
    alone = TensorLoader(whole, batch_size, **options)
    ranks = [
        TensorLoader(whole, batch_size, rank=r, world_size=world_size, **options)
        for r in range(world_size)
    ]
    assert {len(loader) for loader in ranks} == {len(alone)}
    for i, batch in enumerate(alone.batches(epoch=3)):
        parts = [loader.batch(3, i) for loader in ranks]
        sizes = [len(part.labels) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert equal(Batch(*map(torch.cat, zip(*parts, strict=True))), batch)


def test_a_loader_gives_a_part_of_itself(train):
    whole = TensorLoader(train, 64, views=AUGMENT, seed=2)
    made = TensorLoader(train, 64, views=AUGMENT, seed=2, rank=1, world_size=3)
    assert equal(whole.part(1, 3).batch(4, 5), made.batch(4, 5))
    assert len(whole.batch(4, 5).labels) == 64
    with pytest.raises(ConfigError, match="rank=3 of world_size=3"):
        whole.part(3, 3)
    with pytest.raises(ConfigError, match="29 of 1437 samples for 40"):
        whole.part(0, 40)


def test_dropping_the_last_batch(train):
    loader = TensorLoader(train, 100, drop_last=True)
    assert len(loader) == len(list(loader)) == 14
    assert loader.samples_per_epoch == 1400
    assert TensorLoader(train, 100).samples_per_epoch == 1437


def test_the_fingerprint_names_data_views_and_normalisation(train):
    base = TensorLoader(train, 8, views=AUGMENT)
    same = TensorLoader(train, 64, views=CropFlip(1, 8, False), seed=5, channels_last=True)
    assert base.fingerprint == same.fingerprint
    others = [
        TensorLoader(train.subset(900), 8, views=AUGMENT),
        TensorLoader(train, 8),
        TensorLoader(train, 8, views=AUGMENT, views_per_image=3),
        TensorLoader(train, 8, views=AUGMENT, mean=[0.5]),
        TensorLoader(train, 8, views=AUGMENT, std=[0.5]),
        TensorLoader(train, 8, views=AUGMENT, dtype=torch.bfloat16),
        TensorLoader(train, 8, views=AUGMENT, cutout=2),
    ]
    assert len({loader.fingerprint for loader in [base, *others]}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"batch_size": 1, "world_size": 2}, "every process needs at least one"),
        ({"batch_size": 2000, "drop_last": True}, "leaves nothing of 1437"),
        ({"batch_size": 359, "world_size": 2}, "the last batch has 1 of 1437 samples"),
        ({"mean": [0.1, 0.2]}, "mean has 2 values, std has 1"),
        ({"mean": [0.1, 0.2], "std": [1, 1]}, "mean has 2 values for 1 channels"),
        ({"std": [0.0]}, "positive deviation"),
        ({"dtype": torch.uint8}, "floating-point"),
        ({"views_per_image": 10, "views": AUGMENT}, "10 views of each image"),
    ],
)
def test_options_that_cannot_be_are_refused(train, options, message):
    with pytest.raises(ConfigError, match=message):
        TensorLoader(train, **{"batch_size": 8, **options})


def test_batches_that_are_not_there_are_refused(train):
    loader = TensorLoader(train, 1000)
    with pytest.raises(IndexError, match="batch 2 of 2"):
        loader.batch(0, 2)
    with pytest.raises(ConfigError, match="start=3"):
        loader.batches(0, start=3)
