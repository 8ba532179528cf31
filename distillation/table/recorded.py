"""The inputs of a table from what a run has recorded: its data set, its cuts, its views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distillation import data as datasets
from distillation.data import CropFlip, ImageSet, Views
from distillation.errors import ConfigError, RunError, unknown
from distillation.precision import resolve_precision
from distillation.runs import Run
from distillation.table.compute import Execution
from distillation.table.inputs import ImageInputs

# The augmentation that the experiments train each data set with.
VIEWS: dict[str, Views] = {
    "cifar10": CropFlip(padding=4, size=32, flip=True),
    "digits": CropFlip(padding=1, size=8, flip=False),
}


def recorded_inputs(
    run: Run,
    *,
    dataset: str | None = None,
    data: str | None = None,
    views: int | None = None,
    subset: int | None = None,
    holdout: int | None = None,
    without_classes: Sequence[int] | None = None,
) -> dict[str, ImageInputs]:
    """What a student sees that is trained as `run` was: `{"train": …, "valid": …, "test": …}`.

    The training images under the views of their data set; the held out ones, when there are any,
    and the test images as they are. What is None is as in the run's configuration; `views=0` is all
    of them. `dataset` names the data set of a run that was given its loaders, as a trainer's is;
    `data` says where CIFAR-10 lies.

    Raises `RunError` when the run does not say what it was trained on, `ConfigError` for a data set
    that is not known and for numbers that do not fit the data.
    """
    spec = run.info.get("evaluation")
    spec = spec if isinstance(spec, Mapping) else {}
    if dataset is not None and dataset not in VIEWS:
        raise ConfigError(unknown("data set", dataset, VIEWS))
    name = dataset or spec.get("dataset")
    if name not in VIEWS:
        raise RunError(
            f"run {run.label} does not say which images it was trained on ('evaluation' in its "
            f"run.json): {unknown('data set', name, VIEWS)} Say it with --dataset, or make "
            "a table of others in Python: TeacherTable(run, folder, ImageInputs(images, views))"
            ".fill()"
        )
    if name == "cifar10":
        train, test = datasets.cifar10(data or run.config.get("data") or None)[:2]
    elif data is not None:
        raise ConfigError(f"--data is where CIFAR-10 lies; the images are those of {name!r}")
    else:
        train, test = datasets.digits(spec.get("seed", 0))[:2]
    given = {"subset": subset, "holdout": holdout, "without_classes": without_classes}
    train, held_out = _cut(train, recorded_cuts(run, **given))
    k = recorded_views(run, views)
    group = VIEWS[name]
    if k and not 1 <= k <= len(group):
        raise ConfigError(f"views={k}: an image has {len(group)}; take 1 … {len(group)}, 0 for all")
    # The student normalises what it is evaluated on as it does its training images
    as_they_are = {"mean": train.mean, "std": train.std}
    found = {"train": ImageInputs(train, group.restrict(k or None))}
    if held_out is not None:
        found["valid"] = ImageInputs(held_out, **as_they_are)
    found["test"] = ImageInputs(test, **as_they_are)
    return found


def recorded_cuts(run: Run, **given: Any) -> dict[str, Any]:
    """`holdout`, `without_classes` and `subset`, in the order in which they are made."""
    found = {"holdout": 0, "without_classes": [], "subset": 0}
    for name, value in found.items():
        own = run.config.get(name) or value
        found[name] = own if given.get(name) is None else given[name]
    return found


def recorded_views(run: Run, views: int | None) -> int:
    """Views of each training image, 0 for all of them."""
    return (run.config.get("views_per_image") or 0) if views is None else views


def recorded_execution(
    run: Run,
    precision: str | None,
    batch_size: int | None,
    device: torch.device,
    channels_last: bool | None = None,
) -> Execution:
    """How the run's model is to be run: as in its configuration, unless said otherwise.

    "auto" is bf16 where the device computes it fast, else fp32; fp16 on a CPU is bf16: both as for
    the student that is trained there.
    """
    precision = resolve_precision(precision or run.config.get("precision", "fp32"), device)
    if channels_last is None:
        channels_last = bool(run.config.get("channels_last", False))
    return Execution(
        precision="bf16" if precision == "fp16" and device.type == "cpu" else precision,
        channels_last=channels_last,
        batch_size=batch_size,
    )


def _cut(train: ImageSet, cuts: Mapping[str, Any]) -> tuple[ImageSet, ImageSet | None]:
    """The same cuts in the same order as the experiments make, and what was held out."""
    held_out = None
    if cuts["holdout"]:
        if cuts["holdout"] >= len(train):
            raise ConfigError(f"holdout={cuts['holdout']} leaves none of {len(train)} images")
        train, held_out = train.split(holdout=cuts["holdout"], seed=0)
    if cuts["without_classes"]:
        train = train.without_classes(cuts["without_classes"])
        if not len(train):
            raise ConfigError(f"without_classes={cuts['without_classes']} leaves no images")
    return (train.subset(cuts["subset"], seed=0) if cuts["subset"] else train), held_out
