"""`distill rm RUN…`: delete runs."""

from __future__ import annotations

from typing import Annotated

import typer

from distillation.commands import output
from distillation.runs.store import find_whole, remove


def rm(
    names: Annotated[list[str], typer.Argument(metavar="RUN…", help="UUIDs or beginnings.")],
    force: Annotated[
        bool, typer.Option("--force", help="Even if it is another's teacher.")
    ] = False,
    runs: output.Runs = None,
) -> None:
    """Delete runs with their checkpoints. A running one is never deleted.

    Example: distill rm 3fa9
    """
    for run in [find_whole(name, runs) for name in names]:
        remove(run, force=force)
        print(f"removed {run.uuid} ({run.experiment})")
