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
from distillation.data import ReplayableLoader
from distillation.errors import ConfigError, TeacherError
from distillation.frozen_teacher import TeacherSource
from distillation.table.attach import AUTO, ONLINE, TRAIN, folder_of, table_folder, with_table
from distillation.table.compute import Execution
from distillation.table.inputs import ImageInputs, Inputs
from distillation.table.replayed import ReplayedInputs
from distillation.table.teacher_table import TeacherTable
from distillation.teacher import as_teacher


def is_online(teacher_table: Any) -> bool:
    """Whether the option asks for no table."""
    plain = teacher_table is None or isinstance(teacher_table, bool | str)
    return plain and teacher_table in ONLINE


def table_source(
    teacher: Any,
    teacher_table: str | os.PathLike | TeacherTable | bool | None,
    data: Any,
    *,
    precision: str = "fp32",
    channels_last: bool | None = None,
    epochs: int | None = None,
    layers: Iterable[str] = (),
    root: str | os.PathLike | None = None,
    name: str | None = None,
    **options: Any,
) -> TeacherSource:
    """`teacher` as a source, behind the table that `teacher_table` asks for.

    Args:
        teacher: whatever `as_teacher` takes; None where `teacher_table` is a `TeacherTable`.
        data: the loader that the student trains on, or `Inputs`.
        precision, channels_last: of the door's forward passes; None: the loader's memory format.
        epochs: of the training; a `ReplayableLoader` numbers its pictures by them.
        layers: the teacher's layers to store beside its output.
        root: of the run store, beside which "auto" keeps tables.
        name: what the door calls this loader, where it has several; see `table_folder`.
        options: further ones of `TeacherTable`.

    The result is the caller's to `release()`. Raises `ConfigError` and `TeacherError` as
    `with_table` does, and `TeacherError` when a given table is another teacher's.
    """
    if isinstance(teacher_table, TeacherTable):
        _refuse_other(teacher, teacher_table)
        placing = {k: options[k] for k in ("device", "resident", "say") if k in options}
        return with_table(None, teacher_table, None, **placing)
    if is_online(teacher_table):
        return as_teacher(teacher)
    inputs = inputs_of(data, epochs)
    if isinstance(teacher_table, str | os.PathLike) and teacher_table != AUTO:
        teacher_table = table_folder(folder_of(teacher_table), name, inputs)
    if channels_last is None:
        # As the batches come to the student
        rendering = getattr(data, "rendering", None)
        channels_last = bool(getattr(rendering, "channels_last", False))
    return with_table(
        teacher,
        teacher_table,
        inputs,
        root=root,
        execution=Execution.beside(precision, channels_last=channels_last),
        **({"layers": tuple(layers)} if layers else {}),
        **options,
    )


def table_sources(
    teacher: Any,
    teacher_table: str | os.PathLike | TeacherTable | bool | None,
    loaders: Mapping[str, Any],
    **options: Any,
) -> dict[str, TeacherSource]:
    """`table_source` for each loader by name, where there is a table: `{"train": …, "valid": …}`.

    A `TeacherTable` answers for "train" alone; in a folder each has a table, see `table_folder`.
    Raises `ConfigError` for loaders whose batches carry no keys.
    """
    if is_online(teacher_table):
        return {}
    for name, loader in loaders.items():
        if getattr(loader, "keys", True) is False:
            raise ConfigError(
                f"teacher_table asks by the keys of each batch, and the {name} loader was made "
                "with keys=False; leave that out"
            )
    if isinstance(teacher_table, TeacherTable):
        loaders = {name: loader for name, loader in loaders.items() if name == TRAIN}
    found: dict[str, TeacherSource] = {}
    try:
        for name, loader in loaders.items():
            found[name] = table_source(teacher, teacher_table, loader, name=name, **options)
    except BaseException:
        for source in found.values():
            source.release()
        raise
    return found


def inputs_of(data: Any, epochs: int | None = None) -> Inputs:
    """What the keys of this loader's batches stand for.

    Raises `ConfigError` for a loader whose pictures cannot be made again from keys.
    """
    if isinstance(data, Inputs):
        return data
    if isinstance(data, ReplayableLoader):
        return ReplayedInputs(data, epochs=epochs)
    return ImageInputs.of(data)


def teacher_layers(criteria: Iterable[Any]) -> tuple[str, ...]:
    """The teacher's hidden layers that these criteria name, each once."""
    keys = [key for criterion in criteria for key in Criterion(criterion).keys]
    return tuple(dict.fromkeys(layer for _, layer in keys if layer))


def _refuse_other(teacher: Any, table: TeacherTable) -> None:
    """Raise `TeacherError` when `teacher` is given beside a table of another one."""
    if teacher is None:
        return
    source = as_teacher(teacher)
    try:
        found = source.fingerprint
    finally:
        source.release()
    if found != table.fingerprint:
        raise TeacherError(
            f"the table in {table.folder} is of a teacher with the fingerprint "
            f"{table.fingerprint[:12]}, the teacher given beside it has {found[:12]}"
        )
