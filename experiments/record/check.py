"""
# Is the record what its runs say?

Recomputes every accuracy, mean, error and test from the per-run files, and compares them with what
the files and the page say.
"""

import difflib
import json
import math
from pathlib import Path
from typing import Any

from distillation.errors import DataError
from experiments.record.figures import curve
from experiments.record.page import chosen, members, page
from experiments.record.protocol import SEARCHES
from experiments.record.results import classes, read, right

Facts = dict[str, Any]


def check(folder: Path) -> list[str]:
    """
    ### What differs, a line each; an empty list is a record that holds
    """
    file = folder / "record.json"
    if not file.exists():
        raise DataError(f"{folder} is no record: it has no record.json")
    protocol, found = json.loads(file.read_text()), read(folder)
    wrong = []
    for facts in found.values():
        wrong += _check_run(folder, facts, protocol, found)
    for group, search in SEARCHES.items():
        wrong += _check_choice(members(found, group), members(found, search))
    return wrong + _check_page(folder / "README.md", page(protocol, found))


def _check_run(folder: Path, facts: Facts, protocol: Facts, found: dict[str, Facts]) -> list[str]:
    key, wrong = facts["key"], []

    def compare(what: str, says: float | None, is_: float, tolerance: float = 1e-9) -> None:
        if says is None or not math.isclose(says, is_, rel_tol=0, abs_tol=tolerance):
            wrong.append(f"{key}: {what} says {says}, and is {is_}")

    if facts["group"] in SEARCHES.values():
        last = curve(folder, key, "accuracy.valid")[1][-1]
        compare("accuracy on held out images", facts["accuracy_valid"], last, 1e-6)
        return wrong
    labels = protocol["labels"]
    if len(facts["predictions"]) != len(labels):
        return [f"{key}: {len(facts['predictions'])} predictions for {len(labels)} test images"]
    compare("accuracy", facts["accuracy"], float(right(facts, labels).mean()))
    # The mean distance of confidence and accuracy, weighted by images
    gaps = [b["count"] * abs(b["confidence"] - b["accuracy"]) for b in facts["bins"]]
    compare("calibration error", facts["ece"], math.fsum(gaps) / len(labels))
    correct = sum(b["count"] * b["accuracy"] for b in facts["bins"])
    compare("accuracy of the bins", correct / len(labels), float(right(facts, labels).mean()))
    large = found.get("large")
    if facts["agreement"] is not None and large is not None:
        same = classes(facts["predictions"]) == classes(large["predictions"])
        compare("agreement", facts["agreement"], float(same.mean()))
    # The curve was written while it was trained; ties may round the other way
    last = curve(folder, key, "accuracy.test")[1][-1]
    compare("accuracy of the curve", last, facts["accuracy"], 3.5 / len(labels))
    return wrong


def _check_choice(runs: list[Facts], trials: list[Facts]) -> list[str]:
    """Were the students trained with what their search has found?"""
    if not runs:
        return []
    if not trials:
        return [f"{runs[0]['group']}: there is no search behind these runs"]
    tried = chosen(trials)["tried"]
    return [
        f"{facts['key']}: {name}={facts['config'][name]}, and the search has chosen {value}"
        for facts in runs
        for name, value in tried.items()
        if facts["config"][name] != value
    ]


def _check_page(file: Path, computed: str) -> list[str]:
    written = file.read_text() if file.exists() else ""
    lines = difflib.unified_diff(
        written.splitlines(), computed.splitlines(), "README.md", "computed", lineterm="", n=0
    )
    return list(lines)
