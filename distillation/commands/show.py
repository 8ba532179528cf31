"""`distill show RUN`: everything that is known of one run."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from distillation.commands import output
from distillation.commands.output import Json
from distillation.runs import Run, store
from distillation.runs.compare import flat
from distillation.runs.metrics import best_values, is_quiet, readable
from distillation.runs.places import METRICS
from distillation.runs.teachers import named, teachers

_NAMED = 5  # unreadable lines that are named


def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="UUID or a beginning of it.")],
    all: Annotated[
        bool, typer.Option("--all", help="Statistics of parameters and gradients too.")
    ] = False,
    runs: output.Runs = None,
    json: Json = False,
) -> None:
    """Show one run: facts, configuration, metrics, checkpoints, teacher and students.

    Example: distill show 3fa9
    """
    found = store.find_whole(run, runs)
    rows, damaged = readable(found.path / METRICS)
    if damaged:
        which = ", ".join(map(str, damaged[:_NAMED])) + (", …" if len(damaged) > _NAMED else "")
        lines = f"{len(damaged)} line{'s' * (len(damaged) > 1)}"
        print(f"left out {lines} of {METRICS} that cannot be read: {which}", file=sys.stderr)
    best = best_values(rows)
    if json:
        output.print_json(_record(found, best))
        return
    output.print_facts(_facts(found))
    if found.config:
        output.print_heading("config")
        output.print_facts(flat(found.config))
    names = [name for name in sorted(found.summary) if all or not is_quiet(name)]
    if names:
        output.print_heading("metrics")
        output.print_table(
            ["name", "last", "best", "at step"],
            [[name, output.number(found.summary[name]), *_best(best.get(name))] for name in names],
        )
    hidden = len(found.summary) - len(names)
    if hidden:
        print(f"and {hidden} of parameters and gradients: --all")


def _best(best: tuple[float, int] | None) -> tuple[object, object]:
    return (None, None) if best is None else (output.number(best[0]), best[1])


def _facts(run: Run) -> dict[str, object]:
    info = run.info
    versions = info.get("versions") or {}
    model = info.get("model") or {}
    facts: dict[str, object] = {
        "run": run.uuid,
        "experiment": run.experiment,
        "name": run.name,
        "comment": run.comment,
        "status": run.status,
        "error": info.get("error"),
        "started": run.started,
        "ended": run.ended,
        "resumed": _resumed(info.get("resumed") or []),
        "command": shlex.join(info.get("command") or []),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "threads": info.get("threads"),
        "git commit": info.get("git_commit"),
        "seed": None if run.seed is None else str(run.seed),
        "model": model.get("target"),
        **flat(run.facts),
        "teacher": _teacher(run),
        "students": ", ".join(f"{c.uuid} ({c.experiment})" for c in store.children(run)),
        "checkpoints": _checkpoints(run),
        "folder": str(run.path),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _resumed(again: list[dict]) -> str:
    """How often, and what was set anew: `2 times; epochs 1 → 2`"""
    if not again:
        return ""
    changed = [pair for entry in again for pair in (entry.get("changed") or {}).items()]
    said = [f"{key} {before} → {now}" for key, (before, now) in changed]
    times = "once" if len(again) == 1 else f"{len(again)} times"
    return "; ".join([times, *said])


def _teacher(run: Run) -> str:
    root, said = run.path.parent.parent, []
    for uuid, name in zip(teachers(run.info), named(run.info), strict=True):
        found = store.by_uuid(uuid, root)
        said.append(f"{name} ({found.experiment if found else store.why_absent(uuid, root)})")
    return ", ".join(said)


def _checkpoints(run: Run) -> str:
    marks = {run.best_step: " (best)"}
    return ", ".join(f"{step}{marks.get(step, '')}" for step in run.checkpoints) or "none"


def _record(run: Run, best: dict[str, tuple[float, int]]) -> dict:
    parent = run.parent
    return {
        **run.info,
        "status": run.status,
        "experiment": run.experiment,
        "path": str(run.path),
        "config": run.config,
        "checkpoints": run.checkpoints,
        "best_step": run.best_step,
        "best": {name: {"value": value, "step": step} for name, (value, step) in best.items()},
        "parent_experiment": parent.experiment if parent else None,
        "children": [child.uuid for child in store.children(run)],
    }
