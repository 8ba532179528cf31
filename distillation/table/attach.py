"""One option in every door: `teacher_table=…` puts a table before a teacher, or leaves it online.

| value | meaning |
|---|---|
| None, False, "", "none" or "off" | the teacher runs online |
| "auto" | the table of this teacher, data, views, …, wherever it is; made when there is none |
| a folder | the table in this folder; `TeacherError` when it holds something else |
| a `TeacherTable` | itself |
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distillation.data import EpochLoader, ReplayableLoader, TensorLoader
from distillation.errors import ConfigError, TeacherError, unknown
from distillation.frozen_teacher import TeacherSource
from distillation.runs import places
from distillation.table.compute import Execution
from distillation.table.inputs import ImageInputs, Inputs
from distillation.table.manifest import MANIFEST, Manifest
from distillation.table.replayed import ReplayedInputs
from distillation.table.resident import ResidentTable, unfit
from distillation.table.teacher_table import TeacherTable
from distillation.teacher import as_teacher

AUTO = "auto"
ONLINE = (None, False, "", "none", "off")
TRAIN = "train"
OPTIONS = ("layers", "codec", "on_mismatch", "announce")
_WORDS = (AUTO, "none", "off", "on", "true", "false", "yes", "no", "online")


def is_online(teacher_table: Any) -> bool:
    """Whether the option asks for no table."""
    plain = teacher_table is None or isinstance(teacher_table, bool | str)
    return plain and teacher_table in ONLINE


def has_keys(loader: Any) -> bool:
    """Whether the batches of this loader carry the keys that a table is asked by."""
    return isinstance(loader, TensorLoader | ReplayableLoader) and loader.keys


def tables_root(root: str | os.PathLike | None = None) -> Path:
    """Where "auto" keeps tables: beside the experiments of the run store, out of their way."""
    return places.root(root) / ".tables"


def folder_of(teacher_table: str | os.PathLike) -> Path:
    """The folder that the option names; it need not exist.

    Raises `ConfigError` for one word that is all but "auto" or "off" and names no folder that is
    there: a slip must not begin an empty table.
    """
    folder = Path(teacher_table).expanduser()
    word = isinstance(teacher_table, str) and os.sep not in teacher_table
    slip = word and difflib.get_close_matches(teacher_table.lower(), _WORDS, n=1, cutoff=0.75)
    if slip and not folder.exists():
        raise ConfigError(
            f"teacher_table={teacher_table!r}: take 'auto', a folder, or 'off' for a teacher "
            f"online; a new folder of this name is asked for with './{teacher_table}'"
        )
    return folder


def table_folder(folder: Path, name: str | None, inputs: Inputs) -> Path:
    """Where in `folder` the table of `inputs` lies, or is to be made.

    A folder that is a table itself is that of the training images. Else it has a folder for each
    loader, `name` being what the caller calls this one (None: its only one, which in an empty
    folder needs no folder of its own). What one door calls "valid" is another's "test", so where
    `name` holds other images, or nothing, the one that holds these images is taken.

    Raises `DataError` for a manifest that cannot be read.
    """
    if name in (None, TRAIN) and (folder / MANIFEST).exists():
        return folder
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if name is None and not found:
        return folder
    own = folder / (name or TRAIN)
    asked = json.loads(json.dumps(inputs.identity()))
    for place in sorted(found, key=lambda path: path != own):
        manifest = Manifest.read(place)
        if manifest and all(manifest.identity.get(part) == asked[part] for part in asked):
            return place
    return own


def inputs_of(data: Any, epochs: int | None = None) -> Inputs:
    """What the keys of this loader's batches stand for.

    Raises `ConfigError` for a loader whose pictures cannot be made again from keys.
    """
    if isinstance(data, Inputs):
        return data
    if isinstance(data, ReplayableLoader):
        return ReplayedInputs(data, epochs=epochs)
    return ImageInputs.of(data)


def with_table(
    teacher: Any,
    teacher_table: str | os.PathLike | TeacherTable | bool | None,
    data: Any,
    *,
    name: str | None = None,
    epochs: int | None = None,
    root: str | os.PathLike | None = None,
    execution: Execution | None = None,
    device: torch.device | str | None = None,
    resident: bool | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> TeacherSource:
    """`teacher` as a source, answering from a table when `teacher_table` asks for one.

    teacher     whatever `as_teacher` takes; None where `teacher_table` is a `TeacherTable`
    data        the loader that the student trains on, or the `Inputs` of a table made by hand
    name        what the caller calls this loader, where it has several; see `table_folder`
    epochs      of the training; a `ReplayableLoader` without `rendering` numbers its pictures by
                them
    root        of the run store
    execution   how the teacher runs; `Execution.beside` a training is how its step runs it
    device      where the student trains; None: where the loader makes its batches
    resident    whether the entries live on `device` once they are all there (`ResidentTable`);
                None: where that is not the CPU and they fit
    say         is told how many entries are there, in one line
    options     `TeacherTable`'s `layers`, `codec`, `on_mismatch` and `announce`

    The result is the caller's to `release()`; a given table keeps its own hold.

    Raises `ConfigError` for a loader without keys or with endless views, for a table that cannot
    be `resident` though that was asked for, for unknown options, and for `options` where no table
    is opened; `TeacherError` as `TeacherTable` does, and when a given table is another teacher's.
    """
    _check_options(teacher_table, options)
    device = device or getattr(data, "device", "cpu")
    if isinstance(teacher_table, TeacherTable):
        _refuse_other(teacher, teacher_table)
        return _placed(teacher_table.share(), device, resident, say)
    if is_online(teacher_table):
        return as_teacher(teacher)
    if teacher_table is True or not isinstance(teacher_table, str | os.PathLike):
        raise ConfigError(
            f"teacher_table={teacher_table!r}: take 'auto', a folder, a TeacherTable, or None for "
            "a teacher online"
        )
    auto = teacher_table == AUTO
    folder = tables_root(root) if auto else folder_of(teacher_table)
    inputs = inputs_of(data, epochs)
    if not auto:
        folder = table_folder(folder, name, inputs)
    table = TeacherTable(teacher, folder, inputs, execution=execution, under=auto, **options)
    return _placed(table, device, resident, say)


def _check_options(teacher_table: Any, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for options that are unknown, or have no table to decide about."""
    for option in options:
        if option not in OPTIONS:
            own = inspect.signature(with_table).parameters.values()
            names = [p.name for p in own if p.kind is p.KEYWORD_ONLY]
            raise ConfigError(unknown("option of a teacher table:", option, [*names, *OPTIONS]))
    made = isinstance(teacher_table, TeacherTable)
    if options and (made or is_online(teacher_table)):
        why = "a TeacherTable has its own" if made else "there is no teacher_table"
        raise ConfigError(f"{', '.join(options)}: of no use here, {why}; leave that out")


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


def _placed(
    table: TeacherTable,
    device: torch.device | str,
    resident: bool | None,
    say: Callable[[str], None] | None,
) -> TeacherSource:
    """The table, or its entries on the device; says what is there."""
    try:
        if say is not None:
            stored, total = table.present()
            say(f"teacher table: {stored:,} of {total:,} entries present ({table.folder})")
        device = torch.device(device)
        if resident is None:
            resident = device.type != "cpu" and unfit(table, device) is None
        return ResidentTable(table, device) if resident else table
    except BaseException:
        table.release()
        raise


def with_tables(
    teacher: Any,
    teacher_table: str | os.PathLike | TeacherTable | bool | None,
    loaders: Mapping[str, Any],
    *,
    say: Callable[[str], None] | None = None,
    opened: Callable[..., TeacherSource] = with_table,
    **options: Any,
) -> dict[str, TeacherSource]:
    """`with_table` for several loaders by name: `{"train": …, "test": …}`, one source each.

    The keys of a batch count within its own data set, so training and test images need a table
    each: ask the source of the loader that a batch came from. In a folder each has a folder, see
    `table_folder`. Every source is the caller's to `release()`. `opened` is what makes each of
    them, with `with_table`'s arguments.

    Raises `ConfigError` for one table that is to answer for several loaders, and for loaders whose
    batches carry no keys.
    """
    if isinstance(teacher_table, TeacherTable) and len(loaders) > 1:
        raise ConfigError(
            f"teacher_table: one table cannot answer for {', '.join(loaders)}; give 'auto' or a "
            "folder"
        )
    for name, loader in ({} if is_online(teacher_table) else loaders).items():
        if isinstance(loader, EpochLoader) and getattr(loader, "keys", True) is False:
            raise ConfigError(
                f"teacher_table asks by the keys of each batch, and the {name} loader was made "
                "with keys=False; leave that out"
            )
    sources: dict[str, TeacherSource] = {}
    try:
        for name, loader in loaders.items():
            told = None if say is None else _naming(say, name)
            sources[name] = opened(teacher, teacher_table, loader, name=name, say=told, **options)
    except BaseException:
        for source in sources.values():
            source.release()
        raise
    return sources


def _naming(say: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: say(f"{text} for {name}")
