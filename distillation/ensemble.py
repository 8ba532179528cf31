"""Several teachers as one: the ensemble that Hinton et al. (2015) distil into a single model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillation.errors import ConfigError, ShapeError, TeacherError, unknown
from distillation.frozen_teacher import FrozenTeacher, TeacherSource
from distillation.selection import Selector, as_tensor

AVERAGES = ("probabilities", "logits")


class EnsembleTeacher(TeacherSource):
    r"""The weighted mean of several teachers' predictions, as logits.

    With weights $w_i$ that sum to one, logits $z_i$ and temperature $T$:

    * `average="probabilities"` gives $T \log \sum_i w_i\, \mathrm{softmax}(z_i / T)$, the
      arithmetic mean (Hinton et al., 2015, "Distilling the Knowledge in a Neural Network"). At
      the default $T = 1$ these are log-probabilities. A loss with a temperature of its own sees
      the exact mean of the softened predictions when that temperature is given here too.
    * `average="logits"` gives $\sum_i w_i z_i$, the geometric mean of the predictions.

    `sources` are teacher sources, or modules, which are frozen. `weights` are positive, one for
    each, and are divided by their sum; equal by default. `dim` is the class dimension, which a mean
    of probabilities needs to know of outputs with more than two dimensions. `select` picks the
    logits in a structured output, as in `selection.as_tensor`.

    Each call gives one tensor of the members' common shape (float32 for half-precision members).
    Layers of members are captured by number: "0.layer4" is `layer4` of the first.

    Raises `ConfigError` for an empty ensemble or bad weights, `ShapeError` when the members'
    outputs differ in shape, or `dim` is needed.
    """

    def __init__(
        self,
        sources: Sequence[TeacherSource | nn.Module],
        weights: Sequence[float] | None = None,
        average: str = "probabilities",
        *,
        temperature: float = 1.0,
        dim: int | None = None,
        select: Selector = None,
    ):
        if average not in AVERAGES:
            raise ConfigError(unknown("average", average, AVERAGES))
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"temperature must be positive and finite, got {temperature!r}")
        if temperature != 1.0 and average == "logits":
            raise ConfigError("a mean of logits does not depend on a temperature: leave it out")
        if isinstance(sources, nn.Module | TeacherSource) or not list(sources):
            raise ConfigError("an ensemble takes a list of at least one teacher")
        self.average = average
        self.temperature = float(temperature)
        self.dim = dim
        self.select = select
        self.weights = _normalised(weights, len(sources))
        self.sources: list[TeacherSource] = []
        try:
            for source in sources:
                self.sources.append(
                    source.share() if isinstance(source, TeacherSource) else FrozenTeacher(source)
                )
        except BaseException:
            self.release()
            raise
        modules = [source.module for source in self.sources]
        self._module = nn.ModuleList(modules) if all(m is not None for m in modules) else None

    def __call__(self, *args: Any, sample: Any = None, view: Any = None, **kwargs: Any) -> Tensor:
        """The mean of the members' outputs for these inputs."""
        return self.run(args, kwargs, sample=sample, view=view)

    def run(
        self, args: tuple, kwargs: Mapping[str, Any], *, sample: Any = None, view: Any = None
    ) -> Tensor:
        if not self.sources:
            raise TeacherError("this ensemble was released and cannot be used any more")
        outputs = [
            as_tensor(
                source.run(args, kwargs, sample=sample, view=view),
                self.select,
                what=f"output of teacher {index}",
            )
            for index, source in enumerate(self.sources)
        ]
        shapes = [tuple(output.shape) for output in outputs]
        if len(set(shapes)) > 1:
            listed = ", ".join(f"teacher {i}: {shape}" for i, shape in enumerate(shapes))
            raise ShapeError(f"the teachers' outputs differ in shape ({listed})")
        return self._mean(outputs)

    def _mean(self, outputs: list[Tensor]) -> Tensor:
        wide = [_widened(output) for output in outputs]
        if self.average == "logits":
            return sum(weight * z for weight, z in zip(self.weights, wide, strict=True))
        if self.dim is None and wide[0].dim() > 2:
            raise ShapeError(
                f"an ensemble of outputs {tuple(wide[0].shape)} averages probabilities, and must "
                "know which dimension the classes are in: give EnsembleTeacher(teachers, dim=1) "
                "for maps (N, C, …), dim=-1 for sequences (N, L, C)"
            )
        dim = -1 if self.dim is None else self.dim
        terms = [
            torch.log_softmax(z / self.temperature, dim=dim) + math.log(weight)
            for weight, z in zip(self.weights, wide, strict=True)
        ]
        return torch.logsumexp(torch.stack(terms), dim=0) * self.temperature

    @property
    def module(self) -> nn.Module | None:
        return self._module

    @property
    def keyed(self) -> bool:
        """Whether a member answers by `sample` and `view`."""
        return any(source.keyed for source in self.sources)

    @property
    def mode(self) -> str:
        """That of its members; the first that is not "eval", where they differ."""
        return next((source.mode for source in self.sources if source.mode != "eval"), "eval")

    @property
    def fingerprint(self) -> str:
        """Hash of the members' fingerprints, the weights, how they are averaged, what is selected.

        Of a function that selects, the name counts.
        """
        if not self.sources:
            raise TeacherError("this ensemble was released and has no fingerprint any more")
        facts = {
            "members": [source.fingerprint for source in self.sources],
            "weights": self.weights,
            "average": self.average,
            "temperature": self.temperature,
            "dim": -1 if self.dim is None else self.dim,
        }
        if self.select is not None:
            facts["select"] = _selected(self.select)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any] | None:
        members = [source.describe() for source in self.sources]
        if None in members or isinstance(self.select, Callable):
            return None
        return {
            "kind": "ensemble",
            "members": members,
            "weights": self.weights,
            "average": self.average,
            "temperature": self.temperature,
            "dim": self.dim,
            "select": list(self.select) if isinstance(self.select, tuple) else self.select,
        }

    def share(self) -> EnsembleTeacher:
        return EnsembleTeacher(
            self.sources,
            self.weights,
            self.average,
            temperature=self.temperature,
            dim=self.dim,
            select=self.select,
        )

    def release(self) -> None:
        for source in self.sources:
            source.release()
        self.sources = []
        self._module = None

    def refuse_student(self, student: nn.Module) -> None:
        for source in self.sources:
            source.refuse_student(student)

    def train_with(self, mode: bool = True) -> EnsembleTeacher:
        for source in self.sources:
            source.train_with(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> EnsembleTeacher:
        for source in self.sources:
            source._apply(fn)
        return self

    def move_like(self, fn: Callable[[Tensor], Tensor]) -> EnsembleTeacher:
        for source in self.sources:
            source.move_like(fn)
        return self

    def __repr__(self) -> str:
        return f"EnsembleTeacher({self.sources}, {self.weights}, {self.average!r})"


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0 / count] * count
    values = [float(weight) for weight in weights]
    if len(values) != count:
        raise ConfigError(f"{len(values)} weights for {count} teachers: give one for each")
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(
                f"weights must be positive and finite, got {values}; leave a teacher out rather "
                "than weigh it zero"
            )
    return [value / math.fsum(values) for value in values]


def _selected(select: Selector) -> Any:
    """A selector as JSON; a function by its module and name."""
    if isinstance(select, tuple):
        return [_selected(step) for step in select]
    if callable(select):
        named = select if hasattr(select, "__qualname__") else type(select)
        return f"{named.__module__}.{named.__qualname__}"
    return select


def _widened(output: Tensor) -> Tensor:
    if not output.is_floating_point():
        raise ShapeError(f"an ensemble averages logits, and got a tensor of {output.dtype}")
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
