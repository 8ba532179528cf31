"""The inputs of a table from what a run has recorded: its data set, its cuts, its views."""

from __future__ import annotations

from collections.abc import Mapping

from distillation import data as datasets
from distillation.data import CropFlip, ImageSet, Views
from distillation.errors import ConfigError, RunError, unknown
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
    data: str | None = None,
    views: int | None = None,
    subset: int | None = None,
    holdout: int | None = None,
) -> ImageInputs:
    """The training images of `run` under the views of its data set.

    What is None is as in the run's configuration; `views=0` is all of them. `data` says where
    CIFAR-10 lies.

    Raises `RunError` when the run does not say what it was trained on, `ConfigError` for numbers
    that do not fit the data.
    """
    spec = run.info.get("evaluation")
    name = spec.get("dataset") if isinstance(spec, Mapping) else None
    if name not in VIEWS:
        raise RunError(
            f"run {run.label} does not say which images it was trained on ('evaluation' in its "
            f"run.json): {unknown('data set', name, VIEWS)} Make the table in Python: "
            "TeacherTable(run, folder, ImageInputs(images, views)).fill()"
        )
    if name == "cifar10":
        train = datasets.cifar10(data or run.config.get("data") or None)[0]
    elif data is not None:
        raise ConfigError(f"--data is where CIFAR-10 lies; this run was trained on {name!r}")
    else:
        train = datasets.digits(spec.get("seed", 0))[0]
    train = _cut(train, run.config, subset, holdout)
    k = run.config.get("views_per_image") if views is None else views
    group = VIEWS[name]
    if k and not 1 <= k <= len(group):
        raise ConfigError(f"views={k}: an image has {len(group)}; take 1 … {len(group)}, 0 for all")
    return ImageInputs(train, group.restrict(k or None))


def recorded_execution(run: Run, precision: str | None, batch_size: int) -> Execution:
    """How the run's model is to be run: as in its configuration, unless said otherwise."""
    return Execution(
        precision=precision or run.config.get("precision", "fp32"),
        channels_last=bool(run.config.get("channels_last", False)),
        batch_size=batch_size,
    )


def _cut(train: ImageSet, config: Mapping, subset: int | None, holdout: int | None) -> ImageSet:
    """The same cuts in the same order as the experiments make: holdout, classes, subset."""
    subset = config.get("subset", 0) if subset is None else subset
    holdout = config.get("holdout", 0) if holdout is None else holdout
    if holdout:
        train = train.split(holdout=holdout, seed=0)[0]
    if config.get("without_classes"):
        train = train.without_classes(config["without_classes"])
    return train.subset(subset, seed=0) if subset else train
