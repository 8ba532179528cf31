"""`distill runs`: the recorded runs, newest first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from distillation.commands import output
from distillation.commands.output import Json
from distillation.errors import ConfigError, unknown
from distillation.runs import Run, store
from distillation.runs.metrics import is_maximised, main_values
from distillation.runs.places import root

_FIELDS: dict[str, Callable[[Run], str]] = {
    "started": lambda run: run.started,
    "ended": lambda run: run.ended or "",
    "experiment": lambda run: run.experiment,
    "name": lambda run: run.name or "",
    "status": lambda run: run.status,
}
_NEWEST_FIRST = ("started", "ended")


def runs(
    experiment: Annotated[str | None, typer.Option(help="Only runs of this experiment.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only running, completed, interrupted or crashed ones.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    sort: Annotated[
        str,
        typer.Option(help="started, ended, experiment, name, status, or a metric (best first)."),
    ] = "started",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    runs: output.Runs = None,
    json: Json = False,
) -> None:
    """List the recorded runs, newest first.

    Example: distill runs --experiment digits --sort accuracy.test --limit 5
    """
    place = root(runs)
    found, skipped = store.scan(place, experiment, status)
    if experiment is not None and not found:
        known = store.experiments(place)
        if known and experiment not in known:
            raise ConfigError(unknown("experiment", experiment, known, "`distill runs`"))
    ordered = _sorted(found, sort, reverse)
    shown = ordered[:limit]
    if not place.exists():
        print(f"there is no folder {place}", file=sys.stderr)
    if json:
        output.print_json([_facts(run) for run in shown])
    elif not found:
        print(f"no runs in {place}" if experiment is None and status is None else "no such runs")
    else:
        output.print_table(
            ["run", "experiment", "name", "status", "started (UTC)", "metrics", "parent"],
            [_row(run) for run in shown],
        )
    if skipped:
        print(f"left out {len(skipped)} unreadable: {skipped[0]}", file=sys.stderr)


def _row(run: Run) -> list[object]:
    return [
        run.uuid[:8],
        run.experiment,
        run.name,
        run.status,
        output.moment(run.started),
        output.metric_text(main_values(run.summary)),
        (run.parent_uuid or "")[:8],
    ]


def _facts(run: Run) -> dict:
    return {
        "uuid": run.uuid,
        "experiment": run.experiment,
        "name": run.name,
        "status": run.status,
        "started": run.started,
        "ended": run.ended,
        "parent": run.parent_uuid,
        "summary": run.summary,
    }


def _sorted(found: list[Run], by: str, reverse: bool) -> list[Run]:
    """Runs without such a metric come last, in either direction."""
    if by in _FIELDS:
        return sorted(found, key=_FIELDS[by], reverse=(by in _NEWEST_FIRST) != reverse)
    metrics = {name for run in found for name in run.summary}
    if found and by not in metrics:
        raise ConfigError(unknown("sort key", by, [*_FIELDS, *metrics], "`distill show RUN`"))
    sign = -1 if is_maximised(by) else 1
    known = [run for run in found if run.summary.get(by) is not None]
    without = [run for run in found if run.summary.get(by) is None]
    return sorted(known, key=lambda run: sign * run.summary[by], reverse=reverse) + without
