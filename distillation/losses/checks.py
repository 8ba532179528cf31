"""Checks and conversions that the losses share: shapes, temperature, reductions, masks.

None of them reads a tensor's values, so nothing here makes the host wait for the device.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from distillation.errors import ConfigError, ShapeError, unknown

REDUCTIONS = ("batchmean", "mean", "sum", "none")


def check_number(
    name: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    low_open: bool = False,
) -> float:
    """`value` as a float when it is a finite number in [low, high] (or (low, high]).

    Raises:
        ConfigError: naming the option, its value and the range.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if number and value <= high and (value > low if low_open else value >= low):
        return float(value)
    above = f"greater than {low:g}" if low_open else f"at least {low:g}"
    below = "" if high == math.inf else f" and at most {high:g}"
    raise ConfigError(f"{name} must be a finite number {above}{below}, not {value!r}.")


def check_integer(name: str, value: Any) -> int:
    """`value` as an int; raises `ConfigError`, naming the option and its value, for no integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be an integer, not {value!r}.")
    return int(value)


def check_count(name: str, value: Any) -> int:
    """`value` as an int when it is a whole number of at least 1.

    Raises:
        ConfigError: naming the option and its value.
    """
    number = check_number(name, value, low=1)
    if number != int(number):
        raise ConfigError(f"{name} must be an integer, not {value!r}.")
    return int(number)


def check_temperature(temperature: Any) -> float:
    """The temperature as a float. Raises ConfigError unless it is finite and positive."""
    return check_number("temperature", temperature, low_open=True)


def check_reduction(reduction: Any) -> str:
    """The reduction's name. Raises ConfigError unless it is one of `REDUCTIONS`."""
    if reduction not in REDUCTIONS:
        raise ConfigError(unknown("reduction", reduction, REDUCTIONS))
    return reduction


def check_tensors(student: Any, teacher: Any) -> None:
    """Raises ShapeError unless both outputs are floating-point tensors."""
    for who, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, Tensor):
            raise ShapeError(
                f"the {who}'s output is a {type(value).__name__}, not a tensor; pick the tensor "
                "out of it first."
            )
        if not value.is_floating_point():
            raise ShapeError(
                f"the {who}'s output has dtype {value.dtype}; it must be floating point."
            )


def check_pair(student: Any, teacher: Any, dim: int = -1) -> int:
    """Checks logits of one shape with classes along `dim`; returns `dim` counted from the front.

    Raises:
        ShapeError: no tensors, another number of classes, other shapes, no such dimension.
    """
    check_tensors(student, teacher)
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if not -student.dim() <= dim < student.dim():
        raise ShapeError(f"there is no class dimension {dim}: {shapes}.")
    dim %= student.dim()
    if student.dim() != teacher.dim():
        raise ShapeError(f"student and teacher differ in their number of dimensions: {shapes}.")
    if student.shape[dim] != teacher.shape[dim]:
        raise ShapeError(
            f"the student has {student.shape[dim]} classes and the teacher "
            f"{teacher.shape[dim]} along dimension {dim}: {shapes}."
        )
    if student.shape != teacher.shape:
        raise ShapeError(f"student and teacher differ in shape: {shapes}.")
    if student.shape[dim] == 0:
        raise ShapeError(f"there are no classes along dimension {dim}: {shapes}.")
    return dim


def full_precision(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype of at least float32; the teacher cut from the graph."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def check_rows(name: str, value: Any, logits: Tensor, dim: int) -> Tensor:
    """`value` when it is an integer or bool tensor shaped like the logits without `dim`.

    Raises:
        ShapeError: naming the argument, its shape and the shape it must have.
        ConfigError: it is no tensor, or of floating-point dtype.
    """
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} must be a tensor, not {type(value).__name__}.")
    if value.is_floating_point() or value.is_complex():
        raise ConfigError(f"{name} must hold integers or bools, not {value.dtype}.")
    rows = logits.shape[:dim] + logits.shape[dim + 1 :]
    if value.shape != rows:
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)}; with logits {tuple(logits.shape)} and "
            f"classes along dimension {dim} it must have {tuple(rows)}."
        )
    return value


def reduce_rows(rows: Tensor, reduction: str, mask: Tensor | None, classes: int) -> Tensor:
    """Reduces one value per row (the class dimension is summed already).

    "batchmean" divides the sum by the number of unmasked rows, "mean" by that number times the
    number of classes (the mean over all elements, as in `torch.nn.KLDivLoss`), "sum" by nothing;
    "none" returns the rows, zero where masked. With no row left the mean is 0, not NaN.
    """
    if mask is not None:
        rows = rows.masked_fill(~mask, 0.0)
    if reduction == "none":
        return rows
    total = rows.sum()
    if reduction == "sum":
        return total
    if mask is None:
        count: int | Tensor = max(rows.numel(), 1)
    else:
        count = mask.sum().clamp(min=1)
    return total / (count * classes if reduction == "mean" else count)
