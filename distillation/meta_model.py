"""The script door: a model becomes its own distillation meta-model, in place, and back again.

    model = convert(student, mode=[("kd_loss", {"teacher_model": teacher, "criterion": loss})])
    ...                                  # the training script as it was, and one line for the loss
    loss = model.compute_kd_loss(student_loss=cross_entropy(model(x), y))
    student = export(model)

The class of the instance becomes a subclass of (DistillationModel, its own class). All work is done
by a `Distiller`, which the instance carries outside its module tree (`distillation.carried`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from distillation.carried import Carried
from distillation.errors import TeacherError
from distillation.teacher import TeacherSource

__all__ = ["DistillationModel"]


def running(teacher: TeacherSource) -> TeacherSource:
    """The source that answers without keys: of a table, the teacher behind it.

    Raises `TeacherError` for a table that was opened without its teacher.
    """
    behind = getattr(teacher, "teacher", None) if teacher.keyed else teacher
    if behind is None:
        raise TeacherError(
            "the teacher is a table without a model, which only answers by sample and view; open "
            "the table with its teacher"
        )
    return behind


class DistillationModel(Carried):
    """What `convert` makes of a model: still an instance of its own class, with a teacher beside.

    `forward` has the student's signature and returns the student's output. Losses and balancer
    appear in `children()`, `parameters()` and `state_dict()` under `_loss_modules` and
    `_loss_balancer`; the teacher appears nowhere, unless `expose_minimal_state_dict` is False.
    """

    original_cls: type[nn.Module]
    #: what calls forward again and again with a cache that it fills: the teacher would fill it, too
    STUDENT_ONLY = ("generate",)

    def distil(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` does: teacher, then student; the student's output."""
        carried = self._kd
        if carried.only_teacher:
            return running(carried.distiller.teacher).run(args, kwargs)
        if carried.only_student:
            carried.distiller.clear()  # an earlier pass is not this one's loss
            return self._student_forward(*args, **kwargs)
        return carried.distiller.run(self._student_forward, args, kwargs)

    def _student_forward(self, *args: Any, **kwargs: Any) -> Any:
        carried = self._kd
        forward = super().forward if carried.forward is None else carried.forward
        outer, carried.running = carried.running, True
        try:
            return forward(*args, **kwargs)
        finally:
            carried.running = outer

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
        """The loss of the last forward pass; see `Distiller.compute_kd_loss`."""
        keys = {"sample": sample, "view": view}
        compute = self._kd.distiller.compute_kd_loss
        return compute(student_loss, loss_reduction_fn, skip_balancer, **keys, **loss_kwargs)

    @property
    def teacher_model(self) -> Any:
        """The teacher module, or the source of outputs when it is no single module."""
        teacher = self._kd.distiller.teacher
        return teacher if teacher.module is None else teacher.module

    @property
    def loss_modules(self) -> nn.ModuleList:
        """The losses, in the criterion's order."""
        return self._kd.distiller.loss_modules

    @property
    def loss_balancer(self) -> nn.Module | None:
        """What adds the losses up, if anything was given."""
        return self._kd.distiller.loss_balancer

    def only_teacher_forward(self, enable: bool = True) -> AbstractContextManager[None]:
        """Within this context `forward` runs the teacher alone and returns its output."""
        return self._kd.setting(only_teacher=enable, **({"only_student": False} if enable else {}))

    def only_student_forward(self, enable: bool = True) -> AbstractContextManager[None]:
        """Within this context `forward` runs the student alone: validation at its own price.

        There is no loss to compute then.
        """
        return self._kd.setting(only_student=enable, **({"only_teacher": False} if enable else {}))

    def hide_teacher_model(self, enable: bool = True) -> AbstractContextManager[None]:
        """Within this context the teacher is not in the state dict, whatever the configuration."""
        return self._kd.setting(hide_teacher=enable)

    def hide_loss_modules(self, enable: bool = True) -> AbstractContextManager[None]:
        """Within this context losses and balancer are neither in the tree nor in the state dict."""
        return self._kd.setting(hide_losses=enable)


_BESIDE = {
    "KDLossConfig": "kd_config",
    "convert": "conversion",
    "export": "conversion",
    "restore": "persistence",
    "save": "persistence",
}


def __getattr__(name: str) -> Any:
    """The functions of this door, which stand on the class above."""
    if name not in _BESIDE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"distillation.{_BESIDE[name]}"), name)
