"""What the commands print: aligned plain text into pipes, a coloured table in a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from distillation.files import jsonable

Runs = Annotated[
    str | None,
    typer.Option("--runs", metavar="ROOT", help="Root of the run store.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_COLOURS = {"completed": "green", "running": "cyan", "interrupted": "yellow", "crashed": "red"}


def print_json(value: object) -> None:
    """Print strict JSON, NaN as null."""
    print(json.dumps(jsonable(value), indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headings. Nothing is cut off in a pipe."""
    cells = [[text(cell) for cell in row] for row in rows]
    if _coloured():
        _print_rich(columns, cells)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, aligned."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {text(value)}".rstrip())


def print_heading(heading: str) -> None:
    """Print a heading, an empty line before it."""
    print(f"\n{heading}")


def text(value: object) -> str:
    """A value as the tables show it, floats in full; an empty one as -."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return " ".join(value.split())
    return json.dumps(jsonable(value))


def number(value: float | None) -> str:
    """A metric: four digits after the point, or four significant ones for the very small."""
    if value is None:
        return "nan"
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"


def metric_text(values: Mapping[str, float | None]) -> str:
    """`accuracy.test 0.9512, loss.test 0.1877`"""
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())


def moment(iso: str | None) -> str:
    """A UTC time stamp without seconds."""
    return iso[:16].replace("T", " ") if iso else "-"


def size(count: int) -> str:
    """Bytes: `512 bytes`, `60.7 kB`, `1.25 MB`, `3.10 GB`"""
    for factor, unit, digits in ((1e9, "GB", 2), (1e6, "MB", 2), (1e3, "kB", 1)):
        if count >= factor:
            return f"{count / factor:.{digits}f} {unit}"
    return f"{count} bytes"


def _coloured() -> bool:
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def _print_rich(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console().print(table)
