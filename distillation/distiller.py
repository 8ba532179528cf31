"""The core that every door uses: a student, a source of teacher outputs, losses, a balancer.

    distiller = Distiller(student, teacher, LogitsDistillationLoss(temperature=4.0))
    for x, y in loader:
        logits = distiller.forward(x)
        loss = distiller.compute_kd_loss()
        ...

It is no `nn.Module` and changes nothing about the student: parameters, state dict and class are
untouched. Losses and balancer are modules; where they have parameters, give these to the optimizer
beside the student's: `distiller.loss_modules.parameters()`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from distillation.capture import Capture, Record, Tap, purge
from distillation.criterion import STUDENT, TEACHER, Criterion
from distillation.errors import ConfigError, TeacherError, unknown
from distillation.losses.balancers import STUDENT_LOSS_KEY, DistillationLossBalancer
from distillation.losses.interface import route
from distillation.reentry import in_backward, refuse_reentry
from distillation.teacher import TeacherSource, as_teacher

__all__ = ["Distiller"]

STUDENT_OUTPUT = Tap(STUDENT, "")
TEACHER_OUTPUT = Tap(TEACHER, "")


class Distiller:
    """Runs teacher and student on one input, and turns what they gave into one loss.

    Args:
        student: the model that is trained.
        teacher: a module, a `TeacherSource`, a run UUID, `(callable, args, kwargs)`, or a list of
            these (an ensemble); see `distillation.teacher.as_teacher`.
        criterion: one loss between the two models' outputs, or `{(student_layer, teacher_layer):
            loss}` with dotted names as in `named_modules()` ("" is the model's output). None is
            for doors that only want both outputs.
        loss_balancer: turns the dictionary of losses into a scalar; a single loss needs none.
        teacher_mode: "eval", "follow" or "train", as in `distillation.teacher.FrozenTeacher`. A
            source that is made already has its own.

    Raises:
        ConfigError: an unknown layer (the nearest names are given), no loss, or no module.
        TeacherError: the teacher is the student, or shares parameters with it.

    What a forward pass leaves for the loss is kept per thread, until the loss is computed, the
    next forward pass, `clear()` or an error.
    """

    mode = "kd_loss"

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        criterion: nn.Module | Mapping[tuple[str, str], nn.Module] | None = None,
        loss_balancer: nn.Module | None = None,
        *,
        teacher_mode: str = "eval",
    ):
        if not isinstance(student, nn.Module):
            raise ConfigError(f"student must be an nn.Module instance, not {student!r}")
        if loss_balancer is not None and not isinstance(loss_balancer, nn.Module):
            raise ConfigError(f"loss_balancer must be an nn.Module instance, not {loss_balancer!r}")
        self.student = student
        self.criterion = Criterion(criterion)
        self.loss_balancer = loss_balancer
        self.last_losses: dict[str, Tensor] = {}
        self.teacher: TeacherSource = as_teacher(teacher, mode=teacher_mode)
        self._owned = self.teacher is not teacher  # a table cannot be shared out, nor released
        try:
            self.teacher.refuse_student(student)
            self._prepare()
        except BaseException:
            self._let_go()
            raise

    def _prepare(self) -> None:
        """Everything that needs student and teacher together, and may fail."""
        self.bind()

    # Layers -------------------------------------------------------------------------------

    def bind(self) -> None:
        """Put the hooks on the layers that the criterion names."""
        self._pairs = list(self.criterion)
        self._keyed = self.teacher.keyed
        models = {STUDENT: self.student}
        taps = self._taps()
        if self.teacher.module is not None:
            models[TEACHER] = self.teacher.module
            self._stored = []
        else:  # a table: layers come with the output, if they were stored
            self._stored = list(dict.fromkeys(tap for tap in taps if tap.model == TEACHER))
            taps = [tap for tap in taps if tap.model == STUDENT]
            for tap in self._stored:
                layers = getattr(self.teacher, "layers", ())
                if tap.kind != "output" or tap.layer not in layers:
                    raise ConfigError(
                        unknown("stored layer of this teacher:", tap.layer, layers)
                        + " It gives stored outputs and runs no module."
                    )
        if isinstance(self.loss_balancer, DistillationLossBalancer) and self._pairs:
            self.loss_balancer.check([pair.name for pair in self._pairs])
        self._capture = Capture(models, taps)

    def _taps(self) -> list[Tap]:
        """What hooks record. Whole outputs need none: `run` adds them."""
        return [tap for pair in self.criterion for tap in (pair.student, pair.teacher) if tap.layer]

    @property
    def loss_modules(self) -> nn.ModuleList:
        """The losses in the criterion's order."""
        return self.criterion.losses

    @property
    def loss_names(self) -> list[str]:
        """`<Class>_<i>` of each loss, in the criterion's order."""
        return [pair.name for pair in self._pairs]

    def replace(
        self, loss_modules: nn.ModuleList | None = None, loss_balancer: nn.Module | None = None
    ) -> None:
        """Take other losses, in the order of the criterion, or another balancer.

        Raises:
            ConfigError: not one loss for each pair.
        """
        if loss_modules is not None:
            count = len(loss_modules) if isinstance(loss_modules, nn.ModuleList) else 0
            if count != len(self.criterion):
                raise ConfigError(
                    f"the {len(self.criterion)} losses of a converted model are replaced by an "
                    f"nn.ModuleList of as many, not by a {type(loss_modules).__name__} of {count}"
                )
            self.criterion.losses = loss_modules
            self._pairs = list(self.criterion)
        if loss_balancer is not None:
            self.loss_balancer = loss_balancer

    # Forward ------------------------------------------------------------------------------

    def forward(self, *args: Any, sample: Any = None, view: Any = None, **kwargs: Any) -> Any:
        """The student's output. The teacher sees the same arguments first, without gradient.

        `sample` and `view` (int64, one per row) are the batch's keys, for a teacher that is a
        table of outputs; they may be given to `compute_kd_loss` instead.
        """
        return self.run(self.student, args, kwargs, sample=sample, view=view)

    __call__ = forward

    def run(
        self,
        student: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        sample: Any = None,
        view: Any = None,
    ) -> Any:
        """`forward`, calling `student` in the student's place (its class's own forward)."""
        if in_backward():
            return self._run_again(student, args, kwargs)
        if self._capture.is_armed:  # the student's forward calls itself: the whole is one pass
            return student(*args, **kwargs)
        record = self._capture.arm()
        try:
            refuse_reentry(self.student)
            record.arguments = None
            if self._keyed and sample is None:
                # The keys come with the loss
                record.arguments = (args, kwargs, _versions(args, kwargs))
            else:
                self._run_teacher(record, args, kwargs, sample, view)
            output = self._run_student(record, student, args, kwargs)
        except BaseException:
            self._capture.clear()
            raise
        self._capture.disarm()
        return output

    def _run_teacher(self, record: Record, args: Any, kwargs: Any, sample: Any, view: Any) -> None:
        before = _versions(args, kwargs)
        record.add(TEACHER_OUTPUT, self.teacher.run(args, kwargs, sample=sample, view=view))
        if before != _versions(args, kwargs):
            raise TeacherError(
                "the teacher, or what adapts its input, changes the input in place, and the "
                "student would be given what it leaves there; let it work on a copy, x.clone()"
            )
        for tap in self._stored:
            record.add(tap, self.teacher.recorded[tap.layer])

    def _run_student(
        self, record: Record, student: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        output = student(*args, **kwargs)
        record.add(STUDENT_OUTPUT, output)
        return output

    def _run_again(self, student: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The forward pass again, for an activation checkpoint around the whole student.

        Nothing is recorded: what waits for a loss now is of another forward pass. The teacher runs
        when the first pass had random numbers or a graph from it.
        """
        if self.teacher.mode != "eval":
            self.teacher.run(args, kwargs)
        return student(*args, **kwargs)

    # Loss ---------------------------------------------------------------------------------

    def outputs(self) -> tuple[Any, Any]:
        """(student output, teacher output) of the last forward pass, handed over and forgotten.

        Raises:
            DistillationError: forward has not run since.
        """
        record = self._take(None, None)
        return record.calls(STUDENT_OUTPUT)[-1], record.calls(TEACHER_OUTPUT)[-1]

    def compute_kd_loss(
        self,
        student_loss: Tensor | None = None,
        loss_reduction_fn: Callable[[Tensor], Tensor] | None = None,
        skip_balancer: bool = False,
        *,
        sample: Tensor | None = None,
        view: Tensor | None = None,
        **loss_kwargs: Any,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of the last forward pass: a scalar, or with `skip_balancer` all losses by name.

        Args:
            student_loss: the student's own loss, a scalar; the balancer knows it as
                `STUDENT_LOSS_KEY`.
            loss_reduction_fn: applied to each distillation loss, and to a `student_loss` that is
                no scalar yet: for masks that change from batch to batch.
            skip_balancer: return the dictionary that the balancer would get.
            sample, view: the batch's keys, for a teacher that is a table of outputs.
            loss_kwargs: given to those losses that take them (`target=`, `mask=`, `epoch=` …).

        Raises:
            DistillationError: forward has not run since the last loss.
            ConfigError: a keyword that no loss takes; several losses and no balancer; a student's
                loss that is no tensor.
        """
        if student_loss is not None and not isinstance(student_loss, Tensor):
            raise ConfigError(
                f"student_loss must be a tensor, not {type(student_loss).__name__}: the loss that "
                "the script computed from the student's output"
            )
        routed = None
        if loss_kwargs:
            routed = route({pair.name: pair.loss for pair in self._pairs}, loss_kwargs)
        record = self._take(sample, view)
        losses: dict[str, Tensor] = {}
        for pair in self._pairs:
            loss = pair.loss(*pair.values(record), **(routed[pair.name] if routed else {}))
            loss = loss if loss_reduction_fn is None else loss_reduction_fn(loss)
            if not isinstance(loss, Tensor):
                raise ConfigError(
                    f"{pair.name} gives a {type(loss).__name__}, where a loss is a tensor; a "
                    "loss_reduction_fn can make one of it"
                )
            losses[pair.name] = loss
        if student_loss is not None:
            if loss_reduction_fn is not None and student_loss.dim():
                student_loss = loss_reduction_fn(student_loss)
            losses[STUDENT_LOSS_KEY] = student_loss
        self.last_losses = {name: loss.detach() for name, loss in losses.items()}
        return losses if skip_balancer else self._balance(losses)

    def _take(self, sample: Tensor | None, view: Tensor | None) -> Record:
        record = self._capture.take()
        if record.arguments is not None:
            args, kwargs, before = record.arguments
            record.arguments = None
            if before and before != _versions(args, kwargs):
                raise TeacherError(
                    "the student, or the script, has changed the input in place before the loss, "
                    "and the teacher would be given what it left there; let it work on a copy, "
                    "x.clone(), or give forward the keys: model(x, sample=…, view=…)"
                )
            self._run_teacher(record, args, kwargs, sample, view)
        return record

    def _balance(self, losses: dict[str, Tensor]) -> Tensor:
        if self.loss_balancer is not None:
            return self.loss_balancer(losses)
        if len(losses) != 1:
            raise ConfigError(
                f"there are {len(losses)} losses ({', '.join(losses)}) and nothing says how to "
                "add them: give loss_balancer=StaticLossBalancer(...), or ask for the dictionary "
                "with skip_balancer=True"
            )
        return next(iter(losses.values()))

    # Life ---------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Distiller:
        """Tell it that the student's mode was set: a pass that waits for its loss is dropped.

        The teacher stays in evaluation unless it was asked to follow. Losses and balancer are the
        caller's to switch.
        """
        self.clear()
        self.teacher.train_with(mode)
        return self

    def clear(self) -> None:
        """Let go of the last forward pass."""
        self._capture.clear()

    def release(self) -> None:
        """Take off the hooks, and give the teacher its flags back. The distiller is over then."""
        self._capture.remove()
        self.last_losses = {}
        self._let_go()

    def _let_go(self) -> None:
        if self._owned:
            self.teacher.release()

    def copy_for(self, student: nn.Module, memo: dict[int, Any]) -> Distiller:
        """A distiller of `student`, a copy of this one's: own losses, the same teacher."""
        made = copy.copy(self)
        made.student = student
        made.criterion = copy.deepcopy(self.criterion, memo)
        made.loss_balancer = copy.deepcopy(self.loss_balancer, memo)
        made.last_losses = {}
        made.teacher, made._owned = self.teacher.share(), self._owned
        made.rebind()
        return made

    def rebind(self) -> None:
        """Hooks of its own, on models that came out of a copy or a pickle."""
        purge(self.student)
        if self.teacher.module is not None:
            purge(self.teacher.module)
        self.bind()


def _versions(args: Any, kwargs: Any) -> list[int]:
    """How often each tensor among these inputs has been written to; empty while compiling."""
    if torch.compiler.is_compiling():
        return []
    leaves = tree_leaves((args, dict(kwargs)))
    return [x._version for x in leaves if isinstance(x, Tensor) and not x.is_inference()]
