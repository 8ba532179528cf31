"""How a converted model carries its distiller: in the instance's `__dict__`, not as a submodule.

Losses and balancer are shown to whatever walks over a module (`children`, `named_modules`, the
state dict) without being in `_modules`, so that an `nn.Sequential`, or a forward that iterates over
its children, does not run into them. The teacher is shown to nobody, but follows `.to()`, `.half()`
and `.double()`.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from distillation.class_swap import swapped_class, without
from distillation.distiller import Distiller
from distillation.errors import DistillationError

LOSSES, BALANCER, TEACHER = "_loss_modules", "_loss_balancer", "_teacher_model"


@dataclass
class KD:
    """What one converted instance carries."""

    distiller: Distiller
    forward: Callable[..., Any] | None = None  # the instance's own `forward`, when it had one
    later_forward: Callable[..., Any] | None = None  # one set since the conversion; see `detach`
    show_teacher: bool = False
    only_teacher: bool = False
    only_student: bool = False
    hide_teacher: bool = False
    hide_losses: bool = False
    running: bool = False  # the student's forward is on: children() is as its author left it

    @contextlib.contextmanager
    def setting(self, **values: bool) -> Iterator[None]:
        """Set flags, and set them back as they were found."""
        found = {name: getattr(self, name) for name in values}
        vars(self).update({name: bool(value) for name, value in values.items()})
        try:
            yield
        finally:
            vars(self).update(found)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """The modules that belong to the model beside the student's own."""
        if self.hide_losses:
            return []
        parts: list[tuple[str, nn.Module]] = [(LOSSES, self.distiller.loss_modules)]
        if self.distiller.loss_balancer is not None:
            parts.append((BALANCER, self.distiller.loss_balancer))
        return parts

    def stored(self) -> list[tuple[str, nn.Module]]:
        """The modules whose state is part of the state dict, beside the student's own."""
        teacher = self.distiller.teacher.module
        if self.show_teacher and not self.hide_teacher and teacher is not None:
            return [*self.parts(), (TEACHER, teacher)]
        return self.parts()


class Carried(nn.Module):
    """The side of a converted model that is turned to torch."""

    _kd: KD

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Constructing the class anew, as `nn.Sequential` does for a slice, gives a plain model."""
        return without(cls)(*args, **kwargs)

    # Walking over the tree ----------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().named_children()
        if not self._kd.running:
            yield from self._kd.parts()

    def named_modules(
        self,
        memo: set[nn.Module] | None = None,
        prefix: str = "",
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, nn.Module]]:
        memo = set() if memo is None else memo
        if self in memo:
            return
        yield from super().named_modules(memo, prefix, remove_duplicate)
        for name, module in self._kd.parts():
            full = f"{prefix}.{name}" if prefix else name
            yield from module.named_modules(memo, full, remove_duplicate)

    @property
    def _loss_modules(self) -> nn.ModuleList:
        return self._kd.distiller.loss_modules

    @property
    def _loss_balancer(self) -> nn.Module | None:
        return self._kd.distiller.loss_balancer

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Losses and balancer that a tool has walked to, and puts back, go to where they were."""
        if name not in (LOSSES, BALANCER) or "_kd" not in self.__dict__:
            super().add_module(name, module)
        elif module is not dict(self._kd.parts()).get(name):
            self._kd.distiller.replace(**{name.removeprefix("_"): module})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in (LOSSES, BALANCER):
            self.add_module(name, value)
        else:
            super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Carried:
        super().train(mode)
        self._kd.distiller.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Carried:
        super()._apply(fn, recurse)
        if recurse:
            self._kd.distiller.teacher.move_like(fn)
        return self

    # State --------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, module in self._kd.stored():
            module.state_dict(
                destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars
            )

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        unexpected: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected, error_msgs
        )
        assign = local_metadata.get("assign_to_params_buffers", False)
        stored = self._kd.stored()
        losses = tuple(f"{prefix}{name}." for name in (LOSSES, BALANCER))
        if not any(key.startswith(losses) for key in state_dict):
            # Of a student from before it was converted
            kept = [name for name, module in stored if name != TEACHER and module.state_dict()]
            if kept:
                warnings.warn(
                    f"the state dict has nothing for {' and '.join(kept)}, which stay as they are",
                    stacklevel=2,
                )
            stored = [(name, module) for name, module in stored if name == TEACHER]
        for name, module in stored:
            start = f"{prefix}{name}."
            unexpected = [key for key in unexpected if not key.startswith(start)]
            own = {k[len(start) :]: v for k, v in state_dict.items() if k.startswith(start)}
            try:
                result = module.load_state_dict(own, strict=False, assign=assign)
            except RuntimeError as error:
                error_msgs.append(f"{name}: {error}")
                continue
            missing_keys.extend(start + key for key in result.missing_keys)
            unexpected.extend(start + key for key in result.unexpected_keys)
        unexpected_keys.extend(unexpected)

    # Copies -------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A student of its own with losses of its own, and the same teacher."""
        cls = type(self)
        kd = detach(self)
        self.__dict__.pop("forward", None)
        try:
            made = copy.deepcopy(self, memo)
        finally:
            reattach(self, kd, cls)
        twin = replace(
            kd,
            distiller=kd.distiller.copy_for(made, memo),
            forward=copy.deepcopy(kd.forward, memo),
            later_forward=copy.deepcopy(kd.later_forward, memo),
            running=False,
        )
        reattach(made, twin, cls)
        return made

    def _leave_teacher(self) -> None:
        """Be the plain student again; `student_copy` asks for it."""
        detach(self).distiller.release()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DistillationError(
            "a converted model is neither pickled nor copied by copy.copy, since the teacher would "
            "go along: use distillation.save(model, path), model.state_dict(), copy.deepcopy, or "
            "export(model) first"
        )

    def _replicate_for_data_parallel(self) -> Any:
        raise DistillationError(
            "nn.DataParallel would forward copies of the model that the loss never sees; use "
            "DistributedDataParallel, with one process as well"
        )


def attach(model: nn.Module, kd: KD, mixin: type) -> None:
    """Let `model` carry `kd`, as an instance of a class made from `mixin` and its own.

    A `forward` that was set on the instance moves into `kd`.
    """
    kd.forward = model.__dict__.get("forward")
    reattach(model, kd, swapped_class(mixin, type(model), kd.forward))


def detach(model: nn.Module) -> KD:
    """Undo `attach`: the class and every attribute are as they were.

    A `forward` that another tool has set on the instance since stays there.
    """
    kd = model.__dict__["_kd"]
    model.__class__ = without(type(model))
    del model.__dict__["_kd"]
    kd.later_forward = model.__dict__.get("forward")
    if kd.later_forward is None and kd.forward is not None:
        model.__dict__["forward"] = kd.forward
    return kd


def reattach(model: nn.Module, kd: KD, cls: type) -> None:
    """Undo `detach`: `cls` is the class that the model had."""
    model.__class__ = cls  # nothing has changed yet when this fails
    model.__dict__.pop("forward", None)
    if kd.later_forward is not None:
        model.__dict__["forward"] = kd.later_forward
    model.__dict__["_kd"] = kd
