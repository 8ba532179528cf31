"""
# The table on the project's front page

What stands between two marks in the project's README is written by the newest record, and checked
with it.
"""

import difflib
import json
from pathlib import Path

from distillation.checkpoint import atomic_write
from distillation.errors import ConfigError
from experiments.record.page import summary
from experiments.record.results import read

_BEGIN, _END = "<!-- record: begin -->\n", "<!-- record: end -->"


def publish(folder: Path, readme: Path) -> None:
    """
    ### Write the record's table and figure into `readme`, which lies beside `records/`
    """
    head, _, tail = _parts(readme)
    atomic_write(readme, head + _BEGIN + _shown(folder) + _END + tail)


def differences(folder: Path, readme: Path) -> list[str]:
    """
    ### How `readme` differs from what the record would write there, a line each
    """
    _, written, _ = _parts(readme)
    lines = difflib.unified_diff(
        written.splitlines(), _shown(folder).splitlines(), readme.name, "record", lineterm="", n=0
    )
    return list(lines)


def _shown(folder: Path) -> str:
    protocol = json.loads((folder / "record.json").read_text())
    return summary(f"{folder.parent.name}/{folder.name}", protocol, read(folder)) + "\n"


def _parts(readme: Path) -> tuple[str, str, str]:
    """What comes before the marks, what is between them, and what comes after"""
    head, begin, rest = readme.read_text().partition(_BEGIN)
    shown, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ConfigError(
            f"{readme.name} has no place for the record's table; put the lines "
            f"{_BEGIN.strip()} and {_END} where it shall stand"
        )
    return head, shown, tail
