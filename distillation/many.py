"""Several students from one stream of batches and one look at the teacher.

    students = {
        f"T{T}": Student(SmallModel(), sgd, LogitsDistillationLoss(temperature=T))
        for T in (1.0, 4.0, 8.0)
    }
    results = distill_many(students, teacher, loader, epochs=10, valid_loaders={"test": test})

Batches are made once and the teacher is asked once for each; a teacher's forward pass, or a
table's look-up, is shared by all students. What a student becomes does not depend on who trains
beside it: each has random numbers of its own, and its weights equal, bit for bit, those it gets
alone from the same stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillation.data.moving import to_device
from distillation.errors import CheckpointError, ConfigError, unknown
from distillation.frozen_teacher import TeacherSource
from distillation.interrupts import StopSignals
from distillation.losses import LogitsDistillationLoss, StaticLossBalancer
from distillation.many_lane import PRECISIONS, Lane, SharedOutput
from distillation.many_validation import Validation
from distillation.precision import AUTO, resolve_precision
from distillation.teacher import as_teacher, in_store


@dataclass
class Student:
    """One student and how it is trained.

    model        trained in place; it should be made from `seed` by the caller
    optimizer    makes the optimizer: `optimizer(parameters)`
    criterion    one loss between student and teacher outputs, or a dictionary as in `Distiller`
    balancer     weighs it against the label loss; None: the criterion alone
    label_loss   `label_loss(output, labels)`, or None
    schedule     makes the schedule: `schedule(optimizer, steps)`; it steps after every update
    seed         of the random numbers that its training draws (dropout)
    config       recorded with its run
    """

    model: nn.Module
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    criterion: nn.Module | Mapping[tuple[str, str], nn.Module] = field(
        default_factory=lambda: LogitsDistillationLoss(temperature=4.0)
    )
    balancer: nn.Module | None = field(default_factory=lambda: StaticLossBalancer(0.9))
    label_loss: Callable[[Tensor, Tensor], Tensor] | None = F.cross_entropy
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def losses(self) -> list[nn.Module]:
        """The losses of the criterion, in its order."""
        several = isinstance(self.criterion, Mapping)
        return list(self.criterion.values()) if several else [self.criterion]


@dataclass(frozen=True)
class StudentResult:
    """A trained student: its model (the one given), one row of metrics an epoch, its run."""

    model: nn.Module
    metrics: list[dict[str, float]]
    run_uuid: str | None


def distill_many(
    students: Mapping[str, Student],
    teacher: Any,
    loader: Any,
    *,
    epochs: int,
    valid_loaders: Mapping[str, Iterable] | None = None,
    teacher_table: Any = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    root: str | PathLike | None = None,
    experiment: str = "distill_many",
    resume: Mapping[str, str] | None = None,
    save_seconds: float = 45.0,
) -> dict[str, StudentResult]:
    """Train all `students` side by side; see the module for what they share.

    Args:
        students: by name; the name is that of the student's run, too.
        teacher: whatever `as_teacher` takes (runs are those of `root`), or a `TeacherTable`. Losses
            between layers need a table that stores the teacher's; otherwise it gives its outputs
            only.
        loader: of `distillation.data`, so that the stream can be taken up again in the middle.
        epochs: passes over the loader.
        valid_loaders: by split name; accuracy, loss (cross entropy), calibration error, agreement
            with the teacher and KL after each epoch. A given `TeacherTable`, alone or in an
            ensemble, knows nothing of these images: then the last two are left out.
        teacher_table: answer for the teacher from a table of its outputs: "auto" (beside the runs
            of `root`), a folder, or a `TeacherTable`, with the layers that the criteria name; None
            runs the teacher, once for each batch. The images of `valid_loaders` have tables of
            their own, where their batches carry keys.
        precision: "fp32", or autocast in "bf16"; "auto" is bf16 where `device` has instructions
            for it, else fp32.
        root: of the run store. Given, each student is a run of `experiment` with checkpoints at
            least every `save_seconds`, and the teacher's run as its parent; None records nothing.
        resume: `{name: run UUID}` of all students, to go on where the last common checkpoint is.
            Hyper-parameters that are given anew win over those of the checkpoint.

    Ctrl-C and SIGTERM save at the next update (after the last one of an epoch: when it has been
    evaluated), then raise KeyboardInterrupt, also where that was the last epoch and the runs are
    complete; a second one raises it at once.

    Metrics are `loss.train`, `<Class>_<i>.train`, and `accuracy.<split>`, `loss.<split>`,
    `ece.<split>`, `agreement.<split>`, `kl.<split>`; the first split's confusion is in the run's
    `evaluation.json`.

    Raises:
        ConfigError: no students, a model or name that is there twice, unknown precision or names.
        TeacherError: a student shares weights with the teacher; as the teacher does.
        CheckpointError: runs to resume have no checkpoint in common, or another kind of optimizer.
    """
    device = torch.device(device)
    _check(students, loader, epochs, precision, resume, root)
    precision = resolve_precision(precision, device)
    placing = {"precision": precision, "device": device, "epochs": epochs, "root": root}
    with ExitStack() as stack:
        source, teachers = _sources(
            stack, teacher, teacher_table, students, loader, valid_loaders or {}, **placing
        )
        shared = SharedOutput(source)
        validation = Validation(valid_loaders or {}, teachers, device)
        steps = epochs * len(loader)
        lanes = {
            name: stack.enter_context(Lane(student, shared, steps, precision, device))
            for name, student in students.items()
        }
        if root is not None:
            images = getattr(loader, "image_set", None)
            shape = None if images is None else tuple(images.images.shape[1:])
            for name, lane in lanes.items():
                lane.record(name, source, experiment, root, (resume or {}).get(name), shape)
        epoch, batch = 0, 0
        if resume:
            epoch, batch, step = _common_start(lanes)
            for lane in lanes.values():
                lane.recorder.set_config(lane.config)
            for lane in lanes.values():  # no run goes back before all can go on
                lane.recorder.rewind(step)
        with StopSignals() as signals:
            _train(lanes, shared, loader, epochs, epoch, batch, validation, save_seconds, signals)
        results = {
            name: StudentResult(lane.student.model, lane.rows, lane.run_uuid)
            for name, lane in lanes.items()
        }
    if signals.received:
        raise KeyboardInterrupt
    return results


def _sources(
    stack: ExitStack, teacher, table, students, loader, valid_loaders, **options
) -> tuple[TeacherSource, dict[str, TeacherSource]]:
    """Who answers in training, and in each split of the evaluation; `stack` releases them."""
    from distillation.table import TeacherTable
    from distillation.table_option import (
        TRAIN,
        has_keys,
        is_online,
        table_sources,
        teacher_layers,
    )

    if teacher is None and is_online(table):
        raise ConfigError("teacher is missing; give it, or a TeacherTable as teacher_table")
    source = None
    if teacher is not None:
        source = as_teacher(in_store(teacher, options["root"])).to(options["device"])
        stack.callback(source.release)
    # A table in the given teacher knows the images of the training alone
    asked = None if source is None or source.keyed else source
    teachers = {} if asked is None else dict.fromkeys(valid_loaders, asked)
    if is_online(table):
        return source, teachers
    layers = teacher_layers([student.criterion for student in students.values()])
    train = table_sources(source, table, {TRAIN: loader}, layers=layers, **options)[TRAIN]
    stack.callback(train.release)
    keyed = {split: valid for split, valid in valid_loaders.items() if has_keys(valid)}
    if asked is not None and not isinstance(table, TeacherTable):
        # Without layers: an evaluation looks at outputs
        tables = table_sources(source, table, keyed, **options)
        for answering in tables.values():
            stack.callback(answering.release)
        teachers |= tables
    return train, teachers


def _train(lanes, shared, loader, epochs, epoch, start, validation, save_seconds, signals) -> None:
    saved = time.monotonic()
    every = list(lanes.values())
    for now in range(epoch, epochs):
        first, start = start, 0
        for number, batch in enumerate(loader.batches(now, start=first), start=first):
            names = ("sample", "view") if hasattr(batch, "view") else ()
            keys = {name: to_device(getattr(batch, name), every[0].device) for name in names}
            images, labels = (to_device(t, every[0].device) for t in batch[:2])
            with every[0].autocast():
                shared.look(images, keys)
            for lane in every:
                lane.step(images, labels)
            if number + 1 == len(loader):  # its checkpoint is that after the evaluation
                continue
            if signals.received or time.monotonic() - saved >= save_seconds:
                for lane in every:
                    lane.save(now, number + 1)
                saved = time.monotonic()
            if signals.received:
                raise KeyboardInterrupt
        for lane, measured in zip(every, validation.rows(every, now), strict=True):
            lane.finish_epoch(now, measured)
            lane.save(now + 1, 0)
        saved = time.monotonic()
        if signals.received and now + 1 < epochs:
            raise KeyboardInterrupt


def _common_start(lanes: Mapping[str, Lane]) -> tuple[int, int, int | None]:
    """Load the last checkpoint that all students have; returns its epoch, batch and step."""
    present = {name: set(lane.recorder.run.checkpoints) for name, lane in lanes.items()}
    common = set.intersection(*present.values())
    if not common:
        if not any(present.values()):  # killed before the first checkpoint: from the start
            return 0, 0, None
        listed = "; ".join(f"{name}: {sorted(steps)}" for name, steps in present.items())
        raise CheckpointError(f"the students' runs have no checkpoint in common ({listed})")
    places = {name: lane.load(max(common)) for name, lane in lanes.items()}
    if len(set(places.values())) > 1:
        raise CheckpointError(f"the students' checkpoints are of different batches: {places}")
    return *next(iter(places.values())), max(common)


def _check(students, loader, epochs, precision, resume, root) -> None:
    if not students:
        raise ConfigError("distill_many needs at least one student")
    owners: dict[int, str] = {}
    for name, student in students.items():
        if not isinstance(student, Student):
            raise ConfigError(f"student {name!r} must be a Student, not {type(student).__name__}")
        parts = [student.model, *student.losses(), student.balancer]
        for part in (part for part in parts if part is not None):
            for tensor in part.state_dict(keep_vars=True).values():
                other = owners.setdefault(id(tensor), name)
                if other != name:
                    raise ConfigError(
                        f"students {other!r} and {name!r} share a trained part "
                        f"({type(part).__name__}); give each its own"
                    )
    if precision not in (*PRECISIONS, AUTO):
        raise ConfigError(unknown("precision", precision, (*PRECISIONS, AUTO)))
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    if not hasattr(loader, "batches"):
        raise ConfigError(
            f"{type(loader).__name__} cannot start in the middle of an epoch; use a TensorLoader "
            "or another loader of distillation.data"
        )
    if resume is not None:
        if root is None:
            raise ConfigError("resume needs root=, the run store that the runs are in")
        for name in resume:
            if name not in students:
                raise ConfigError(unknown("student in resume", name, students))
        missing = sorted(set(students) - set(resume))
        if missing:
            raise ConfigError(f"resume has no run for {', '.join(missing)}; all go on together")
