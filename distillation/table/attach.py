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
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distillation.errors import ConfigError
from distillation.frozen_teacher import TeacherSource
from distillation.runs import places
from distillation.table.compute import Execution
from distillation.table.inputs import ImageInputs, Inputs
from distillation.table.manifest import MANIFEST, Manifest
from distillation.table.resident import ResidentTable, unfit
from distillation.table.teacher_table import TeacherTable
from distillation.teacher import as_teacher

AUTO = "auto"
ONLINE = (None, False, "", "none", "off")
TRAIN = "train"
_WORDS = (AUTO, "none", "off", "on", "true", "false", "yes", "no", "online")


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


def with_table(
    teacher: Any,
    teacher_table: str | os.PathLike | TeacherTable | bool | None,
    data: Any,
    *,
    root: str | os.PathLike | None = None,
    execution: Execution | None = None,
    device: torch.device | str | None = None,
    resident: bool | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> TeacherSource:
    """`teacher` as a source, answering from a table when `teacher_table` asks for one.

    data        the `TensorLoader` that the student trains on, or the `Inputs` of a table made by
                hand
    root        of the run store
    execution   how the teacher runs; `Execution.beside` a training is how its step runs it
    device      where the student trains; None: where the loader makes its batches
    resident    whether the entries live on `device` once they are all there (`ResidentTable`);
                None: where that is not the CPU and they fit
    say         is told how many entries are there, in one line
    options     `TeacherTable`'s

    The result is the caller's to `release()`; a given table keeps its own hold.

    Raises `ConfigError` for a loader without keys or with endless views, and for a table that
    cannot be `resident` though that was asked for; `TeacherError` as `TeacherTable` does.
    """
    device = device or getattr(data, "device", "cpu")
    if isinstance(teacher_table, TeacherTable):
        return _placed(teacher_table.share(), device, resident, say)
    if teacher_table in ONLINE:
        return as_teacher(teacher)
    if teacher_table is True or not isinstance(teacher_table, str | os.PathLike):
        raise ConfigError(
            f"teacher_table={teacher_table!r}: take 'auto', a folder, a TeacherTable, or None for "
            "a teacher online"
        )
    inputs = data if isinstance(data, Inputs) else ImageInputs.of(data)
    if teacher_table == AUTO:
        folder, options = tables_root(root), {"under": True, **options}
    else:
        folder = folder_of(teacher_table)
    table = TeacherTable(teacher, folder, inputs, execution=execution, **options)
    return _placed(table, device, resident, say)


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
    teacher_table: str | os.PathLike | bool | None,
    loaders: Mapping[str, Any],
    *,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, TeacherSource]:
    """`with_table` for several loaders by name: `{"train": …, "test": …}`, one source each.

    The keys of a batch count within its own data set, so training and test images need a table
    each: ask the source of the loader that a batch came from. In a folder each has a folder, see
    `table_folder`. Every source is the caller's to `release()`.
    """
    if isinstance(teacher_table, TeacherTable):
        raise ConfigError(
            f"teacher_table: one table cannot answer for {', '.join(loaders)}; give 'auto' or a "
            "folder"
        )
    sources: dict[str, TeacherSource] = {}
    try:
        for name, loader in loaders.items():
            place = teacher_table
            if place not in ONLINE and place is not True and place != AUTO:
                place = table_folder(folder_of(place), name, ImageInputs.of(loader))
            told = None if say is None else _naming(say, name)
            sources[name] = with_table(teacher, place, loader, say=told, **options)
    except BaseException:
        for source in sources.values():
            source.release()
        raise
    return sources


def _naming(say: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: say(f"{text} for {name}")
