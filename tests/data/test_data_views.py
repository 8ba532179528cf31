"""Views: numbered, distinct, closed under mirroring, made by one gather."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.data import CropFlip, Cutout, Identity
from distillation.errors import ConfigError, ShapeError


def pictures(n: int, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, channels, size, size)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def by_hand(image: torch.Tensor, view: int, padding: int) -> torch.Tensor:
    """One view of one image (C, S, S), step by step: pad, cut, mirror."""
    n, size = 2 * padding + 1, image.shape[-1]
    flip, dy, dx = view // (n * n), view // n % n, view % n
    padded = F.pad(image, (padding,) * 4)
    window = padded[:, dy : dy + size, dx : dx + size]
    return window.flip(-1) if flip else window


def test_crop_and_flip_has_162_views_and_all_are_different():
    views = CropFlip()
    assert views.finite
    assert len(views) == 162
    image = pictures(1).expand(162, -1, -1, -1)
    made = views.apply(image, torch.arange(162))
    assert len({picture.numpy().tobytes() for picture in made}) == 162


def test_every_view_is_what_it_says():
    image = pictures(1)
    made = CropFlip().apply(image.expand(162, -1, -1, -1), torch.arange(162))
    expected = torch.stack([by_hand(image[0], v, padding=4) for v in range(162)])
    assert torch.equal(made, expected)


def test_the_identity_is_among_the_views():
    views, images = CropFlip(padding=2, size=8), pictures(3, size=8)
    assert torch.equal(views.apply(images, torch.full((3,), views.identity)), images)


@settings(deadline=None)
@given(
    padding=st.integers(0, 3),
    size=st.integers(1, 9),
    channels=st.integers(1, 4),
    flip=st.booleans(),
    channels_last=st.booleans(),
    data=st.data(),
)
def test_a_batch_with_mixed_views_equals_one_by_one(
    padding, size, channels, flip, channels_last, data
):
    views = CropFlip(padding, size, flip)
    chosen = data.draw(st.lists(st.integers(0, len(views) - 1), min_size=1, max_size=6))
    images = pictures(len(chosen), channels, size)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    made = views.apply(images, torch.tensor(chosen))
    assert made.dtype == torch.uint8
    if channels_last:
        assert made.is_contiguous(memory_format=torch.channels_last)
    for image, view, picture in zip(images, chosen, made, strict=True):
        assert torch.equal(picture, by_hand(image, view, padding))


@given(st.integers(0, 161))
def test_views_are_closed_under_mirroring(view):
    """A view of the mirrored image is another view of the image: same row, mirrored column."""
    views, image = CropFlip(), pictures(1)
    flip, dy, dx = view // 81, view // 9 % 9, view % 9
    mirrored = views.apply(image.flip(-1), torch.tensor([view]))
    other = torch.tensor([(1 - flip) * 81 + dy * 9 + (8 - dx)])
    assert torch.equal(mirrored, views.apply(image, other))


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 10**6))
def test_a_draw_is_a_valid_view_and_does_not_depend_on_the_batch(seed, epoch):
    views, sample = CropFlip(), torch.tensor([5, 49_999, 0, 5])
    drawn = views.draw(sample, epoch, seed)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 162
    assert int(drawn[0]) == int(drawn[3])
    assert int(views.draw(sample[1:2], epoch, seed)) == int(drawn[1])


@pytest.mark.parametrize("k", [1, 4, 16, 162])
def test_a_restricted_sample_stays_inside_its_own_views_and_sees_them_all(k):
    views, sample = CropFlip().restrict(k, seed=3), torch.arange(40)
    allowed = views.choices(sample)
    assert allowed.shape == (40, k)
    assert all(len(set(row.tolist())) == k for row in allowed)
    seen = torch.stack([views.draw(sample, epoch, seed=9) for epoch in range(12 * k)], dim=1)
    for own, row in zip(allowed, seen, strict=True):
        if k <= 16:
            assert set(row.tolist()) == set(own.tolist())
        assert set(row.tolist()) <= set(own.tolist())


def test_restricted_views_do_not_depend_on_who_asks():
    """Student and table agree on them: neither the run's seed nor the batch plays a part."""
    first, second = CropFlip().restrict(4, seed=1), CropFlip().restrict(4, seed=1)
    first.prepare(100)
    assert torch.equal(
        first.choices(torch.arange(100))[50:60], second.choices(torch.arange(50, 60))
    )
    other = CropFlip().restrict(4, seed=2)
    assert not torch.equal(first.choices(torch.arange(9)), other.choices(torch.arange(9)))


def test_restricted_views_spread_over_the_whole_group():
    """4 of 162 for 20,000 images: every view is allowed about 494 times (σ ≈ 22)."""
    counts = torch.bincount(CropFlip().restrict(4).choices(torch.arange(20_000)).flatten())
    assert len(counts) == 162
    assert 370 < int(counts.min()) <= int(counts.max()) < 620


def test_a_restriction_keeps_the_numbers_of_the_group_it_is_taken_from():
    views, images = CropFlip(1, 8).restrict(2, seed=0), pictures(4, size=8)
    view = views.draw(torch.arange(4), epoch=0)
    assert len(views) == len(CropFlip(1, 8)) == 18
    assert torch.equal(views.apply(images, view), CropFlip(1, 8).apply(images, view))


def test_fingerprints_differ_when_any_picture_does():
    family = [
        Identity(),
        CropFlip(),
        CropFlip(padding=3),
        CropFlip(flip=False),
        CropFlip(size=28),
        CropFlip().restrict(4),
        CropFlip().restrict(5),
        CropFlip().restrict(4, seed=1),
        Cutout(CropFlip(), 8, (0, 0, 0)),
        Cutout(CropFlip(), 8, (1, 0, 0)),
        Cutout(CropFlip(), 9, (0, 0, 0)),
        Cutout(CropFlip(), 8, (0, 0, 0), seed=1),
    ]
    assert len({views.fingerprint for views in family}) == len(family)
    assert CropFlip().fingerprint == CropFlip().fingerprint
    assert CropFlip().restrict(None).fingerprint == CropFlip().fingerprint


def test_cutout_is_replayed_from_sample_and_key_alone():
    views, images = Cutout(CropFlip(1, 8), 4, fill=(7, 8, 9), seed=5), pictures(6, size=8)
    sample = torch.arange(100, 106)
    key = views.draw(sample, epoch=3)
    made = views.apply(images, key, sample)
    again = views.apply(images[2:4], key[2:4], sample[2:4])
    assert torch.equal(made[2:4], again)
    plain = CropFlip(1, 8).apply(images, key % 18)
    changed = (made != plain).any(1)
    assert changed.flatten(1).any(1).all()
    assert (made.permute(0, 2, 3, 1)[changed] == torch.tensor([7, 8, 9])).all()


def test_cutout_blanks_a_square_around_any_pixel():
    """Inside the image it has its full size; over the edge it is cut; centres go everywhere."""
    views, images = Cutout(Identity(), 4, fill=(0,)), torch.full((4096, 1, 8, 8), 200).byte()
    sample = torch.arange(4096)
    hole = views.apply(images, views.draw(sample, epoch=1), sample)[:, 0] == 0
    areas = hole.flatten(1).sum(1)
    assert int(areas.max()) == 16
    assert int(areas.min()) == 4
    assert hole.any(0).all()
    one = hole[areas == 16][0].nonzero()
    assert (one.max(0).values - one.min(0).values).tolist() == [3, 3]


def test_cutout_moves_from_epoch_to_epoch_and_is_not_finite():
    views, images, sample = Cutout(Identity(), 4, (0,)), pictures(64, 1, 8), torch.arange(64)
    assert not views.finite
    one, two = (views.apply(images, views.draw(sample, e), sample) for e in (1, 2))
    assert not torch.equal(one, two)
    with pytest.raises(TypeError, match="keys are"):
        len(views)
    with pytest.raises(ConfigError, match="not finite"):
        views.choices(sample)
    with pytest.raises(ConfigError, match="not finite"):
        views.restrict(4)


def test_wrong_arguments_are_named():
    with pytest.raises(ShapeError, match=r"size=8.*got images of 32×32"):
        CropFlip(size=8).apply(pictures(1), torch.tensor([0]))
    with pytest.raises(ConfigError, match=r"163 views.*has 162"):
        CropFlip().restrict(163)
    with pytest.raises(ConfigError, match="0 views"):
        CropFlip().restrict(0)
    with pytest.raises(ConfigError, match="restricted already"):
        CropFlip().restrict(16).restrict(4)
    with pytest.raises(ConfigError, match="padding=-1"):
        CropFlip(padding=-1)
    with pytest.raises(ConfigError, match="cutout of 0"):
        Cutout(Identity(), 0, (0,))
    with pytest.raises(ShapeError, match="1 fill levels for 3 channels"):
        Cutout(Identity(), 2, (0,)).apply(pictures(1), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ConfigError, match="sample numbers"):
        Cutout(Identity(), 2, (0,)).apply(pictures(1), torch.tensor([0]))
