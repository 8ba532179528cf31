"""A teacher that is held outside its KDModule's tree, borrowed when needed and given back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from distillation.criterion import Criterion
from distillation.distiller import Distiller
from distillation.errors import ConfigError, TeacherError
from distillation.teacher import TeacherSource, as_teacher

TRAIN = "train"
Adapt = Callable[[tuple, Mapping[str, Any]], tuple[tuple, dict]]


class AdaptedTeacher(TeacherSource):
    """Another source, which sees its inputs through an adapter; keeps its last output."""

    def __init__(self, source: TeacherSource, adapt: Adapt | None):
        if source.keyed and adapt is not None:
            raise ConfigError(
                "a teacher that looks its outputs up sees no inputs, so teacher_input_adapter has "
                "no effect; adapt the inputs of the model that fills the table."
            )
        self.source, self.adapt = source, adapt
        self.reference, self.run_uuid = source.reference, source.run_uuid
        self.run_step, self.mode, self.keyed = source.run_step, source.mode, source.keyed
        self.last_output: Any = None

    def __call__(self, *args: Any, sample: Any = None, view: Any = None, **kwargs: Any) -> Any:
        if self.adapt is not None:
            with torch.no_grad():
                args, kwargs = self.adapt(args, kwargs)
        self.last_output = self.source(*args, sample=sample, view=view, **kwargs)
        return self.last_output

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # not made yet
            raise AttributeError(name)
        return getattr(self.source, name)  # what only some sources have: stored layers, say

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def module(self) -> nn.Module | None:
        return self.source.module

    def describe(self) -> dict[str, Any] | None:
        return self.source.describe()

    def release(self) -> None:
        self.source.release()
        self.last_output = None

    def refuse_student(self, student: nn.Module) -> None:
        self.source.refuse_student(student)

    def train_with(self, mode: bool = True) -> AdaptedTeacher:
        self.source.train_with(mode)
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> AdaptedTeacher:
        self.source._apply(fn)
        return self

    def move_like(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> AdaptedTeacher:
        self.source.move_like(fn)
        return self


class Guest:
    """Holds what was given as the teacher; makes its source, and distillers, when asked.

    After `release()` the teacher has its flags back; the next use borrows it again. A deepcopy
    shares the teacher, and has losses, a balancer and (with its KDModule) an adapter of its own.
    """

    def __init__(
        self,
        given: Any,
        *,
        mode: str,
        adapt: Adapt | None,
        criterion: Any = None,
        loss_balancer: Any = None,
    ):
        self.given, self.mode, self.adapt = given, mode, adapt
        self.criterion, self.loss_balancer = criterion, loss_balancer
        self._source: AdaptedTeacher | None = None
        self._others: dict[str, AdaptedTeacher] = {}
        self._selected: AdaptedTeacher | None = None
        self._distillers: dict[tuple[int, int], Distiller] = {}
        self._training: bool | None = None

    @property
    def source(self) -> AdaptedTeacher:
        """The source that answers now: the teacher's own, unless another was selected."""
        return self.own_source if self._selected is None else self._selected

    @property
    def own_source(self) -> AdaptedTeacher:
        """The teacher's source, borrowed."""
        if self._source is None:
            source = as_teacher(self.given, mode=self.mode)
            if not isinstance(self.given, nn.Module | TeacherSource | list):
                # A run or a factory is loaded once; nobody else waits for its flags
                self.given, source = source, source.share()
            self._source = AdaptedTeacher(source, self.adapt)
            if self._training is not None:
                self._source.train_with(self._training)
        return self._source

    def add_tables(self, tables: Mapping[str, TeacherSource]) -> None:
        """Tables of the teacher's outputs by split; they are released with the teacher."""
        for split, table in tables.items():
            self._others[split] = AdaptedTeacher(table, self.adapt)

    def select(self, split: str) -> None:
        """Let the source of this split answer: its table, else the teacher.

        A table that was given as the teacher answers for the training data alone; other splits
        are answered by the model behind it. Raises `TeacherError` when it has none.
        """
        own = self.own_source
        if split not in self._others and own.keyed and split != TRAIN:
            behind = own.source.teacher
            if behind is None:
                raise TeacherError(
                    f"the teacher is a table without a model, which cannot answer for the split "
                    f"{split!r}; open the table with its teacher, or train without a valid_loader."
                )
            self._others[split] = AdaptedTeacher(behind.share(), self.adapt)
        self._selected = self._others.get(split)

    @property
    def last_output(self) -> Any:
        """What the teacher gave last."""
        return self.source.last_output

    def distiller(self, student: nn.Module) -> Distiller:
        """The core for this student; one is kept for each."""
        key = id(student), id(self.source)
        if key not in self._distillers:
            self._distillers[key] = Distiller(
                student, self.source, self.criterion, self.loss_balancer
            )
        return self._distillers[key]

    def forget(self, student: nn.Module) -> None:
        """Take the hooks off a student that was used for a while."""
        for key in [key for key in self._distillers if key[0] == id(student)]:
            self._distillers.pop(key).release()

    def train_with(self, mode: bool) -> None:
        """The student went into this mode."""
        self._training = mode
        if self._source is not None:
            self._source.train_with(mode)
        for module in self._losses():
            module.train(mode)

    def _losses(self) -> list[nn.Module]:
        """The losses and the balancer, which all distillers here share and no module holds."""
        balancer = [] if self.loss_balancer is None else [self.loss_balancer]
        return [Criterion(self.criterion).losses, *balancer]

    def apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Move the teacher as the student is moved, and do to the losses what is done to it."""
        lent = self._source is not None
        self.own_source.move_like(fn)
        for module in self._losses():
            module._apply(fn)
        if not lent:
            self.release()

    @property
    def model(self) -> Any:
        """The teacher's module, or its source where it is no single module; borrows nothing."""
        if isinstance(self.given, nn.Module):
            return self.given
        source = self.given if isinstance(self.given, TeacherSource) else self.own_source
        return source if source.module is None else source.module

    def release(self) -> None:
        """Give the teacher its flags back."""
        for distiller in self._distillers.values():
            distiller.release()
        self._distillers = {}
        for source in (*self._others.values(), *filter(None, [self._source])):
            source.release()
        self._source = self._selected = None
        self._others = {}

    def __deepcopy__(self, memo: dict) -> Guest:
        return Guest(
            self.given,
            mode=self.mode,
            # A bound method: `memo` knows the copy of the KDModule that it belongs to
            adapt=copy.deepcopy(self.adapt, memo),
            criterion=copy.deepcopy(self.criterion, memo),
            loss_balancer=copy.deepcopy(self.loss_balancer, memo),
        )
