"""The option `teacher_table=…`, as every door reads it.

What it may be stands in `distillation.table.attach`. What a door knows beside its teacher decides
which table "auto" means: the loader of the transfer set, the precision and memory format of its
forward passes, and the teacher's layers that its losses look at. So a table that was filled by
`distill cache`, by an experiment or through another door is found again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from distillation.criterion import Criterion
from distillation.frozen_teacher import TeacherSource
from distillation.table.attach import TRAIN, has_keys, is_online, with_table, with_tables
from distillation.table.compute import Execution
from distillation.table.teacher_table import TeacherTable

__all__ = ["TRAIN", "has_keys", "is_online", "table_source", "table_sources", "teacher_layers"]


def table_source(
    teacher: Any,
    teacher_table: str | os.PathLike | TeacherTable | bool | None,
    data: Any,
    *,
    precision: str = "fp32",
    channels_last: bool | None = None,
    layers: Iterable[str] = (),
    **options: Any,
) -> TeacherSource:
    """`with_table`, told what a door knows.

    Args:
        teacher, teacher_table, data: as `with_table` has them.
        precision, channels_last: of the door's forward passes; None: the loader's memory format.
        layers: the teacher's layers to store beside its output; a given table has its own.
        options: further ones of `with_table`.

    The result is the caller's to `release()`. Raises as `with_table` does.
    """
    if not (is_online(teacher_table) or isinstance(teacher_table, TeacherTable)):
        if channels_last is None:
            # As the batches come to the student
            rendering = getattr(data, "rendering", None)
            channels_last = bool(getattr(rendering, "channels_last", False))
        options["execution"] = Execution.beside(precision, channels_last=channels_last)
        options |= {"layers": tuple(layers)} if layers else {}
    return with_table(teacher, teacher_table, data, **options)


def table_sources(
    teacher: Any,
    teacher_table: str | os.PathLike | TeacherTable | bool | None,
    loaders: Mapping[str, Any],
    **options: Any,
) -> dict[str, TeacherSource]:
    """`table_source` for each loader by name, where there is a table: `{"train": …, "valid": …}`.

    As `with_tables`, but that a `TeacherTable` answers for "train" alone.
    """
    if is_online(teacher_table):
        return {}
    if isinstance(teacher_table, TeacherTable):
        loaders = {name: loader for name, loader in loaders.items() if name == TRAIN}
    return with_tables(teacher, teacher_table, loaders, opened=table_source, **options)


def teacher_layers(criteria: Iterable[Any]) -> tuple[str, ...]:
    """The teacher's hidden layers that these criteria name, each once."""
    keys = [key for criterion in criteria for key in Criterion(criterion).keys]
    return tuple(dict.fromkeys(layer for _, layer in keys if layer))
