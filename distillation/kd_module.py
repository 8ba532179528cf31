"""The trainer door's pair of models: `KDModule` runs student and teacher and gives both outputs.

    net = KDModule(student=student, teacher=teacher)
    output = net(x)                     # KDOutput(student_output, teacher_output)

The teacher is a guest: it is no submodule, so it is in no optimizer, EMA, DDP wrapper or
`state_dict()`. A subclass with its own `forward` finds the models as `self.student` and
`self.teacher`, and returns a `KDOutput`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from distillation.checkpoint import load_strict
from distillation.distiller import Distiller
from distillation.errors import ConfigError, unknown
from distillation.guest import Guest
from distillation.teacher import TeacherSource

ARCH_PARAMS = ("teacher_input_adapter", "student_input_adapter", "criterion", "loss_balancer")
_TEACHER = "teacher."


class KDOutput(NamedTuple):
    """What a KDModule's forward returns."""

    student_output: Any
    teacher_output: Any


class NormalizationAdapter(nn.Module):
    """Images normalised by one mean and deviation, as if normalised by others.

    Each argument holds one number per channel, of images in 0 … 1. Input and output have shape
    (..., C, H, W). The numbers are buffers: they move with the module and are never trained.
    """

    def __init__(
        self,
        mean_original: Sequence[float],
        std_original: Sequence[float],
        mean_required: Sequence[float],
        std_required: Sequence[float],
    ):
        super().__init__()
        given = [mean_original, std_original, mean_required, std_required]
        values = [torch.as_tensor(v, dtype=torch.float32).reshape(-1, 1, 1) for v in given]
        if len({len(v) for v in values}) != 1:
            raise ConfigError(
                "NormalizationAdapter needs one number per channel in each argument, got "
                + ", ".join(str(len(v)) for v in values)
            )
        mean, std, new_mean, new_std = values
        if not ((std > 0).all() and (new_std > 0).all()):
            raise ConfigError("NormalizationAdapter: every deviation must be above 0")
        self.register_buffer("multiplier", std / new_std)
        self.register_buffer("additive", (mean - new_mean) / new_std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with the required normalisation."""
        return x * self.multiplier + self.additive


class KDModule(nn.Module):
    """A student and its teacher behind one forward.

    Args:
        student: the model that is trained.
        teacher: a module, a run UUID, a `Run`, a `TeacherSource` (a table of outputs, an
            ensemble), or anything else that `distillation.teacher.as_teacher` takes.
        arch_params: `teacher_input_adapter` and `student_input_adapter`, each a callable of the
            inputs; `criterion` (`{(student_layer, teacher_layer): loss}`, or one loss) and
            `loss_balancer`, with which the trainer's loss becomes the student's own.
        run_teacher_on_eval: True keeps the teacher in eval mode; False lets it follow `train()`
            and `eval()` (its batch norm then uses, and changes, batch statistics).

    Raises `ConfigError` for an unknown key in `arch_params`, `TeacherError` when teacher and
    student are one or share weights.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        arch_params: Mapping[str, Any] | None = None,
        run_teacher_on_eval: bool = True,
    ):
        super().__init__()
        options = dict(arch_params or {})
        for key in options:
            if key not in ARCH_PARAMS:
                raise ConfigError(unknown("key in arch_params", key, ARCH_PARAMS))
        if not isinstance(student, nn.Module):
            raise ConfigError(f"student must be an nn.Module, not {type(student).__name__}")
        self.student = student
        self.run_teacher_on_eval = run_teacher_on_eval
        self.teacher_input_adapter = _adapter(options, "teacher_input_adapter")
        self.student_input_adapter = _adapter(options, "student_input_adapter")
        if isinstance(self.teacher_input_adapter, nn.Module):
            self.teacher_input_adapter.requires_grad_(False)
        self._guest = Guest(
            teacher,
            mode="eval" if run_teacher_on_eval else "follow",
            adapt=None if self.teacher_input_adapter is None else self._adapt_teachers_inputs,
            criterion=options.get("criterion"),
            loss_balancer=options.get("loss_balancer"),
        )
        try:
            self._guest.distiller(student)  # what does not fit is told now
        except BaseException:
            self._guest.release()
            raise

    # -- the models

    @property
    def teacher(self) -> Any:
        """The teacher's module; its source where it is no single module (a table, an ensemble)."""
        return self._guest.model

    @property
    def teacher_source(self) -> TeacherSource:
        """What was given as the teacher, as a source."""
        return self._guest.own_source

    @property
    def answering_source(self) -> TeacherSource:
        """The source that answers for the present split: its table where there is one."""
        return self._guest.source

    @property
    def distiller(self) -> Distiller:
        """The core that runs the present student and the teacher."""
        return self._guest.distiller(self.student)

    @property
    def has_criterion(self) -> bool:
        """Whether the losses between layers come from `arch_params`."""
        return self._guest.criterion is not None

    def answer_for(self, split: str, tables: Mapping[str, TeacherSource] | None = None) -> None:
        """Say which split the next batches are of, where teachers answer from tables.

        `tables` adds tables of the teacher's outputs, by split ("train", "valid").
        """
        self._guest.add_tables(tables or {})
        self._guest.select(split)

    def release(self) -> None:
        """Give the teacher its flags back. The next forward borrows it again."""
        self._guest.release()

    @contextmanager
    def with_student(self, student: nn.Module) -> Iterator[KDModule]:
        """Another student (an average of the weights) in the place of this one, for a while."""
        own = self._modules["student"]
        self._modules["student"] = student
        try:
            yield self
        finally:
            self._modules["student"] = own
            if student is not own:
                self._guest.forget(student)

    # -- forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, with the teacher borrowed: also for a subclass that only uses its module."""
        _ = self._guest.own_source
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, sample: Any = None, view: Any = None, **kwargs: Any) -> KDOutput:
        """Outputs of both models for the same inputs, each through its adapter.

        `sample` and `view` (int64, shape (N,)) name the batch for a teacher that is a table.
        """
        core = self.distiller
        output = core.run(self._run_student, args, kwargs, sample=sample, view=view)
        if not self.has_criterion:
            return KDOutput(*core.outputs())
        return KDOutput(output, self._guest.last_output)

    def _adapt_teachers_inputs(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
        return _adapted(self.teacher_input_adapter, args, kwargs)

    def _run_student(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _adapted(self.student_input_adapter, args, kwargs)
        return self.student(*args, **kwargs)

    def train(self, mode: bool = True) -> KDModule:
        """Set the student's mode, and that of losses and balancer from `arch_params`.

        The teacher follows with `run_teacher_on_eval=False` only.
        """
        super().train(mode)
        if isinstance(self.teacher_input_adapter, nn.Module):
            self.teacher_input_adapter.train(mode and not self.run_teacher_on_eval)
        self._guest.train_with(mode)
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> KDModule:
        super()._apply(fn, recurse)
        self._guest.apply(fn)
        return self

    def _leave_teacher(self) -> None:
        raise ConfigError(
            f"a {type(self).__name__} is a student and its teacher, not a model by itself; give "
            "its student, net.student"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            raise ConfigError(
                "a KDModule's teacher is given to its constructor; make a new KDModule for "
                "another teacher"
            )
        super().__setattr__(name, value)

    # -- state

    def full_state_dict(self, teacher: bool = True) -> dict[str, torch.Tensor]:
        """`state_dict()`, and with `teacher` its weights under `teacher.`, if it has a module."""
        state = dict(self.state_dict())
        module = self.teacher_source.module
        if teacher and module is not None:
            state.update({_TEACHER + name: t for name, t in module.state_dict().items()})
        return state

    def load_full_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load what `full_state_dict` gave, strictly by name; the teacher's part where it is in.

        Raises `CheckpointError` naming what is missing, unexpected or of another shape.
        """
        own = {k: v for k, v in state.items() if not k.startswith(_TEACHER)}
        theirs = {k.removeprefix(_TEACHER): v for k, v in state.items() if k not in own}
        load_strict(self, own, what="KDModule checkpoint")
        if theirs and self.teacher_source.module is not None:
            load_strict(self.teacher_source.module, theirs, what="teacher of the checkpoint")

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters beside the student's: of its adapter, a subclass's layers, the losses."""
        skipped = ("student.", "teacher_input_adapter.")
        named = [(n, p) for n, p in self.named_parameters() if not n.startswith(skipped)]
        core = self.distiller
        for i, loss in enumerate(core.loss_modules):
            named += [(f"losses.{i}.{n}", p) for n, p in loss.named_parameters()]
        if core.loss_balancer is not None:
            named += [(f"balancer.{n}", p) for n, p in core.loss_balancer.named_parameters()]
        return named


def make_kd_module(
    kd_architecture: Any,
    student: nn.Module,
    teacher: Any,
    arch_params: Mapping[str, Any] | None = None,
    run_teacher_on_eval: bool = True,
) -> KDModule:
    """A KDModule, or the subclass `kd_architecture`, with `arch_params` where they belong.

    Keys that the subclass's constructor names are its arguments, the others are `arch_params`.
    Raises `ConfigError` for an architecture that is none and for an unknown key.
    """
    if isinstance(kd_architecture, str):
        known = {"kd_module": KDModule, "KDModule": KDModule}
        if kd_architecture not in known:
            raise ConfigError(
                unknown("kd_architecture", kd_architecture, ["kd_module"])
                + " A subclass of KDModule is given as a class."
            )
        kd_architecture = known[kd_architecture]
    if not (inspect.isclass(kd_architecture) and issubclass(kd_architecture, KDModule)):
        raise ConfigError(
            f"kd_architecture must be 'kd_module' or a subclass of KDModule, not "
            f"{kd_architecture!r}"
        )
    given = dict(arch_params or {})
    takes = inspect.signature(kd_architecture).parameters
    reserved = ("student", "teacher", "arch_params", "run_teacher_on_eval")
    named = {
        k: given.pop(k)
        for k, p in takes.items()
        if k in given and k not in reserved and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    for key in given:
        if key not in ARCH_PARAMS:
            own = [k for k, p in takes.items() if k not in reserved and p.kind != p.VAR_KEYWORD]
            raise ConfigError(unknown("key in arch_params", key, [*ARCH_PARAMS, *own]))
    optional = {"arch_params": given or None, "run_teacher_on_eval": run_teacher_on_eval}
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        for key, default in (("arch_params", None), ("run_teacher_on_eval", True)):
            if key in takes:
                continue
            if optional.pop(key) is not default:
                raise ConfigError(
                    f"{kd_architecture.__name__}'s constructor takes no {key!r}; add it, or "
                    "**kwargs, and pass it on to KDModule."
                )
    return kd_architecture(student=student, teacher=teacher, **named, **optional)


def takes_keys(net: nn.Module) -> bool:
    """Whether the module's forward takes the batch's keys, `sample` and `view`."""
    parameters = inspect.signature(net.forward).parameters
    return {"sample", "view"} <= set(parameters)


def _adapter(options: Mapping[str, Any], name: str) -> Any:
    adapter = options.get(name)
    if adapter is not None and not callable(adapter):
        raise ConfigError(f"arch_params {name!r} must be a module or a function, not {adapter!r}")
    return adapter


def _adapted(adapter: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
    if adapter is None:
        return args, dict(kwargs)
    result = adapter(*args, **kwargs)
    if isinstance(result, Mapping):
        return (), dict(result)
    return (result if isinstance(result, tuple) else (result,)), {}
