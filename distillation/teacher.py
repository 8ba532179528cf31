"""Teachers, whatever they are given as: `as_teacher` is the one door to a `TeacherSource`.

as_teacher(resnet50())                                 a model
as_teacher((resnet50, (), {"num_classes": 10}))        how a model is made
as_teacher("3fa9c0d2"), as_teacher("3fa9c0d2@best")    a run of the store, a checkpoint of it
as_teacher([first, second])                            an ensemble
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn

from distillation import references
from distillation.ensemble import EnsembleTeacher
from distillation.errors import ConfigError, DistillationError, TeacherError, unknown
from distillation.frozen_teacher import FrozenTeacher, TeacherSource, refuse_shared
from distillation.loans import MODES
from distillation.references import Reference

if TYPE_CHECKING:
    from distillation.runs import Run

__all__ = [
    "MODES",
    "EnsembleTeacher",
    "FrozenTeacher",
    "TeacherSource",
    "as_teacher",
    "in_store",
    "rebuild",
    "refuse_shared",
]

KINDS = ("run", "reference", "ensemble")


def as_teacher(
    teacher: Any,
    *,
    mode: str = "eval",
    trust: Iterable[str | Callable] = (),
    home_module: str | ModuleType | None = None,
) -> TeacherSource:
    """A source for `teacher`, with a hold of its own on the model behind it.

    `teacher` is a source (shared, not copied), an `nn.Module`, a class or function that makes
    one, `(callable,)`, `(callable, args)` or `(callable, args, kwargs)`, a `Reference`, a `Run`, a
    run UUID (or prefix, or `RUN@step`), or a list of these, which is the equally weighted
    ensemble of them. `mode` is as in `FrozenTeacher`; a source has its own already. `trust` and
    `home_module` say what references and runs may call, as in `references.resolve`.

    Raises `ConfigError` for anything else, and for a source when `mode` is neither "eval" nor its
    own; `TeacherError` when a callable makes no `nn.Module`, `RunError` for unknown runs,
    `TrustError` for what must not be called.
    """
    if mode not in MODES:
        raise ConfigError(unknown("teacher mode", mode, MODES))
    again = {"mode": mode, "trust": trust, "home_module": home_module}
    if isinstance(teacher, TeacherSource):
        return _checked(teacher, mode).share()
    if isinstance(teacher, nn.Module):
        return FrozenTeacher(teacher, mode=mode)
    if isinstance(teacher, Reference):
        made = references.build(teacher, trust=trust, home_module=home_module)
        return FrozenTeacher(made, mode=mode, reference=teacher)
    if isinstance(teacher, str):
        return _of_run(teacher, mode, trust)
    if isinstance(teacher, list):
        return _ensemble([_Given(member, again) for member in teacher])
    if isinstance(teacher, tuple):
        return _of_call(*_call(teacher), mode)
    if callable(teacher):
        return _of_call(teacher, (), {}, mode)
    from distillation.runs import Run

    if isinstance(teacher, Run):
        return _of_run(teacher, mode, trust)
    raise ConfigError(
        f"a teacher is a model, a source, a class or function, (callable, args, kwargs), a run "
        f"UUID, a Run, or a list of these; got {type(teacher).__name__}: {teacher!r}"
    )


def in_store(teacher: Any, root: str | os.PathLike | None) -> Any:
    """`teacher` with the runs of the store `root` for their names, also those in a list.

    For doors that have a root of their own. Raises `RunError` for a run that is not there.
    """
    from distillation.runs import find

    if isinstance(teacher, str):
        return find(teacher, root)
    return [in_store(member, root) for member in teacher] if isinstance(teacher, list) else teacher


def rebuild(
    description: Mapping[str, Any],
    *,
    mode: str = "eval",
    trust: Iterable[str | Callable] = (),
    home_module: str | ModuleType | None = None,
) -> TeacherSource:
    """The source that `source.describe()` described.

    Nothing says yet that it is the same teacher: compare the fingerprints. Raises `TeacherError`
    for a description that is not one, otherwise as `as_teacher`.
    """
    if not isinstance(description, Mapping) or description.get("kind") not in KINDS:
        raise TeacherError(f"{description!r} does not describe a teacher (kinds: {KINDS})")
    again = {"mode": mode, "trust": trust, "home_module": home_module}
    facts = {name: value for name, value in description.items() if name != "kind"}
    try:
        if description["kind"] == "reference":
            return as_teacher(Reference.from_json(facts), **again)
        if description["kind"] == "run":
            return _of_run(facts["uuid"], mode, trust, facts["step"])
        select = facts.pop("select")
        facts["select"] = tuple(select) if isinstance(select, list) else select
        members = [_Described(member, again) for member in facts.pop("members")]
        return _ensemble(members, **facts)
    except DistillationError:  # says itself what is wrong
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TeacherError(f"{description!r} does not describe a teacher: {error}") from error


class _Given:
    """A member of a list, made when its turn comes, so that a failure releases the others."""

    def __init__(self, teacher: Any, arguments: dict[str, Any]):
        self.teacher, self.arguments = teacher, arguments

    def source(self) -> TeacherSource:
        return as_teacher(self.teacher, **self.arguments)


class _Described(_Given):
    def source(self) -> TeacherSource:
        return rebuild(self.teacher, **self.arguments)


def _ensemble(members: list[_Given], **options: Any) -> EnsembleTeacher:
    sources: list[TeacherSource] = []
    try:
        sources.extend(member.source() for member in members)
        return EnsembleTeacher(sources, **options)
    finally:
        for source in sources:  # the ensemble shares them: it has holds of its own
            source.release()


def _of_call(function: Callable, args: tuple, kwargs: dict[str, Any], mode: str) -> TeacherSource:
    made = function(*args, **kwargs)
    if isinstance(made, TeacherSource):
        return _checked(made, mode)
    if not isinstance(made, nn.Module):
        name = getattr(function, "__qualname__", repr(function))
        raise TeacherError(f"{name} made a {type(made).__name__}, where a teacher is an nn.Module")
    reference = Reference.of(function, *args, **kwargs) or references.noted_as_made(made)
    return FrozenTeacher(made, mode=mode, reference=reference)


def _checked(source: TeacherSource, mode: str) -> TeacherSource:
    """A source that was made by others, unless another mode than its own is asked of it."""
    if mode not in ("eval", source.mode):
        raise ConfigError(
            f"teacher mode {mode!r} (teacher_mode=, or run_teacher_on_eval=False) comes too late "
            f"for {type(source).__name__}, a source that has mode {source.mode!r} already; make it "
            f"so, as with FrozenTeacher(model, mode={mode!r})"
        )
    return source


def _call(spec: tuple) -> tuple[Callable, tuple, dict[str, Any]]:
    function, args, kwargs = (*spec, *((), {})[len(spec) - 1 :]) if 0 < len(spec) < 4 else (0, 0, 0)
    if (
        isinstance(function, nn.Module)
        or not callable(function)
        or not isinstance(args, tuple | list)
        or not isinstance(kwargs, Mapping)
    ):
        raise ConfigError(
            "a teacher given as a tuple is (callable,), (callable, args) or (callable, args, "
            "kwargs) with a tuple of args and a dict of kwargs; got a tuple of "
            f"({', '.join(type(part).__name__ for part in spec)}). An ensemble is given as a list."
        )
    return function, tuple(args), dict(kwargs)


def _of_run(
    run: Run | str, mode: str, trust: Iterable[str | Callable], step: int | str | None = None
) -> FrozenTeacher:
    from distillation import runs

    if isinstance(run, str):
        name, named_step = runs.parse(run)
        run, step = runs.find(name), named_step if step is None else step
    step = run.resolve_step(step)
    model = run.load_model(step, trust=trust)
    return FrozenTeacher(model, mode=mode, run_uuid=run.uuid, run_step=step)
