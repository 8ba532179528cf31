"""One student of `distill_many`: what belongs to it alone, and what it shares."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from distillation import runs
from distillation.checkpoint import load_strict
from distillation.distiller import Distiller
from distillation.errors import CheckpointError, TeacherError
from distillation.frozen_teacher import TeacherSource
from distillation.hyperparameters import as_given, plain, take_up
from distillation.meters import Meters
from distillation.models.facts import model_facts, parameter_count
from distillation.references import noted
from distillation.rng import get_rng_state, seed_everything, set_rng_state

_OTHERS = "distill_many goes on with runs that it began; `distill runs` lists them"
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


class SharedOutput(TeacherSource):
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


class Lane:
    """One student in training: what belongs to it alone."""

    def __init__(self, student, shared: SharedOutput, steps: int, precision: str, device):
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
        self._given = as_given(self.optimizer, self.scheduler)
        self.meters, self.rows, self.samples, self.updates = Meters(), [], 0, 0
        self.recorder, self.run_uuid = None, None
        outside = get_rng_state()
        seed_everything(student.seed)
        self.rng = get_rng_state()
        set_rng_state(outside)
        self._modes = {module: module.training for module in self.model.modules()}
        self._stack = ExitStack()

    def __enter__(self) -> Lane:
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
        self.updates += 1
        self.meters.add({"loss": loss, **self.distiller.last_losses}, len(labels))

    def finish_epoch(self, epoch: int, measured: Mapping[str, float]) -> None:
        """Add a row of the epoch's training, and of what its evaluation has `measured`."""
        row = {f"{name}.train": value for name, value in self.meters.compute().items()}
        self.meters.reset()
        self.rows.append(row | dict(measured))
        if self.recorder is not None:
            self.recorder.log(self.samples, epoch, self.rows[-1])

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
                    config=self.config,
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
        known = self.recorder.run.info.get("teacher")
        if known is None:
            raise CheckpointError(f"run {self.run_uuid[:8]} has learned from no teacher; {_OTHERS}")
        if known["fingerprint"] != source.fingerprint:
            raise TeacherError(
                f"run {self.run_uuid[:8]} learns from a teacher of other weights; start a new run"
            )

    @property
    def config(self) -> dict[str, Any]:
        """What is recorded of how this student is trained."""
        return {**self.student.config, "precision": self.precision}

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
            "scheduler": None if self.scheduler is None else plain(self.scheduler.state_dict()),
            "given": self._given,
            "updates": self.updates,
            "meters": self.meters.state_dict(),
            "rows": self.rows,
            "rng": self.rng,
        }
        weights = {"model": self.model.state_dict()}
        if self.losses.state_dict():
            weights["losses"] = self.losses.state_dict()
        self.recorder.save_checkpoint(self.samples, weights, state)

    def load(self, step: int) -> tuple[int, int]:
        """Take up the checkpoint at `step`; returns the epoch and batch to go on with.

        The run itself still has to go back to it. Hyper-parameters that were given anew win over
        those in it. Raises `CheckpointError` for weights that do not fit, and for another kind of
        optimizer.
        """
        checkpoint = self.recorder.load_checkpoint(step)
        if not isinstance(checkpoint.state, dict) or "rows" not in checkpoint.state:
            raise CheckpointError(f"run {self.run_uuid[:8]} is of another training; {_OTHERS}")
        load_strict(self.model, checkpoint.weights["model"], what=f"run {self.run_uuid[:8]}")
        load_strict(self.losses, checkpoint.weights.get("losses", {}), what="its losses")
        # An older checkpoint does not say what was given: nothing is new to it
        state = {"given": self._given, "updates": 0, **checkpoint.state}
        self.updates = state["updates"]
        take_up(self.optimizer, self.scheduler, state, self._given, self.updates)
        self.meters.load_state_dict(state["meters"])
        self.rows, self.rng, self.samples = list(state["rows"]), state["rng"], step
        return state["epoch"], state["batch"]
