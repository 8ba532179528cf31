"""Image sets: what they check, and how they are cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.data import ImageSet
from distillation.data.images import channel_statistics
from distillation.errors import ConfigError, DataError


def labelled(labels: list[int], classes: int = 3) -> ImageSet:
    """One 2×2 image for each label; image i is filled with the value i."""
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8)
    return ImageSet.of(images, torch.tensor(labels), [f"class {i}" for i in range(classes)])


UNEVEN = [0] * 50 + [1] * 30 + [2] * 20


def test_a_subset_takes_every_class_in_proportion():
    assert labelled(UNEVEN).subset(10, seed=4).counts() == {
        "class 0": 5,
        "class 1": 3,
        "class 2": 2,
    }


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=60), st.integers(0, 99), st.data())
def test_a_split_is_stratified_complete_and_without_overlap(labels, seed, data):
    whole = labelled(labels)
    n = data.draw(st.integers(1, len(labels) - 1))
    rest, held = whole.split(holdout=n, seed=seed)
    assert len(held) == n
    rows = torch.cat([rest.images, held.images])[:, 0, 0, 0].tolist()
    assert sorted(rows) == list(range(len(labels)))
    for name, count in whole.counts().items():
        assert abs(held.counts()[name] - count * n / len(labels)) < 1


def test_an_image_set_is_a_map_style_dataset():
    """So torch's own DataLoader, Subset and samplers take it."""
    whole = labelled([0, 2, 1])
    image, label = whole[1]
    assert (image.tolist(), label) == ([[[1, 1], [1, 1]]], 2)
    assert torch.equal(whole[-1][0], whole[2][0])
    for i in (3, -4):
        with pytest.raises(IndexError, match=r"image .* of 3"):
            whole[i]
    assert [label for _, label in whole] == [0, 2, 1]
    part = torch.utils.data.Subset(whole, [2, 0])
    (images, labels), *_ = torch.utils.data.DataLoader(part, batch_size=2)
    assert torch.equal(images, whole.images[[2, 0]])
    assert labels.tolist() == [1, 0]


def test_cuts_follow_the_seed_alone():
    whole = labelled(UNEVEN)
    torch.manual_seed(1)
    first = whole.subset(20, seed=5)
    torch.manual_seed(2)
    again, other = whole.subset(20, seed=5), whole.subset(20, seed=6)
    assert torch.equal(first.images, again.images)
    assert first.fingerprint == again.fingerprint
    assert not torch.equal(first.images, other.images)
    assert first.fingerprint != other.fingerprint


def test_a_larger_subset_holds_the_smaller_one():
    whole = labelled(UNEVEN)
    small, large = (set(whole.subset(n).images[:, 0, 0, 0].tolist()) for n in (10, 50))
    assert small < large


def test_a_cut_keeps_image_and_label_together_and_the_order():
    part = labelled(UNEVEN).subset(37, seed=1)
    rows = part.images[:, 0, 0, 0].tolist()
    assert rows == sorted(rows)
    assert part.labels.tolist() == [UNEVEN[row] for row in rows]


def test_leaving_out_classes_keeps_labels_and_class_names():
    part = labelled(UNEVEN).without_classes(["class 1"])
    assert part.counts() == {"class 0": 50, "class 1": 0, "class 2": 20}
    assert part.num_classes == 3
    assert labelled(UNEVEN).without_classes(1).fingerprint == part.fingerprint


def test_mean_and_std_stay_those_of_the_whole():
    whole = labelled(UNEVEN)
    assert whole.subset(3).mean == whole.mean
    assert whole.split(3)[1].std == whole.std


def test_statistics_are_those_of_all_pixels():
    images = torch.randint(0, 256, (5000, 3, 4, 5), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = (images.double() / 255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean(1).float().double())
    torch.testing.assert_close(torch.tensor(std), pixels.std(1, correction=0).float())


def test_the_fingerprint_sees_every_pixel_label_and_class_name():
    images, labels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    base = ImageSet.of(images, labels, "ab")
    touched = images.clone()
    touched[3, 2, 1, 1] = 1
    others = [
        ImageSet.of(touched, labels, "ab"),
        ImageSet.of(images, labels.flip(0), "ab"),
        ImageSet.of(images, labels, "ac"),
        ImageSet.of(images.view(4, 3, 1, 4), labels, "ab"),
    ]
    assert len({s.fingerprint for s in [base, *others]}) == 5
    assert ImageSet.of(images.clone(), labels.clone(), ["a", "b"]).fingerprint == base.fingerprint


def test_cuts_that_cannot_be_are_refused():
    whole = labelled([0, 1, 2])
    for n in (0, 4):
        with pytest.raises(ConfigError, match="there are 3"):
            whole.subset(n)
    with pytest.raises(ConfigError, match="holdout of 3"):
        whole.split(3)
    with pytest.raises(ConfigError, match="unknown class 'class 9'; did you mean 'class 2'"):
        whole.without_classes(["class 9"])
    with pytest.raises(ConfigError, match="unknown class '3'"):
        whole.without_classes([3])


def test_tensors_that_do_not_fit_are_refused():
    images, labels = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1])
    for wrong_images, wrong_labels, message in [
        (images.float(), labels, "images must be uint8"),
        (images[0], labels, "images must be uint8 of shape"),
        (images, labels[:1], "labels must be int64 of shape"),
        (images, labels.int(), "labels must be int64"),
        (images, labels + 1, "labels reach from 1 to 2"),
        (images, labels - 1, "labels reach from -1 to 0"),
    ]:
        with pytest.raises(DataError, match=message):
            ImageSet.of(wrong_images, wrong_labels, "ab", (0.5,), (0.5,))
    with pytest.raises(DataError, match="3 means"):
        ImageSet.of(images, labels, "ab", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("given", ["mean", "std"])
def test_a_statistic_that_is_given_is_taken_and_the_other_one_reckoned(given):
    whole = labelled(UNEVEN)
    part = ImageSet.of(whole.images, whole.labels, whole.classes, **{given: (0.25,)})
    other = "std" if given == "mean" else "mean"
    assert getattr(part, given) == (0.25,)
    assert getattr(part, other) == getattr(whole, other)


def test_a_set_of_no_images_is_refused():
    with pytest.raises(DataError, match="there are no images"):
        labelled([])
