"""A recorded run's model on the test set of its experiment."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from distillation import data as datasets
from distillation.errors import (
    ConfigError,
    DataError,
    DistillationError,
    RunError,
    TeacherError,
    unknown,
)
from distillation.frozen_teacher import FrozenTeacher
from distillation.runs import Run, lock, store
from distillation.transfer import Evaluation, Tally, write

DATASETS = ("cifar10", "digits")


def evaluate_run(
    run: Run,
    *,
    data: str | None = None,
    weights: str = "auto",
    device: str | torch.device = "cpu",
    batch_size: int = 500,
    trust: Iterable = (),
    save: bool = False,
) -> dict[str, object]:
    """Accuracy, loss and calibration error of `run` at its step (the last by default).

    run.json says under `evaluation` which data set is meant, `{"dataset": "cifar10"}` or
    `{"dataset": "digits"}`, with the `mean` and `std` of the normalisation, else those in the
    configuration, else the data set's own. `data` is where CIFAR-10 lies.

    A run with a teacher also has `teacher`, its UUID; and, when the teacher is in the same store
    and can be made again, `agreement` and `kl` with it as in `distillation.transfer`, and its
    `teacher_accuracy` on these images. Otherwise `teacher_left_out` says why there are none. The
    teacher is shown the same images, normalised as its own run was when that was on the same data
    set.

    With `save`, all of it and the confusion matrix are written to the run's `evaluation.json`.

    Raises:
        RunError: the run says nothing of a data set, or has no such checkpoint; with `save` also
            when another process is writing the run.
        ConfigError: `data` for a data set that does not lie anywhere.
        DataError: the data is missing.
    """
    spec = _specification(run)
    if spec is None:
        raise RunError(
            f"run {run.label} does not say which data set it is evaluated on "
            '("evaluation" in its run.json)'
        )
    test = _test_set(spec, data)
    step = run.resolve_step()
    if weights == "auto":
        weights = "ema" if "ema" in run.weight_names(step) else "model"
    model = run.load_model(step, weights=weights, trust=trust, device=str(device))

    def loader(run: Run, spec: Mapping) -> datasets.TensorLoader:
        statistics = {key: _statistic(run, spec, key) for key in ("mean", "std")}
        return datasets.TensorLoader(test, batch_size, shuffle=False, device=device, **statistics)

    images = loader(run, spec)
    facts: dict[str, object] = {
        "run": run.uuid,
        "experiment": run.experiment,
        "step": step,
        "weights": weights,
        "dataset": spec["dataset"],
    }
    teacher = theirs = None
    if run.parent_uuid is not None:
        facts["teacher"] = run.parent_uuid
        try:
            parent, teacher = _teacher(run, trust, device)
        except DistillationError as error:
            facts["teacher_left_out"] = str(error)
        else:
            other = _specification(parent)
            same = other is not None and other["dataset"] == spec["dataset"]
            theirs = loader(parent, other) if same else images
    found, loss = _compared(model, images, teacher, theirs)
    if save:
        _save(run, step, found, test.classes)
    return facts | _facts(found, loss)


def measure(
    model: nn.Module,
    loader: Iterable,
    teacher: nn.Module | None = None,
    teacher_loader: Iterable | None = None,
) -> dict[str, float | int]:
    """`images`, `accuracy`, `loss` (mean cross entropy, nats) and `ece` of a classifier.

    `loader` yields batches whose first two fields are images and labels. With a `teacher`, also
    `agreement`, `kl` and `teacher_accuracy`; `teacher_loader` gives it the same images, normalised
    for it.

    Raises ShapeError when the teacher has other classes, DataError when `teacher_loader` has other
    images.
    """
    return _facts(*_compared(model, loader, teacher, teacher_loader))


@torch.inference_mode()
def _compared(
    model: nn.Module,
    loader: Iterable,
    teacher: nn.Module | None,
    teacher_loader: Iterable | None,
) -> tuple[Evaluation, float]:
    tally, losses = Tally(), []
    for batch, other in _pairs(loader, teacher_loader):
        logits, labels = model(batch[0]).float(), batch[1]
        if other is not batch and not torch.equal(labels, other[1]):
            raise DataError(
                "teacher_loader gives other images than loader, or in another order: the labels of "
                "a batch differ"
            )
        tally.add(logits, labels, None if teacher is None else teacher(other[0]).float())
        losses.append(F.cross_entropy(logits.double(), labels, reduction="sum"))
    found = tally.compute()
    return found, torch.stack(losses).sum().item() / found.images


def _pairs(loader: Iterable, other: Iterable | None) -> Iterator[tuple[Any, Any]]:
    """Batches beside those of the same images for the teacher: themselves, or another loader's."""
    if other is None or other is loader:
        yield from ((batch, batch) for batch in loader)
        return
    for pair in itertools.zip_longest(loader, other):
        if None in pair:
            raise DataError("teacher_loader gives another number of batches than loader")
        yield pair


def _facts(found: Evaluation, loss: float) -> dict[str, float | int]:
    facts = {
        "images": found.images,
        "accuracy": found.accuracy,
        "loss": loss,
        "ece": found.ece,
        "agreement": found.agreement,
        "kl": found.kl,
        "teacher_accuracy": found.teacher_accuracy,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _save(run: Run, step: int, found: Evaluation, classes: Iterable[str]) -> None:
    """Write evaluation.json, as an experiment does after each epoch."""
    epoch = run.checkpoint(step, names=[], state=False).info.get("epoch")
    held = lock.hold(run.path)
    try:
        write(run.path, found, split="test", epoch=epoch, step=step, classes=list(classes))
    finally:
        held.release()


def check_device(device: str) -> torch.device:
    """`device`, if it is here. Raises ConfigError otherwise."""
    try:
        wanted = torch.device(device)
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used here: {reason}") from error
    return wanted


def _specification(run: Run) -> Mapping | None:
    """What the run says of the data it is evaluated on, if it does."""
    spec = run.info.get("evaluation")
    return spec if isinstance(spec, Mapping) and "dataset" in spec else None


def _teacher(run: Run, trust: Iterable, device: str | torch.device) -> tuple[Run, nn.Module]:
    """The teacher's run, and its model as the student had it.

    Raises TeacherError when it is not in the store, cannot be read, or is not what it was; else as
    `load_model`.
    """
    parent = run.parent
    if parent is None:
        why = store.why_absent(run.parent_uuid, run.path.parent.parent)
        raise TeacherError(f"run {run.parent_uuid} is {why}")
    recorded = run.info.get("teacher")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    step = {**(recorded.get("made_by") or {}), **recorded}.get("step")
    model = parent.load_model(step, trust=trust, device=str(device))
    fingerprint = recorded.get("fingerprint")
    if fingerprint and fingerprint != FrozenTeacher(model).fingerprint:
        raise TeacherError(f"run {parent.label} is not the teacher it was: its weights are others")
    return parent, model


def _test_set(spec: Mapping, data: str | None) -> datasets.ImageSet:
    name = spec["dataset"]
    if name == "cifar10":
        return datasets.cifar10(data)[1]
    if data is not None:
        raise ConfigError(f"--data is where CIFAR-10 lies; this run is evaluated on {name!r}")
    if name == "digits":
        return datasets.digits(spec.get("seed", 0))[1]
    raise RunError(unknown("data set", name, DATASETS))


def _statistic(run: Run, spec: Mapping, key: str) -> object:
    """`mean` or `std` of the normalisation; None leaves it to the data set."""
    if spec.get(key) is not None:
        return spec[key]
    value = run.config.get(key)
    return value if isinstance(value, (list, tuple)) else None
