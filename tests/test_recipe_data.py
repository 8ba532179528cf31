"""The data of a recipe."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from distillation.errors import ConfigError, DataError
from distillation.trainer.recipe_data import DATASETS, loaders


def sizes(loader):
    return len(loader.image_set), loader.batch_size


def test_digits_are_split_into_train_valid_and_test():
    train, valid = loaders({"name": "digits", "batch_size": 32, "holdout": 237})
    assert sizes(train) == (1200, 32)
    assert {name: len(part.image_set) for name, part in valid.items()} == {
        "valid": 237,
        "test": 360,
    }
    assert next(iter(train)).images.shape == (32, 1, 8, 8)
    assert len(train.rendering.views) == 9


def test_without_a_holdout_the_test_images_are_validated_on():
    _, valid = loaders({"name": "digits"})
    assert [(name, len(part.image_set)) for name, part in valid.items()] == [("valid", 360)]


def test_a_subset_and_views_are_taken():
    train, _ = loaders({"name": "digits", "subset": 100, "views_per_image": 2})
    assert len(train.image_set) == 100
    assert "[2 of 9" in train.rendering.views.description
    plain, _ = loaders({"name": "digits", "augment": False})
    assert len(plain.rendering.views) == 1


def test_the_seed_orders_the_batches():
    first, again, other = (
        next(iter(loaders({"name": "digits", "seed": seed})[0])).sample for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_held_out_images_are_normalised_as_the_training_images():
    train, valid = loaders({"name": "digits", "holdout": 237, "subset": 50})
    assert valid["valid"].rendering.mean == train.rendering.mean == valid["test"].rendering.mean


@pytest.mark.parametrize("name", DATASETS[1:3])
def test_missing_data_says_how_to_provide_it(tmp_path, name):
    with pytest.raises(DataError, match=r"cifar-?100?|CIFAR-10"):
        loaders({"name": name, "data_dir": str(tmp_path / "nothing")})


def test_missing_imagenet_says_how_to_provide_it(tmp_path):
    with pytest.raises(DataError, match=r"train and val missing.*dataset\.data_dir=FOLDER"):
        loaders({"name": "imagenet", "data_dir": str(tmp_path)})


def test_folders_of_pictures_are_loaded_as_imagenet(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for number, kind in enumerate(("cat", "dog")):
            folder = tmp_path / part / kind
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), (number * 200, 50, i)).save(folder / f"{i}.png")
    section = {"name": "imagenet", "data_dir": str(tmp_path), "image_size": 16, "batch_size": 4}
    train, valid = loaders(section)
    images, labels = next(iter(train))
    assert images.shape == (4, 3, 16, 16)
    assert len(valid["valid"].dataset) == 4
    images, labels = next(iter(valid["valid"]))
    assert labels.tolist() == [0, 0, 1, 1]
    # ImageNet's own normalisation
    expected = (torch.tensor([0.0, 50 / 255, 0.0]) - torch.tensor([0.485, 0.456, 0.406])) / (
        torch.tensor([0.229, 0.224, 0.225])
    )
    torch.testing.assert_close(images[0, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("train", "valid"), [("digits_train", "digits_val"), ("digits_train", "digits_test")]
)
def test_loaders_are_named(train, valid):
    one, other = loaders({"holdout": 237, "batch_size": 10}, train, valid)
    assert sizes(one) == (1200, 10)
    assert len(other.image_set) == (237 if valid.endswith("val") else 360)


def test_loaders_may_be_objects():
    one, other = object(), object()
    assert loaders(None, one, other) == (one, other)


@pytest.mark.parametrize(
    ("section", "train", "match"),
    [
        ({"name": "digit"}, None, "unknown dataset 'digit'; did you mean 'digits'"),
        ({"name": "digits", "batchsize": 3}, None, "'batchsize'; did you mean 'batch_size'"),
        ({"name": "digits", "batch_size": 0}, None, "'batch_size' is 0"),
        ({"name": "digits", "holdout": 1437}, None, "holdout=1437 leaves none"),
        ({"name": "digits", "subset": 2000}, None, "subset=2000 is more than"),
        ({"name": "digits", "data_dir": "x"}, None, "come with scikit-learn"),
        ({"name": "imagenet", "subset": 5}, None, "not for imagenet"),
        ({}, None, "says nothing of data"),
        (None, "digit_train", "unknown loader 'digit_train'; did you mean 'digits_train'"),
        ({"name": "cifar10"}, "digits_train", "is not of the recipe's dataset 'cifar10'"),
    ],
)
def test_what_does_not_fit_is_named(section, train, match):
    with pytest.raises(ConfigError, match=match):
        loaders(section, train)
