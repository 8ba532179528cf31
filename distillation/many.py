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

from distillation import runs
from distillation.checkpoint import load_strict
from distillation.distiller import Distiller
from distillation.errors import CheckpointError, ConfigError, TeacherError, unknown
from distillation.frozen_teacher import TeacherSource
from distillation.losses import LogitsDistillationLoss, StaticLossBalancer
from distillation.meters import Meters
from distillation.models.facts import model_facts, parameter_count
from distillation.references import noted
from distillation.rng import get_rng_state, seed_everything, set_rng_state
from distillation.teacher import as_teacher

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


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
        teacher: whatever `as_teacher` takes, or a `TeacherTable`. Losses between layers need a
            table that stores the teacher's; otherwise it gives its outputs only.
        loader: of `distillation.data`, so that the stream can be taken up again in the middle.
        epochs: passes over the loader.
        valid_loaders: by split name; accuracy and cross entropy after each epoch.
        precision: "fp32", or autocast in "bf16".
        root: of the run store. Given, each student is a run of `experiment` with checkpoints at
            least every `save_seconds`, and the teacher's run as its parent; None records nothing.
        resume: `{name: run UUID}` of all students, to go on where the last common checkpoint is.

    Metrics are `loss.train`, `<Class>_<i>.train`, and `accuracy.<split>`, `loss.<split>`.

    Raises:
        ConfigError: no students, a model or name that is there twice, unknown precision or names.
        TeacherError: a student shares weights with the teacher; as the teacher does.
        CheckpointError: runs to resume have no checkpoint in common.
    """
    _check(students, loader, epochs, precision, resume, root)
    device = torch.device(device)
    source = as_teacher(teacher)
    shared = _SharedOutput(source)
    with ExitStack() as stack:
        stack.callback(source.release)
        steps = epochs * len(loader)
        lanes = {
            name: stack.enter_context(_Lane(student, shared, steps, precision, device))
            for name, student in students.items()
        }
        if root is not None:
            images = getattr(loader, "image_set", None)
            shape = None if images is None else tuple(images.images.shape[1:])
            for name, lane in lanes.items():
                lane.record(name, source, experiment, root, (resume or {}).get(name), shape)
        epoch, batch = _common_start(lanes) if resume else (0, 0)
        _train(lanes, shared, loader, epochs, epoch, batch, valid_loaders or {}, save_seconds)
        return {
            name: StudentResult(lane.student.model, lane.rows, lane.run_uuid)
            for name, lane in lanes.items()
        }


def _train(lanes, shared, loader, epochs, epoch, start, valid_loaders, save_seconds) -> None:
    saved = time.monotonic()
    every = list(lanes.values())
    for now in range(epoch, epochs):
        first, start = start, 0
        for number, batch in enumerate(loader.batches(now, start=first), start=first):
            images, labels = (t.to(every[0].device) for t in batch[:2])
            keys = {"sample": batch.sample, "view": batch.view} if hasattr(batch, "view") else {}
            with every[0].autocast():
                shared.look(images, keys)
            for lane in every:
                lane.step(images, labels)
            last = number + 1 == len(loader)
            if not last and time.monotonic() - saved >= save_seconds:
                for lane in every:
                    lane.save(now, number + 1)
                saved = time.monotonic()
        for lane in every:
            lane.finish_epoch(now, valid_loaders)
            lane.save(now + 1, 0)
        saved = time.monotonic()


class _SharedOutput(TeacherSource):
    """The teacher's output for the batch at hand, asked for once and given to every student."""

    def __init__(self, source: TeacherSource):
        self.source = source
        self._images: Tensor | None = None
        self._output: Any = None

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def layers(self) -> tuple[str, ...]:
        return getattr(self.source, "layers", ())

    @property
    def recorded(self) -> Mapping[str, Tensor]:
        return self.source.recorded

    def refuse_student(self, student: nn.Module) -> None:
        self.source.refuse_student(student)

    def look(self, images: Tensor, keys: Mapping[str, Tensor]) -> None:
        self._images, self._output = images, self.source(images, **keys)

    def __call__(self, images: Any, *, sample: Any = None, view: Any = None) -> Any:
        if images is not self._images:
            raise TeacherError("a student was given another batch than the teacher")
        return self._output


class _Lane:
    """One student in training: what belongs to it alone."""

    def __init__(self, student, shared: _SharedOutput, steps: int, precision: str, device):
        self.student, self.device, self.precision = student, device, precision
        self.model = student.model.to(device)
        shared.refuse_student(self.model)
        self.distiller = Distiller(self.model, shared, student.criterion, student.balancer)
        parts = nn.ModuleList(student.losses())
        if student.balancer is not None:
            parts.append(student.balancer)
        self.losses = parts.to(device)
        self.optimizer = student.optimizer([*self.model.parameters(), *self.losses.parameters()])
        self.scheduler = student.schedule(self.optimizer, steps) if student.schedule else None
        self.meters, self.rows, self.samples = Meters(), [], 0
        self.recorder, self.run_uuid = None, None
        outside = get_rng_state()
        seed_everything(student.seed)
        self.rng = get_rng_state()
        set_rng_state(outside)
        self._modes = {module: module.training for module in self.model.modules()}
        self._stack = ExitStack()

    def __enter__(self) -> _Lane:
        return self

    def __exit__(self, *error: Any) -> None:
        """End its run as things stand, take the hooks off, give the model its flags back."""
        self.distiller.release()
        for module, training in self._modes.items():
            module.training = training
        self._stack.__exit__(*error)

    def autocast(self):
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One update, drawing from this student's own random numbers."""
        outside = get_rng_state()
        set_rng_state(self.rng)
        self.model.train()
        with self.autocast():
            output = self.distiller.forward(images)
        label_loss = self.student.label_loss
        own = None if label_loss is None else label_loss(output.float(), labels)
        loss = self.distiller.compute_kd_loss(own)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        self.rng = get_rng_state()
        set_rng_state(outside)
        self.samples += len(labels)
        self.meters.add({"loss": loss, **self.distiller.last_losses}, len(labels))

    @torch.no_grad()
    def finish_epoch(self, epoch: int, valid_loaders: Mapping[str, Iterable]) -> None:
        row = {f"{name}.train": value for name, value in self.meters.compute().items()}
        self.meters.reset()
        self.model.eval()
        for split, loader in valid_loaders.items():
            meters = Meters()
            for batch in loader:
                images, labels = (t.to(self.device) for t in batch[:2])
                with self.autocast():
                    output = self.model(images)
                right = (output.argmax(-1) == labels).float().mean()
                loss = F.cross_entropy(output.float(), labels)
                meters.add({"accuracy": right, "loss": loss}, len(labels))
            row.update({f"{name}.{split}": value for name, value in meters.compute().items()})
        self.rows.append(row)
        if self.recorder is not None:
            self.recorder.log(self.samples, epoch, row)

    # -- its run

    def record(self, name, source, experiment, root, uuid, shape) -> None:
        """Begin its run, or go on with the run `uuid`; `shape` is that of an image, if known."""
        if uuid is not None:
            self.recorder = self._stack.enter_context(runs.resume(uuid, root))
        else:
            reference = noted(self.model)
            self.recorder = self._stack.enter_context(
                runs.create(
                    experiment,
                    name=name,
                    config={**self.student.config, "precision": self.precision},
                    parent=source.run_uuid,
                    seed=self.student.seed,
                    model=None if reference is None else reference.to_json(),
                    root=root,
                    keep=2,  # a kill between two students' checkpoints leaves one in common
                )
            )
            teacher = {"run": source.run_uuid, "fingerprint": source.fingerprint}
            self.recorder.update(teacher=teacher, facts=self._facts(shape))
        self.run_uuid = self.recorder.uuid
        known = self.recorder.run.info["teacher"]["fingerprint"]
        if known != source.fingerprint:
            raise TeacherError(
                f"run {self.run_uuid[:8]} learns from a teacher of other weights; start a new run"
            )

    def _facts(self, shape: tuple[int, ...] | None) -> dict[str, Any]:
        if shape is None:
            return {"parameters": parameter_count(self.model)}
        return model_facts(self.model, shape)

    def save(self, epoch: int, batch: int) -> None:
        """Write a checkpoint from which this student goes on at `batch` of `epoch`."""
        if self.recorder is None:
            return
        state = {
            "epoch": epoch,
            "batch": batch,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "meters": self.meters.state_dict(),
            "rows": self.rows,
            "rng": self.rng,
        }
        weights = {"model": self.model.state_dict()}
        if self.losses.state_dict():
            weights["losses"] = self.losses.state_dict()
        self.recorder.save_checkpoint(self.samples, weights, state)

    def load(self, step: int) -> tuple[int, int]:
        """Go back to the checkpoint at `step`; returns the epoch and batch to go on with."""
        checkpoint = self.recorder.load_checkpoint(step)
        load_strict(self.model, checkpoint.weights["model"], what=f"run {self.run_uuid[:8]}")
        load_strict(self.losses, checkpoint.weights.get("losses", {}), what="its losses")
        state = checkpoint.state
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.meters.load_state_dict(state["meters"])
        self.rows, self.rng, self.samples = list(state["rows"]), state["rng"], step
        self.recorder.rewind(step)
        return state["epoch"], state["batch"]


def _common_start(lanes: Mapping[str, _Lane]) -> tuple[int, int]:
    """Load the last checkpoint that all students have."""
    present = {name: set(lane.recorder.run.checkpoints) for name, lane in lanes.items()}
    common = set.intersection(*present.values())
    if not common:
        if not any(present.values()):  # killed before the first checkpoint: from the start
            for lane in lanes.values():
                lane.recorder.rewind(None)
            return 0, 0
        listed = "; ".join(f"{name}: {sorted(steps)}" for name, steps in present.items())
        raise CheckpointError(f"the students' runs have no checkpoint in common ({listed})")
    places = {name: lane.load(max(common)) for name, lane in lanes.items()}
    if len(set(places.values())) > 1:
        raise CheckpointError(f"the students' checkpoints are of different batches: {places}")
    return next(iter(places.values()))


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
    if precision not in PRECISIONS:
        raise ConfigError(unknown("precision", precision, PRECISIONS))
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
