"""Module replacement: layers of the student learn to stand in for layers of the teacher.

Source: the "module replacement" of NVIDIA ModelOpt's distillation (`layerwise_kd`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from distillation.capture import Record, Tap, find_layer
from distillation.criterion import STUDENT, TEACHER
from distillation.distiller import STUDENT_OUTPUT, Distiller
from distillation.errors import ConfigError

__all__ = ["LayerwiseDistiller"]


class LayerwiseDistiller(Distiller):
    """A `Distiller` whose paired student layers are run on the teacher layer's input.

    Everything outside the paired layers is frozen: no gradient, and evaluation mode, so that batch
    statistics do not drift either. `release()` gives the flags back. `forward` returns what the
    student as a whole says in evaluation mode, without gradient; the paired layers are trained by
    the losses alone.

    Raises:
        ConfigError: a pair that names a whole model; a student layer in two pairs, or inside one
            that is paired.
    """

    mode = "layerwise_kd"

    def _prepare(self) -> None:
        self._frozen: dict[str, bool] = {}  # parameter -> requires_grad as found
        self._asleep: dict[str, bool] = {}  # module -> training as found
        self._check_layers()
        super()._prepare()
        self._freeze()

    def _check_layers(self) -> None:
        names = [student for student, _ in self.criterion.keys]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(
                f"the student layer {twice[0]!r} is in two pairs; it can stand in for one layer"
            )
        if not all(student and teacher for student, teacher in self.criterion.keys):
            raise ConfigError(
                "layerwise_kd needs layers: criterion={(student_layer, teacher_layer): loss}"
            )
        for name in names:
            find_layer(self.student, name, what="student layer")
            for other in names:
                if name.startswith(other + "."):
                    raise ConfigError(f"the layer {name!r} is inside {other!r}; pair one of them")

    def _taps(self) -> list[Tap]:
        layers = [pair.teacher.layer for pair in self.criterion]
        return [Tap(TEACHER, name, kind) for name in layers for kind in ("input", "output")]

    # Flags --------------------------------------------------------------------------------

    def _layers(self) -> list[nn.Module]:
        return [self.student.get_submodule(student) for student, _ in self.criterion.keys]

    def _others(self) -> Iterator[tuple[str, nn.Module]]:
        """The student's modules outside the paired layers, but for the student itself."""
        paired = {id(module) for layer in self._layers() for module in layer.modules()}
        for name, module in nn.Module.named_modules(self.student):
            if name and id(module) not in paired:
                yield name, module

    def _freeze(self) -> None:
        trained = {id(p) for layer in self._layers() for p in layer.parameters()}
        for name, parameter in self.student.named_parameters():
            if id(parameter) not in trained:
                self._frozen[name] = parameter.requires_grad
                parameter.requires_grad_(False)
        for name, module in self._others():
            self._asleep[name] = module.training
            module.training = False

    def train(self, mode: bool = True) -> LayerwiseDistiller:
        super().train(mode)
        self._asleep = dict.fromkeys(self._asleep, mode)  # what train() means them to be
        for _, module in self._others():
            module.training = False
        return self

    def release(self) -> None:
        for name, found in self._frozen.items():
            self.student.get_parameter(name).requires_grad_(found)
        for name, found in self._asleep.items():
            self.student.get_submodule(name).training = found
        self._frozen, self._asleep = {}, {}
        super().release()

    # Forward ------------------------------------------------------------------------------

    def _run_again(self, student: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        record = self._capture.arm()
        try:
            self._run_teacher(record, args, kwargs, None, None)
            return self._run_student(record, student, args, kwargs)
        finally:
            self._capture.clear()

    def _run_student(
        self, record: Record, student: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        awake = [m for layer in self._layers() for m in layer.modules() if m.training]
        if self.student.training:
            awake.append(self.student)
        try:
            for module in awake:
                module.training = False
            with torch.no_grad():
                output = student(*args, **kwargs)
        finally:
            for module in awake:
                module.training = True
        record.add(STUDENT_OUTPUT, output)
        for (name, theirs), layer in zip(self.criterion.keys, self._layers(), strict=True):
            for given in record.calls(Tap(TEACHER, theirs, "input")):
                record.add(Tap(STUDENT, name), layer(*given.args, **given.kwargs))
        return output
