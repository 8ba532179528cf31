"""`distill cache TEACHER_RUN`: fill the table of a teacher's outputs before students train."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from distillation.commands import output
from distillation.commands.output import Json
from distillation.errors import ConfigError
from distillation.runs import store

_LINE_SECONDS = 10.0


def cache(
    teacher_run: Annotated[
        str, typer.Argument(metavar="TEACHER_RUN[@STEP]", help="UUID or a beginning of it.")
    ],
    views: Annotated[
        int | None,
        typer.Option(min=0, help="Views of each image; 0 is all.", show_default="the run's"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where CIFAR-10 lies.", show_default=False)
    ] = None,
    subset: Annotated[
        int | None, typer.Option(min=0, help="Only so many images.", show_default="the run's")
    ] = None,
    holdout: Annotated[
        int | None, typer.Option(min=0, help="Images held back.", show_default="the run's")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16.", show_default="the run's")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a teacher's batch.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A hidden layer to keep too.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The table's folder.", show_default="that of auto"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many entries.", show_default=False)
    ] = None,
    worker: Annotated[
        str, typer.Option(metavar="I/N", help="One of N processes that fill together, from 0.")
    ] = "0/1",
    repair: Annotated[
        bool, typer.Option("--repair", help="Look at all entries, fill damaged ones again.")
    ] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Code that may build the model.", show_default=False),
    ] = None,
    runs: output.Runs = None,
    json: Json = False,
) -> None:
    """Fill the table of a teacher's outputs, so that no student waits for the teacher.

    Stopped at any moment, the same command goes on. Students find the table with
    --set teacher_table=auto when data, precision and memory format are the same.

    Example: distill cache 3fa9 --views 16
    """
    found = store.find(teacher_run, runs)
    share = _worker(worker)

    import torch

    from distillation.evaluation import check_device
    from distillation.table import recorded
    from distillation.table.attach import tables_root
    from distillation.table.teacher_table import TeacherTable
    from distillation.teacher import FrozenTeacher

    inputs = recorded.recorded_inputs(found, data=data, views=views, subset=subset, holdout=holdout)
    execution = recorded.recorded_execution(found, precision, batch_size)
    step = found.resolve_step()
    model = found.load_model(step, trust=tuple(trust or ()), device=str(check_device(device)))
    if execution.channels_last:
        model = model.to(memory_format=torch.channels_last)
    teacher = FrozenTeacher(model, run_uuid=found.uuid, run_step=step)
    say = (lambda text: print(text, file=sys.stderr)) if json else print
    with TeacherTable(
        teacher,
        folder or tables_root(runs),
        inputs,
        execution=execution,
        layers=layer or (),
        under=folder is None,
        announce=say,
    ) as table:
        damaged = table.repair() if repair else 0
        try:
            with _progress() as progress:
                made = table.fill(progress=progress, limit=limit, worker=share)
        except KeyboardInterrupt:
            say(f"stopped at {table.count():,} entries; the same command goes on")
            raise SystemExit(130) from None
        facts = {
            "table": str(table.folder),
            "teacher": found.uuid,
            "step": step,
            "entries": table.count(),
            "computed": made,
            "damaged": damaged,
            "bytes": sum(f.stat().st_blocks * 512 for f in table.folder.iterdir()),
        }
    if json:
        output.print_json(facts)
    else:
        output.print_facts(facts)


def _worker(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not slash or not i.isdigit() or not n.isdigit() or not int(i) < int(n):
        raise ConfigError(f"--worker {text}: give I/N with 0 ≤ I < N, such as 0/2 and 1/2")
    return int(i), int(n)


@contextmanager
def _progress():
    """A bar in a terminal; in a pipe a line every ten seconds, on stderr either way."""
    if not sys.stderr.isatty():
        yield _lines(time.monotonic)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("entries"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("entries")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(clock: Callable[[], float]) -> Callable[[int, int], None]:
    """Report the first call, the last, and one every ten seconds in between."""
    start: tuple[float, int] | None = None
    told = 0.0

    def report(done: int, total: int) -> None:
        nonlocal start, told
        now = clock()
        if start is None:
            start = now, done
        elif done < total and now - told < _LINE_SECONDS:
            return
        told = now
        line = f"{done:,} of {total:,} entries"
        seconds, made = now - start[0], done - start[1]
        if made and seconds > 0:
            rate = made / seconds
            line += f", {rate:,.0f} a second, {(total - done) / rate / 60:.1f} min left"
        print(line, file=sys.stderr, flush=True)

    return report
