"""`distill rm RUN…`: delete runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from distillation.commands import output
from distillation.errors import RunError
from distillation.runs import Run
from distillation.runs.store import check_removable, find_folder, remove


def rm(
    names: Annotated[list[str], typer.Argument(metavar="RUN…", help="UUIDs or beginnings.")],
    force: Annotated[
        bool, typer.Option("--force", help="Even if it is another's teacher, or unreadable.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, which a terminal does.")] = False,
    runs: output.Runs = None,
) -> None:
    """Delete runs with their checkpoints. A running one is never deleted.

    In a terminal it asks before each. Where one cannot be deleted, none is.

    Example: distill rm 3fa9
    """
    folders = list(dict.fromkeys(find_folder(name, runs) for name in names))
    if not force:
        found = [check_removable(folder, folders) for folder in folders]
        # Students before their teachers: an earlier run cannot have learned from a later one
        folders = [run.path for run in sorted(found, key=lambda run: run.started, reverse=True)]
    for folder in folders:
        named = f"{folder.name} ({folder.parent.name})"
        if sys.stdin.isatty() and not yes and not typer.confirm(f"remove {_described(folder)}?"):
            print(f"kept {named}")
            continue
        remove(folder, force=force)
        print(f"removed {named}")


def _described(folder: Path) -> str:
    """What goes with the run: `3fa9… (digits, completed, started 2026-01-01 10:00, 1.5 MB)`"""
    try:
        run = Run.read(folder)
        known = f"{run.status}, started {output.moment(run.started)}"
    except RunError:
        known = "unreadable"
    return f"{folder.name} ({folder.parent.name}, {known}, {output.size(_bytes(folder))})"


def _bytes(folder: Path) -> int:
    """The size of all files in `folder`; one that goes meanwhile counts for nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(place, name).lstat().st_size
            except OSError:
                continue
    return total
