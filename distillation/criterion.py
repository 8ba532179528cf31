"""What is compared with what: layer pairs, their losses, and which tensors the losses are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss as TorchLoss

from distillation.capture import Record, Tap
from distillation.errors import ConfigError
from distillation.losses.interface import DistillationLoss, accepts
from distillation.selection import Selector, as_tensor, choices

__all__ = ["Criterion", "LayerLoss", "Pair"]

STUDENT, TEACHER = "student", "teacher"


class LayerLoss(DistillationLoss):
    """A loss with a word about which tensors it is given.

        {("blocks", "layer4"): LayerLoss(nn.MSELoss(), student=("hidden_states", -1), call="all")}

    Args:
        loss: any loss module.
        student, teacher: selectors, as in `distillation.selection.as_tensor`: an index, a key, an
            attribute name, a tuple of these, or a function of the layer's output.
        call: for layers that run more than once in a forward pass: the number of the call, or
            "all" for a list with the tensor of each. Without it the last call counts.
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        student: Selector = None,
        teacher: Selector = None,
        call: int | str = -1,
    ):
        super().__init__()
        if call != "all" and (isinstance(call, bool) or not isinstance(call, int)):
            raise ConfigError(f"call must be an integer or 'all', not {call!r}")
        self.loss = _checked(loss, "LayerLoss")
        self.select_student, self.select_teacher, self.call = student, teacher, call

    def keywords(self) -> frozenset[str]:
        """Those of the loss inside."""
        return accepts(self.loss)

    def forward(self, student_output: Any, teacher_output: Any, **keywords: Any) -> Any:
        return self.loss(student_output, teacher_output, **keywords)


class Pair(NamedTuple):
    """One loss, its name, and the two places it compares."""

    name: str
    student: Tap
    teacher: Tap
    loss: nn.Module

    def values(self, record: Record) -> tuple[Any, Any]:
        """What the loss is given: student's side, teacher's side.

        A `DistillationLoss`, one's own as well, and torch's get tensors; the logits, when an output
        holds several. Any other module gets what the layer gave, whatever that is.
        """
        return self._value(record, self.student), self._value(record, self.teacher)

    def _value(self, record: Record, tap: Tap) -> Any:
        loss = self.loss
        if isinstance(loss, LayerLoss):
            select = getattr(loss, f"select_{tap.model}")
            if select is not None or loss.call != -1:
                return record.tensor(tap, call=loss.call, select=select)
            loss = loss.loss
        last = record.calls(tap)[-1]
        if isinstance(last, Tensor):
            return last
        if not isinstance(loss, DistillationLoss | TorchLoss):
            return last
        return as_tensor(last, _logits(last), what=str(tap))


def _logits(output: Any) -> Selector:
    return "logits" if "logits" in choices(output) else None


class Criterion:
    """The pairs of a criterion, in the order they were given in.

    Args:
        criterion: one loss (between the models' outputs), a mapping `{(student_layer,
            teacher_layer): loss}`, or None for no loss at all.

    Raises:
        ConfigError: no pair, a key that is no pair of names, or a value that is no module.
    """

    def __init__(self, criterion: nn.Module | Mapping[tuple[str, str], nn.Module] | None):
        if criterion is None:
            items = []
        elif isinstance(criterion, Mapping):
            items = [(_pair_of(key), loss) for key, loss in criterion.items()]
            if not items:
                raise ConfigError(
                    "criterion is empty; give a loss, or {(student_layer, teacher_layer): loss}"
                )
        else:
            items = [(("", ""), criterion)]
        self.losses = nn.ModuleList(_checked(loss, f"criterion {key}") for key, loss in items)
        self.keys = [key for key, _ in items]

    def __iter__(self) -> Iterator[Pair]:
        for i, ((student, teacher), loss) in enumerate(zip(self.keys, self.losses, strict=True)):
            name = f"{type(loss).__name__}_{i}"
            yield Pair(name, Tap(STUDENT, student), Tap(TEACHER, teacher), loss)

    def __len__(self) -> int:
        return len(self.keys)

    def as_mapping(self) -> dict[tuple[str, str], nn.Module]:
        """`{(student_layer, teacher_layer): loss}`, from which an equal one can be made."""
        return dict(zip(self.keys, self.losses, strict=True))


def _pair_of(key: object) -> tuple[str, str]:
    pair = isinstance(key, tuple) and len(key) == 2 and all(isinstance(k, str) for k in key)
    if not pair:
        raise ConfigError(
            f"criterion has the key {key!r}; keys are pairs of layer names, "
            "(student_layer, teacher_layer)"
        )
    return key


def _checked(loss: object, where: str) -> nn.Module:
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise ConfigError(f"{where}: {loss.__name__} is a class; give an instance of it")
    if not isinstance(loss, nn.Module):
        raise ConfigError(
            f"{where}: {loss!r} is no loss; give an nn.Module called as "
            "loss(student_output, teacher_output)"
        )
    return loss
