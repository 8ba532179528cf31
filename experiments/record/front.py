"""
# The table on the project's front page

What stands between two marks in the project's README is written by the newest record, and checked
with it.
"""

import difflib
import json
from pathlib import Path
from typing import Any

from distillation.checkpoint import atomic_write
from distillation.errors import ConfigError
from experiments.record.page import images, p_value, paired, precisions, table, targets, title
from experiments.record.plan import members
from experiments.record.protocol import TUTORIAL
from experiments.record.results import read

Facts = dict[str, Any]

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


def summary(place: str, protocol: Facts, found: dict[str, Facts]) -> str:
    """
    ### Table and figure for the project's README; `place` is the record's folder there
    """
    return "\n".join(
        [
            "## What it gives on CIFAR-10",
            "",
            "A large model, a small one alone, and the small one distilled from the large one, on "
            f"all {protocol['data']['train']:,} training images; below them the controls, which "
            "tell what comes from the teacher and what from training alone. Each crop and flip of "
            "an image is a view of it.",
            "",
            table(protocol, found),
            "",
            *_margins(protocol, found),
            f"![test accuracy after each epoch]({place}/figures/curves.png)",
            "",
            f"Last epoch, all {protocol['data']['test']:,} test images{images(protocol)}; no "
            "student is chosen on them; ± is the standard deviation over the seeds. "
            f"{precisions(protocol, found)}{TUTORIAL} "
            f"{_goals(protocol, found)}[The record]({place}/README.md) has the tests, the search, "
            "what was transferred, every run and its command; "
            f"`python -m experiments.record --check {place}` computes all of it again.",
        ]
    )


def _margins(protocol: Facts, found: dict[str, Facts]) -> list[str]:
    """What the distilled student has over the plain ones, in a sentence and an empty line"""
    said = []
    for other in ("small", "all_views"):
        result = paired(protocol, found, "distilled", other)
        # One pair of students is no evidence; the record has it
        if result is not None and result.p_seeds is not None:
            over = result.over_seeds
            p = f"p = {p_value(result.p_seeds)}".replace("= <", "< ")
            said.append(
                f"**{100 * over.mean:+.2f} ± {100 * over.error:.2f}** points over "
                f"“{title(protocol, other, members(found, other))}” ({over.n} seeds, {p})"
            )
    if not said:
        return []
    return [
        f"The distilled student has {' and '.join(said)}: mean difference ± its standard error "
        "over the seeds, paired t-test.",
        "",
    ]


def _goals(protocol: Facts, found: dict[str, Facts]) -> str:
    """What was hoped for beforehand, and whether it was reached, as a sentence"""
    said = [
        f"{what} {least}, {'reached' if met else '**missed**'}"
        for what, least, _, met in targets(protocol, found)
    ]
    return f"Hoped for beforehand, at least: {'; '.join(said)}. " if said else ""


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
