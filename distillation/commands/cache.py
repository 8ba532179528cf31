"""`distill cache TEACHER_RUN`: fill the table of a teacher's outputs before students train."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from distillation.commands import output
from distillation.commands.output import Json
from distillation.errors import ConfigError, unknown
from distillation.runs import store

_LINE_SECONDS = 10.0
SPLITS = ("train", "valid", "test", "all")


def cache(
    teacher_run: Annotated[
        str, typer.Argument(metavar="TEACHER_RUN[@STEP]", help="UUID or a beginning of it.")
    ],
    views: Annotated[
        int | None,
        typer.Option(min=0, help="Views of each image; 0 is all.", show_default="the run's"),
    ] = None,
    split: Annotated[
        str, typer.Option(help="train, valid (held out images), test, or all that there are.")
    ] = "all",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="cifar10 or digits, for a run that does not say (a trainer's).",
            show_default="the run's",
        ),
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
    without_classes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Classes not to train on, or none.", show_default="the run's"
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16 or auto.", show_default="the run's")
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--contiguous",
            help="Memory format of the student's images.",
            show_default="the run's",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Images a teacher's batch.", show_default="the table's, else 64"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto is a student's own choice; cpu, cuda, cuda:1, …")
    ] = "auto",
    layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A hidden layer to keep too.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="A folder for each split in it.", show_default="that of auto"
        ),
    ] = None,
    on_mismatch: Annotated[
        str, typer.Option(help="error, or new: a table beside one of something else.")
    ] = "error",
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
    """Fill the tables of a teacher's outputs, so that no student waits for the teacher.

    Stopped at any moment, the same command goes on. It says at the end with which options a
    student finds the tables.

    Example: distill cache 3fa9 --views 16
    """
    found = store.find(teacher_run, runs)
    share = _worker(worker)
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    cuts = {
        "subset": subset,
        "holdout": holdout,
        "without_classes": _classes(without_classes),
    }

    import torch

    from distillation.evaluation import check_device
    from distillation.precision import usual_device
    from distillation.table import recorded
    from distillation.table.attach import table_folder, tables_root
    from distillation.table.compute import device_name
    from distillation.table.teacher_table import TeacherTable
    from distillation.teacher import FrozenTeacher

    usual = usual_device()
    place = check_device(usual if device == "auto" else device)
    inputs = recorded.recorded_inputs(found, dataset=dataset, data=data, views=views, **cuts)
    if split != "all":
        if split not in inputs:
            raise ConfigError(f"--split {split}: no images are held out; give --holdout N")
        inputs = {split: inputs[split]}
    execution = recorded.recorded_execution(found, precision, batch_size, place, channels_last)
    step = found.resolve_step()
    model = found.load_model(step, trust=tuple(trust or ()), device=str(place))
    if execution.channels_last:
        model = model.to(memory_format=torch.channels_last)
    say = (lambda text: print(text, file=sys.stderr)) if json else print
    options = {
        "execution": execution,
        "layers": layer or (),
        "under": folder is None,
        "announce": say,
        "on_mismatch": on_mismatch,
    }
    with ExitStack() as stack:
        teacher = FrozenTeacher(model, run_uuid=found.uuid, run_step=step)
        stack.callback(teacher.release)
        # All are opened before one is filled: what is refused is refused now
        tables = {}
        for name, part in inputs.items():
            where = table_folder(folder, name, part) if folder else tables_root(runs)
            tables[name] = stack.enter_context(TeacherTable(teacher, where, part, **options))
        damaged = sum(table.repair() for table in tables.values()) if repair else 0
        made: dict[str, int] = {}
        try:
            for name, table in tables.items():
                left = None if limit is None else limit - sum(made.values())
                if left == 0:
                    made[name] = 0
                    continue
                with _progress(name) as progress:
                    made[name] = table.fill(progress=progress, limit=left, worker=share)
        except KeyboardInterrupt:
            total = sum(table.count() for table in tables.values())
            say(f"stopped at {total:,} entries; the same command goes on")
            raise SystemExit(130) from None
        filled = {name: _described(table, made[name]) for name, table in tables.items()}
    seen = {
        "precision": execution.precision,
        "channels_last": execution.channels_last,
        "views_per_image": recorded.recorded_views(found, views),
        **recorded.recorded_cuts(found, **cuts),
    }
    if device_name(place) != device_name(check_device(usual)):
        seen["device"] = place.type
        say(
            f"these entries are of the device {device_name(place)}; a student here runs on "
            f"{usual} unless it is given device={place.type}"
        )
    if layer:
        say(
            "tables with layers are others than those without: teacher_table=auto finds them where "
            "the losses look at these very layers, in a trainer, in convert or in Python "
            "(layers=[…]), but in no experiment"
        )
    facts = {
        "teacher": found.uuid,
        "step": step,
        "entries": sum(table["entries"] for table in filled.values()),
        "computed": sum(made.values()),
        "damaged": damaged,
        "bytes": sum(table["bytes"] for table in filled.values()),
        "tables": filled,
        "student": None if layer else _student(found, folder, runs, seen),
    }
    if json:
        output.print_json(facts)
    else:
        del facts["tables"]
        for name, table in filled.items():
            facts[name] = "{entries:,} of {of:,} entries in {table}".format(**table)
        output.print_facts(facts)


def _described(table: Any, made: int) -> dict[str, Any]:
    stored, total = table.present()
    files = table.folder.iterdir() if table.folder.exists() else ()
    return {
        "table": str(table.folder),
        "entries": stored,
        "of": total,
        "computed": made,
        "bytes": sum(file.stat().st_blocks * 512 for file in files),
    }


def _student(found: Any, folder: Path | None, root: str | None, seen: dict[str, Any]) -> str:
    """The options with which a student of an experiment finds the tables.

    Those that are a student's defaults are left out, but for the precision.
    """
    named = found.uuid if found.step is None else f"{found.uuid}@{found.step}"
    options = ["--teacher", named, "--set", f"teacher_table={folder or 'auto'}"]
    options += ["--precision", seen.pop("precision")]
    if seen.pop("channels_last") is False:
        options += ["--set", "channels_last=false"]
    for name, value in seen.items():
        if value:
            shown = "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else value
            options += ["--set", f"{name}={shown}"]
    if root is not None:
        options += ["--runs", str(root)]
    return shlex.join(options)


def _classes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    names = [] if text == "none" else text.split(",")
    if not all(name.strip().isdigit() for name in names):
        raise ConfigError(f"--without-classes {text}: give numbers, such as 3 or 3,5, or none")
    return [int(name) for name in names]


def _worker(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not slash or not i.isdigit() or not n.isdigit() or not int(i) < int(n):
        raise ConfigError(f"--worker {text}: give I/N with 0 ≤ I < N, such as 0/2 and 1/2")
    return int(i), int(n)


@contextmanager
def _progress(name: str):
    """A bar in a terminal; in a pipe a line every ten seconds, on stderr either way."""
    if not sys.stderr.isatty():
        yield _lines(time.monotonic, name)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("entries")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(clock: Callable[[], float], name: str) -> Callable[[int, int], None]:
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
        line = f"{name}: {done:,} of {total:,} entries"
        seconds, made = now - start[0], done - start[1]
        if made and seconds > 0:
            rate = made / seconds
            line += f", {rate:,.0f} a second, {(total - done) / rate / 60:.1f} min left"
        print(line, file=sys.stderr, flush=True)

    return report
