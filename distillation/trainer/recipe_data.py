"""The data of a recipe: its `dataset` section, and loaders by name, `_target_` or object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from distillation.data import CropFlip, Identity, ImageSet, TensorLoader, cifar10, digits, gather
from distillation.errors import ConfigError, DataError, unknown
from distillation.trainer.schema import REQUIRED, build, option

DATASETS = ("digits", "cifar10", "cifar100", "imagenet")
SPLITS = ("train", "valid", "val", "test")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AT_LEAST_ONE = {"valid": "an integer of at least 1", "check": lambda v: v >= 1}
_AT_LEAST_ZERO = {"valid": "an integer of at least 0", "check": lambda v: v >= 0}


@dataclasses.dataclass
class DatasetParams:
    """The `dataset` section of a recipe."""

    name: str = option(REQUIRED, (str,), "Which data.", example="digits", valid=", ".join(DATASETS))
    data_dir: str | None = option(
        None, (str, None), "Where it lies.", example="/data/cifar10", valid="a path"
    )
    batch_size: int = option(128, (int,), "Images a step.", example="64", **_AT_LEAST_ONE)
    valid_batch_size: int = option(
        500, (int,), "Images at a time in validation.", example="100", **_AT_LEAST_ONE
    )
    subset: int | None = option(
        None, (int, None), "Train on a stratified part.", example="1000", **_AT_LEAST_ONE
    )
    holdout: int = option(
        0, (int,), "Training images kept back for validation.", example="5000", **_AT_LEAST_ZERO
    )
    augment: bool = option(
        True, (bool,), "Crop at random, and flip.", example="false", valid="true or false"
    )
    views_per_image: int | None = option(
        None, (int, None), "Restrict the augmented views.", example="16", **_AT_LEAST_ONE
    )
    image_size: int = option(224, (int,), "ImageNet: pixels.", example="160", **_AT_LEAST_ONE)
    num_workers: int = option(0, (int,), "ImageNet: processes.", example="8", **_AT_LEAST_ZERO)
    seed: int = option(0, (int,), "Order and views.", example="1", **_AT_LEAST_ZERO)


def loaders(
    section: Mapping[str, Any] | None, train: Any = None, valid: Any = None
) -> tuple[Any, Any]:
    """(training loader, validation loader or loaders by name) of a recipe.

    `section` is the recipe's `dataset`; `train` and `valid` are its `train_dataloader` and
    `val_dataloader`: objects, or names such as `cifar10_train` and `cifar10_val` whose options are
    the section's. With `holdout` the validation has two loaders: `valid`, the images kept back, on
    which the best epoch is chosen, and `test`. Without, `valid` is the test images.

    Raises `ConfigError` for unknown names and options, `DataError` when the data is missing, with
    the ways to provide it.
    """
    if section is None and (train is None or isinstance(train, str)):
        section = {}
    named = [n for n in (train, valid) if isinstance(n, str)]
    options = dict(section or {})
    for name in named:
        dataset, _, split = name.rpartition("_")
        if dataset not in DATASETS or split not in SPLITS:
            known = [f"{d}_{s}" for d in DATASETS for s in SPLITS]
            raise ConfigError(unknown("loader", name, known))
        if options.setdefault("name", dataset) != dataset:
            raise ConfigError(f"loader {name!r} is not of the recipe's dataset {options['name']!r}")
    if not isinstance(train, str) and train is not None and not options:
        return train, valid
    if "name" not in options:
        raise ConfigError(
            "the recipe says nothing of data: give dataset.name "
            f"({', '.join(DATASETS)}), or train_dataloader and val_dataloader"
        )
    made = Loaders(build(DatasetParams, options, kind="dataset option", listed="the README"))
    return (
        made.split(train.rpartition("_")[2]) if isinstance(train, str) else train or made.train,
        made.split(valid.rpartition("_")[2]) if isinstance(valid, str) else valid or made.valid,
    )


class Loaders:
    """Training and validation loaders of one of the data sets, made when first asked for."""

    def __init__(self, params: DatasetParams):
        if params.name not in DATASETS:
            raise ConfigError(unknown("dataset", params.name, DATASETS))
        self.params = params
        self._made = _imagenet(params) if params.name == "imagenet" else _images(params)

    @property
    def train(self) -> Any:
        """The training loader."""
        return self._made["train"]

    @property
    def valid(self) -> dict[str, Any]:
        """Validation loaders by name; the first is the one that is watched."""
        return {name: loader for name, loader in self._made.items() if name != "train"}

    def split(self, name: str) -> Any:
        """The loader of one split; "val" is what is validated on."""
        if name == "train":
            return self.train
        if name == "test":
            return self._made.get("test", self._made["valid"])
        return self._made["valid"]


def _images(params: DatasetParams) -> dict[str, Any]:
    train, test = _whole(params)
    held = None
    if params.holdout:
        if params.holdout >= len(train):
            raise ConfigError(
                f"dataset.holdout={params.holdout} leaves none of {len(train)} training images"
            )
        train, held = train.split(holdout=params.holdout, seed=0)
    if params.subset is not None:
        if params.subset > len(train):
            raise ConfigError(
                f"dataset.subset={params.subset} is more than the {len(train)} training images"
            )
        train = train.subset(params.subset, seed=0)
    views = Identity()
    if params.augment:
        small = params.name == "digits"
        views = CropFlip(padding=1, size=8, flip=False) if small else CropFlip()
    plain = {"shuffle": False, "mean": train.mean, "std": train.std}
    test_loader = TensorLoader(test, params.valid_batch_size, **plain)
    made = {
        "train": TensorLoader(
            train,
            params.batch_size,
            views=views,
            views_per_image=params.views_per_image,
            seed=params.seed,
        )
    }
    if held is None:
        return {**made, "valid": test_loader}
    valid = TensorLoader(held, params.valid_batch_size, **plain)
    return {**made, "valid": valid, "test": test_loader}


def _whole(params: DatasetParams) -> tuple[ImageSet, ImageSet]:
    if params.name == "cifar10":
        return cifar10(params.data_dir)
    if params.name == "cifar100":
        return _cifar100(params.data_dir)
    if params.data_dir is not None:
        raise ConfigError("dataset.data_dir: the digits come with scikit-learn and lie nowhere")
    return digits()


def _cifar100(data_dir: str | None) -> tuple[ImageSet, ImageSet]:
    import distillation.torchvision_guard  # noqa: F401
    from torchvision.datasets import CIFAR100  # isort: skip

    root = Path(data_dir or "data").expanduser()
    try:
        parts = [CIFAR100(root, train=part, download=False) for part in (True, False)]
    except RuntimeError as error:
        raise DataError(
            f"there is no CIFAR-100 in {root}: give dataset.data_dir=FOLDER, a folder that holds "
            "cifar-100-python. Where there is a network, torchvision.datasets.CIFAR100(FOLDER, "
            "download=True) puts it there."
        ) from error
    train = gather(parts[0])
    return train, gather(parts[1], mean=train.mean, std=train.std)


def _imagenet(params: DatasetParams) -> dict[str, Any]:
    import distillation.torchvision_guard  # noqa: F401
    from torchvision import datasets, transforms  # isort: skip

    for name in ("subset", "views_per_image", "holdout"):
        if getattr(params, name):
            raise ConfigError(f"dataset.{name} is for the small data sets, not for imagenet")
    root = Path(params.data_dir or "data/imagenet").expanduser()
    missing = [part for part in ("train", "val") if not (root / part).is_dir()]
    if missing:
        raise DataError(
            f"there is no ImageNet in {root} ({' and '.join(missing)} missing): give "
            "dataset.data_dir=FOLDER, a folder with train/<class>/*.JPEG and val/<class>/*.JPEG"
        )
    size = params.image_size
    end = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    centre = [transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size)]
    random = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    parts = {
        "train": datasets.ImageFolder(
            root / "train", transforms.Compose([*(random if params.augment else centre), *end])
        ),
        "valid": datasets.ImageFolder(root / "val", transforms.Compose([*centre, *end])),
    }
    if parts["train"].classes != parts["valid"].classes:
        raise DataError(f"train and val of {root} have other classes")
    generator = torch.Generator().manual_seed(params.seed)
    shared = {"num_workers": params.num_workers, "pin_memory": torch.cuda.is_available()}
    return {
        "train": DataLoader(
            parts["train"], params.batch_size, shuffle=True, generator=generator, **shared
        ),
        "valid": DataLoader(parts["valid"], params.valid_batch_size, **shared),
    }
