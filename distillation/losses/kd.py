"""The trainers' losses: task and distillation together, on a pair of outputs.

They are called as `loss(output, target)`, where `output` has the attributes `student_output` and
`teacher_output` (a `KDOutput`), and return `(total, items)`: `items` is a detached vector with one
entry per name in `component_names`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillation.errors import ConfigError, ShapeError
from distillation.losses.checks import check_number, check_temperature
from distillation.losses.interface import Remembers, accepts, refuse_target_of_pairs, route
from distillation.losses.logits import LogitsDistillationLoss


class KDLogitsLoss(Remembers):
    r"""The task's loss and the distillation loss, weighted.

    $$(1 - c) \cdot L_{task} + c \cdot L_{kd}$$

    Args:
        task_loss_fn: $L_{task}$, `task(student_output, target)`, a scalar or a tuple that starts
            with it.
        distillation_loss_fn: $L_{kd}$, any loss of this library, or a module called with student's
            and teacher's output; `target` and other keywords reach it when it takes them.
            Default: `LogitsDistillationLoss(temperature, dim=1)`, so that classes lie where
            `nn.CrossEntropyLoss` has them.
        distillation_loss_coeff: $c$ in [0, 1].
        temperature: of the default distillation loss; with a `distillation_loss_fn` of your own,
            which has its own temperature, it is refused.

    Source: SuperGradients' loss of this name; its divergence has no temperature.
    """

    def __init__(
        self,
        task_loss_fn: Callable[..., Any],
        distillation_loss_fn: Callable[..., Tensor] | None = None,
        distillation_loss_coeff: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        temperature = check_temperature(temperature)
        if distillation_loss_fn is None:
            distillation_loss_fn = LogitsDistillationLoss(temperature, dim=1)
        elif temperature != 1.0:
            raise ConfigError(
                f"temperature={temperature:g} is for the default distillation loss; give it to "
                "your distillation_loss_fn instead."
            )
        self.task_loss_fn = _check_callable("task_loss_fn", task_loss_fn)
        self.distillation_loss_fn = _check_callable("distillation_loss_fn", distillation_loss_fn)
        refuse_target_of_pairs(self.distillation_loss_fn)
        self.distillation_loss_coeff = check_number(
            "distillation_loss_coeff", distillation_loss_coeff, high=1.0
        )

    @property
    def component_names(self) -> list[str]:
        """Names of the entries of `items`, in order."""
        return ["Loss", "Task Loss", "Distillation Loss"]

    def forward(self, output: Any, target: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        """`(total, items)` with `items` = [total, task, distillation], detached.

        Keywords such as `mask` or `epoch` go to the distillation loss.

        Raises:
            ConfigError: `output` is no pair, or a keyword that the distillation loss cannot take.
        """
        student, teacher = _pair(output, self)
        task = _scalar(self.task_loss_fn(student, target), "task_loss_fn")
        kd = _scalar(
            _call(self.distillation_loss_fn, student, teacher, target, keywords),
            "distillation_loss_fn",
        )
        total = task * (1 - self.distillation_loss_coeff) + kd * self.distillation_loss_coeff
        return total, torch.stack([total, task, kd]).detach()


class SegKDLoss(Remembers):
    r"""Cross entropy and distillation of segmentation maps, over prediction heads.

    $$\sum_h w_h \left( a \cdot L_{ce,h} + b \cdot L_{kd,h} \right)$$

    with $L_{ce,h}$ between the student's head $h$ and the labels, and $L_{kd,h}$ between the
    student's and the teacher's head.

    Args:
        kd_loss: a loss on maps (B, C, H, W), such as `ChannelWiseKnowledgeDistillationLoss`; it
            gets `target` when it takes it.
        ce_loss: `ce(predictions, target)` with target (B, H, W), such as `nn.CrossEntropyLoss`.
        weights: one $w_h$ per head: the main output and its auxiliaries.
        kd_loss_weights: the pair $(a, b)$.

    Source: SuperGradients' loss of this name.
    """

    def __init__(
        self,
        kd_loss: Callable[..., Tensor],
        ce_loss: Callable[..., Any],
        weights: Sequence[float] = (1.0,),
        kd_loss_weights: Sequence[float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.kd_loss = _check_callable("kd_loss", kd_loss)
        self.ce_loss = _check_callable("ce_loss", ce_loss)
        for name, given in (("weights", weights), ("kd_loss_weights", kd_loss_weights)):
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise ConfigError(f"{name} must be a sequence of numbers, not {given!r}.")
        self.weights = [check_number("each of weights", w) for w in weights]
        self.kd_loss_weights = [check_number("each of kd_loss_weights", w) for w in kd_loss_weights]
        if not self.weights:
            raise ConfigError("weights must hold one number per prediction head, at least one.")
        if len(self.kd_loss_weights) != 2:
            raise ConfigError(
                "kd_loss_weights must be the pair (weight of ce_loss, weight of kd_loss), not "
                f"{len(self.kd_loss_weights)} numbers."
            )

    @property
    def component_names(self) -> list[str]:
        """Names of the entries of `items`, in order."""
        heads = range(len(self.weights))
        names = [name for i in heads for name in (f"Head-{i}_CE_Loss", f"Head-{i}_KD_Loss")]
        return [*names, "Total_Loss"]

    def forward(self, output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """`(total, items)`; both outputs are one map or a sequence with one map per head.

        Raises:
            ConfigError: `output` is no pair.
            ShapeError: another number of heads than of weights.
        """
        students, teachers = (_heads(side) for side in _pair(output, self))
        if not len(students) == len(teachers) == len(self.weights):
            raise ShapeError(
                f"the student has {len(students)} prediction heads, the teacher {len(teachers)}, "
                f"and weights has {len(self.weights)} numbers; they must agree."
            )
        ce_weight, kd_weight = self.kd_loss_weights
        losses: list[Tensor] = []
        parts: list[Tensor] = []
        for weight, student, teacher in zip(self.weights, students, teachers, strict=True):
            ce = _scalar(self.ce_loss(student, target), "ce_loss")
            kd = _scalar(_call(self.kd_loss, student, teacher, target, {}), "kd_loss")
            losses.append(weight * (ce_weight * ce + kd_weight * kd))
            parts += [ce, kd]
        total = sum(losses[1:], losses[0])
        return total, torch.stack([*parts, total]).detach()


def _call(
    loss: Callable[..., Tensor], student: Any, teacher: Any, target: Any, given: dict[str, Any]
) -> Tensor:
    name = type(loss).__name__
    keywords = route({name: loss}, given)[name]
    if "target" in accepts(loss):
        keywords["target"] = target
    return loss(student, teacher, **keywords)


def _pair(output: Any, loss: nn.Module) -> tuple[Any, Any]:
    try:
        return output.student_output, output.teacher_output
    except AttributeError:
        raise ConfigError(
            f"{type(loss).__name__} wants an output with student_output and teacher_output (a "
            f"KDOutput), not a {type(output).__name__}."
        ) from None


def _heads(side: Any) -> Sequence[Tensor]:
    return (side,) if isinstance(side, Tensor) else tuple(side)


def _scalar(loss: Any, name: str) -> Tensor:
    """The loss itself where a loss function returns `(loss, items)`."""
    value = loss[0] if isinstance(loss, tuple | list) else loss
    if not isinstance(value, Tensor) or value.dim() != 0:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            f"{name} must return a scalar tensor, or a tuple that starts with it; "
            f"it returned {what}."
        )
    return value


def _check_callable(name: str, value: Any) -> Any:
    if not callable(value):
        raise ConfigError(f"{name} must be callable, not {value!r}.")
    return value
