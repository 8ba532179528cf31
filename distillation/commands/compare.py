"""`distill compare RUN RUN…`: what differs between runs."""

from __future__ import annotations

from typing import Annotated

import typer

from distillation.commands import output
from distillation.commands.output import Json
from distillation.runs import Comparison
from distillation.runs import compare as compare_runs
from distillation.runs.metrics import is_maximised, is_quiet
from distillation.runs.store import find_whole
from distillation.runs.teachers import named


def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Two runs or more.")],
    all: Annotated[
        bool, typer.Option("--all", help="Statistics of parameters and gradients too.")
    ] = False,
    runs: output.Runs = None,
    json: Json = False,
) -> None:
    """Compare runs: configuration differences, final and best metrics, parameters, MACs.

    Example: distill compare 3fa9 b07c
    """
    comparison = compare_runs([find_whole(name, runs) for name in names])
    if json:
        output.print_json(comparison.to_dict())
        return
    short = [run.uuid[:8] for run in comparison.runs]
    output.print_table(["", *short], _heads(comparison))
    _section("config (what differs)", comparison, comparison.config, short, output.text)
    _section("facts", comparison, comparison.facts, short, output.text)
    names = [name for name in comparison.final if all or not is_quiet(name)]
    final = {name: comparison.final[name] for name in names}
    _section("final metrics", comparison, final, short, output.number)
    best = {
        f"{name} ({'highest' if is_maximised(name) else 'lowest'})": comparison.best[name]
        for name in names
        if name in comparison.best
    }
    _section("best metrics", comparison, best, short, _best)
    if len(names) < len(comparison.final):
        print(f"and {len(comparison.final) - len(names)} of parameters and gradients: --all")


def _heads(comparison: Comparison) -> list[list[object]]:
    rows = {
        "experiment": [run.experiment for run in comparison.runs],
        "name": [run.name for run in comparison.runs],
        "status": [run.status for run in comparison.runs],
        "started (UTC)": [output.moment(run.started) for run in comparison.runs],
        "seed": [None if run.seed is None else str(run.seed) for run in comparison.runs],
        "teacher": [", ".join(named(run.info, 8)) for run in comparison.runs],
    }
    return [[name, *values] for name, values in rows.items() if any(values)]


def _section(heading: str, comparison: Comparison, values: dict, short: list[str], show) -> None:
    if not values:
        return
    output.print_heading(heading)
    output.print_table(
        ["", *short],
        [
            [name, *(show(by[run.uuid]) if run.uuid in by else "" for run in comparison.runs)]
            for name, by in values.items()
        ],
    )


def _best(pair: tuple[float, int]) -> str:
    value, step = pair
    return f"{output.number(value)} at {step}"
