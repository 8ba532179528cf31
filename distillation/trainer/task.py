"""What is trained, seen from the loop: plain training and distillation answer alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from distillation.errors import ConfigError, ShapeError
from distillation.frozen_teacher import FrozenTeacher
from distillation.kd_module import KDModule, KDOutput, takes_keys
from distillation.losses.interface import accepts, refuse_target_of_pairs
from distillation.table_option import is_online, table_sources, teacher_layers
from distillation.trainer.batches import Parts, plain_output
from distillation.trainer.criteria import LossCall, check_takes_pairs, make_loss, single
from distillation.trainer.metrics import slug
from distillation.trainer.params import TrainingParams
from distillation.trainer.sharding import Whole, shard


class Task:
    """Plain training of `net`: the model is the student, its output the prediction."""

    distilling = False

    def __init__(self, net: nn.Module, params: TrainingParams, *, scored: bool = True):
        self.net, self.params, self.scored = net, params, scored
        self.criterion: Any = None
        if scored:
            options = params.criterion_params
            self.criterion = make_loss(params.loss, options, distilling=self.distilling)
        self.loss_call = LossCall(self.criterion)
        self.takes_keys = takes_keys(net)
        self.input_shape: tuple[int, ...] | None = None
        self.whole: Whole | None = None  # a sharded student, as checkpoints see it
        self._checked = False

    @property
    def student(self) -> nn.Module:
        """The model whose weights are trained and kept."""
        return self.net

    @property
    def loss_names(self) -> list[str]:
        """Names of the total loss and of its components."""
        return self.loss_call.names if self.scored else []

    def extra_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Trained parameters beside the student's: a loss's own."""
        if not isinstance(self.criterion, nn.Module):
            return []
        return [(f"criterion.{n}", p) for n, p in self.criterion.named_parameters()]

    def outside_parameters(self) -> list[nn.Parameter]:
        """Those of them that are in no module of the net, which DDP does not see."""
        return [p for _, p in self.extra_parameters() if p.requires_grad]

    def forward(self, runner: nn.Module, parts: Parts) -> Any:
        """Output of `runner` (the net, perhaps wrapped) for a batch."""
        if self.input_shape is None and len(parts.args) == 1 and not parts.kwargs:
            image = parts.args[0]
            if torch.is_tensor(image) and image.is_floating_point():
                self.input_shape = tuple(image.shape[1:])
        if self.params.forward_adapter is not None:
            return self.params.forward_adapter(runner, parts.inputs)
        if self.takes_keys and parts.sample is not None:
            return runner(*parts.args, sample=parts.sample, view=parts.view, **parts.kwargs)
        return runner(*parts.args, **parts.kwargs)

    def predictions(self, output: Any) -> Any:
        """What the loss sees, in float32."""
        return single(plain_output(output, self.params.output_adapter))

    def student_output(self, predictions: Any) -> Any:
        """What the metrics see."""
        return predictions

    def teacher_output(self, predictions: Any) -> Any:
        """What the student learns from; None without a teacher."""
        return None

    def loss(
        self, predictions: Any, target: Any, epoch: int
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Total loss, and every component by its name in the run store; None when not scored."""
        if not self._checked:
            self.check(predictions, target)
            self._checked = True
        if not self.scored:
            return None, {}
        return self.loss_call(predictions, target)

    def check(self, predictions: Any, target: Any) -> None:
        """Raise `ShapeError` when targets do not fit the classes (once, before the first step)."""
        _check_classes(self.student_output(predictions), target, "the student")

    def student_weights(self) -> dict[str, torch.Tensor]:
        """The student's weights, whole; of a sharded student by all processes together."""
        return dict((self.whole or self.student).state_dict())

    def state(self, teacher: bool = True) -> dict[str, torch.Tensor]:
        """What `net` of a checkpoint file holds."""
        return self.student_weights()

    def shard(self, device: torch.device, splits: list[str]) -> None:
        """Train a sharded copy in the student's place, until `unshard`."""
        self._own = self.student
        sharded = shard(self.student, device)
        self.whole = Whole(sharded)
        self._put(sharded)

    def unshard(self) -> None:
        """Bring the trained weights back into the student; by all processes together."""
        if self.whole is not None:
            self._own.load_state_dict(self.whole.state_dict())
            self.whole = None
            self._put(self._own)

    def _put(self, student: nn.Module) -> None:
        self.net = student

    def student_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The student's part of what `state` gave."""
        return state

    def own_state(self) -> dict[str, torch.Tensor]:
        """State beside the student's weights: of a loss with parameters or buffers."""
        if isinstance(self.criterion, nn.Module):
            return {f"criterion.{k}": v for k, v in self.criterion.state_dict().items()}
        return {}

    @contextmanager
    def using(self, student: nn.Module | None) -> Iterator[nn.Module]:
        """The net with another student in its place, for an evaluation."""
        yield self.net if student is None else student

    def to(self, device: torch.device) -> None:
        """Move everything to the device."""
        self.net.to(device)
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(device)

    def answer_for(self, split: str) -> None:
        """The next batches are of this split."""

    def release(self) -> None:
        """Give back what is only lent."""

    def modules(self) -> list[nn.Module]:
        """The caller's modules, whose flags are given back."""
        found = [self.net]
        if isinstance(self.criterion, nn.Module):
            found.append(self.criterion)
        return found


class KDTask(Task):
    """Distillation: the net is a KDModule, the prediction a KDOutput."""

    distilling = True
    net: KDModule

    def __init__(self, net: KDModule, params: TrainingParams, *, scored: bool = True):
        if net.has_criterion and params.loss is None:
            params.loss = "CrossEntropyLoss"
        super().__init__(net, params, scored=scored)
        if not net.has_criterion:
            check_takes_pairs(self.criterion)
        else:
            core = net.distiller
            for loss in core.loss_modules:
                refuse_target_of_pairs(loss)
            self._names = [f"{self.loss_call.title}/{name}" for name in core.loss_names]
            taken = set().union(*(set(_accepted(loss)) for loss in core.loss_modules))
            self._keywords = taken & {"target", "epoch"}

    @property
    def student(self) -> nn.Module:
        return self.net.student

    @property
    def loss_names(self) -> list[str]:
        if not self.net.has_criterion or not self.scored:
            return super().loss_names
        total, *rest = self.loss_call.names
        return [total, f"{self.loss_call.title}/Task Loss", *rest, *self._names]

    def extra_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.net.own_parameters(), *super().extra_parameters()]

    def outside_parameters(self) -> list[nn.Parameter]:
        inside = {id(p) for p in self.net.parameters()}
        return [p for _, p in self.extra_parameters() if p.requires_grad and id(p) not in inside]

    def predictions(self, output: Any) -> KDOutput:
        if not (hasattr(output, "student_output") and hasattr(output, "teacher_output")):
            raise ConfigError(
                f"{type(self.net).__name__}.forward must return a KDOutput(student_output, "
                f"teacher_output), not {type(output).__name__}."
            )
        adapter = self.params.output_adapter
        student = single(plain_output(output.student_output, adapter))
        return KDOutput(student, single(plain_output(output.teacher_output, adapter)))

    def student_output(self, predictions: KDOutput) -> Any:
        return predictions.student_output

    def teacher_output(self, predictions: KDOutput) -> Any:
        return predictions.teacher_output

    def loss(
        self, predictions: KDOutput, target: Any, epoch: int
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        if not self.net.has_criterion or not self.scored:
            return super().loss(predictions, target, epoch)
        task, values = super().loss(predictions.student_output, target, epoch)  # type: ignore[arg-type]
        given = {"target": target, "epoch": epoch}
        core = self.net.distiller
        total = core.compute_kd_loss(
            student_loss=task, **{name: given[name] for name in self._keywords}
        )
        values.update({"loss": total, slug("x/Task Loss"): task})
        parts = core.last_losses
        values.update({slug(full): parts[full.partition("/")[2]] for full in self._names})
        return total, values

    def check(self, predictions: Any, target: Any) -> None:
        if not isinstance(predictions, KDOutput):
            _check_classes(predictions, target, "the student")
            return
        student, teacher = predictions
        _check_classes(student, target, "the student")
        both = torch.is_tensor(student) and torch.is_tensor(teacher)
        if both and student.dim() == teacher.dim() == 2 and student.shape != teacher.shape:
            raise ShapeError(
                f"the student's output has shape {tuple(student.shape)}, the teacher's "
                f"{tuple(teacher.shape)}; distillation compares the same classes."
            )

    def state(self, teacher: bool = True) -> dict[str, torch.Tensor]:
        state = self.net.full_state_dict(teacher)
        state.update({f"student.{name}": t for name, t in self.student_weights().items()})
        return state

    def shard(self, device: torch.device, splits: list[str]) -> None:
        super().shard(device, splits)
        source = self.net.teacher_source
        if source.module is not None and source.mode == "eval":
            teacher = shard(source.module, device)
            self.net.answer_for(splits[0], {split: FrozenTeacher(teacher) for split in splits})

    def _put(self, student: nn.Module) -> None:
        self.net._modules["student"] = student

    def student_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        prefix = "student."
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def own_state(self) -> dict[str, torch.Tensor]:
        state = super().own_state()
        for name, value in self.net.state_dict().items():
            if not name.startswith("student."):
                state[f"kd_module.{name}"] = value
        core = self.net.distiller
        for i, loss in enumerate(core.loss_modules):
            state.update({f"losses.{i}.{k}": v for k, v in loss.state_dict().items()})
        if core.loss_balancer is not None:
            balancer = core.loss_balancer.state_dict()
            state.update({f"balancer.{k}": v for k, v in balancer.items()})
        return state

    @contextmanager
    def using(self, student: nn.Module | None) -> Iterator[nn.Module]:
        if student is None:
            yield self.net
        else:
            with self.net.with_student(student) as net:
                yield net

    def answer_for(self, split: str) -> None:
        self.net.answer_for(split)

    def use_tables(self, loaders: Mapping[str, Any], root: Any, accelerator: Accelerator) -> None:
        """Put tables of outputs before the teacher, where `teacher_table` asks for them.

        They are filled in the accelerator's precision and each loader's memory format: as the
        teacher runs here.
        """
        wanted = self.params.teacher_table
        if is_online(wanted):
            return
        if not self.net.run_teacher_on_eval:
            raise ConfigError(
                "teacher_table needs a teacher whose outputs stay the same; with "
                "run_teacher_on_eval=False they depend on the batch."
            )
        if self.net.teacher_input_adapter is not None:
            raise ConfigError(
                "teacher_table keeps the teacher's outputs by key and shows it the loader's own "
                "images, so teacher_input_adapter would have no effect; wrap the teacher in a "
                "module that adapts its inputs."
            )
        told = accelerator.is_main_process and not self.params.silent_mode
        tables = table_sources(
            self.net.teacher_source.source,
            wanted,
            loaders,
            precision=accelerator.mixed_precision,
            device=accelerator.device,
            say=print if told else None,
            epochs=self.params.max_epochs,
            layers=teacher_layers([self.net.distiller.criterion.as_mapping() or None]),
            root=root,
        )
        self.net.answer_for("train", tables)

    def release(self) -> None:
        self.net.release()

    def modules(self) -> list[nn.Module]:
        core = self.net.distiller
        found = [*super().modules(), *core.loss_modules]
        return found if core.loss_balancer is None else [*found, core.loss_balancer]


class OwnState:
    """`Task.own_state` for the engine's checkpoints: saved and loaded strictly by name."""

    def __init__(self, task: Task):
        self.task = task

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {k: v.detach().clone() for k, v in self.task.own_state().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        own = self.task.own_state()
        if set(own) != set(state):
            missing, more = sorted(set(own) - set(state)), sorted(set(state) - set(own))
            raise ConfigError(
                f"the checkpoint's losses and adapters are not those of now: missing {missing}, "
                f"unexpected {more}."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])


def _accepted(loss: nn.Module) -> set[str]:
    names = accepts(loss)
    return {name for name in ("target", "epoch") if name in names}


def _check_classes(output: Any, target: Any, who: str) -> None:
    if not (torch.is_tensor(output) and torch.is_tensor(target)) or output.dim() < 2:
        return
    if len(output) != len(target):
        raise ShapeError(
            f"{who} gives {len(output)} outputs for {len(target)} targets; the batch's inputs and "
            "targets must have the same length."
        )
    whole = not target.is_floating_point() and target.dim() == output.dim() - 1
    if whole and target.numel() and output.is_floating_point():
        top = int(target.max())
        if top >= output.shape[1]:
            raise ShapeError(
                f"there is a target of class {top}, but {who} has {output.shape[1]} classes "
                f"(0 to {output.shape[1] - 1}). Give the student at least {top + 1}."
            )
