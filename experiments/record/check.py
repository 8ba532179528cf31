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
from experiments.record.page import page
from experiments.record.plan import plan, tried
from experiments.record.protocol import SEARCHES, Part, Scale
from experiments.record.results import classes, read, right, tolerance
from experiments.record.training import differences

Facts = dict[str, Any]


def check(folder: Path) -> list[str]:
    """
    ## What differs, a line each; an empty list is a record that holds
    """
    file = folder / "record.json"
    if not file.exists():
        raise DataError(f"{folder} is no record: it has no record.json")
    protocol, found = json.loads(file.read_text()), read(folder)
    wrong = []
    parts = {part.key: part for part in plan(Scale(**protocol["scale"]), found)}
    for key, facts in found.items():
        wrong += _check_values(facts, parts.get(key), found)
        wrong += _check_run(folder, facts, protocol, found)
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
    # The curve was written while it was trained; near ties may round the other way
    near = tolerance(len(labels))
    tolerated = {"accuracy": near, "ece": 3 * near}
    if facts["learns_from"] == "large":
        # Another one's curve is compared with its own teacher
        tolerated["kl"] = 0.02
    for measured, by in tolerated.items():
        values = curve(folder, key, f"{measured}.test")[1]
        # A student may be recorded before its teacher is, and be compared with it later
        if values and facts[measured] is not None:
            compare(f"{measured} of the curve", values[-1], facts[measured], by)
    return wrong


def _check_values(facts: Facts, part: Part | None, found: dict[str, Facts]) -> list[str]:
    """Was it trained as the protocol says, by its own teacher, with what the searches chose?"""
    key = facts["key"]
    if part is None:
        return [f"{key}: the protocol has no such part, or its search has not ended"]
    wrong = [f"{key}: {line}" for line in differences(part, facts["config"])]
    if part.group in SEARCHES.values() and facts["tried"] != tried(part):
        wrong.append(f"{key}: tried {facts['tried']}, and the protocol says {tried(part)}")
    teacher = found[part.learns_from]["run"] if part.learns_from in found else facts["teacher"]
    if facts["teacher"] != teacher:
        wrong.append(f"{key}: its teacher is {facts['teacher']}, {part.learns_from} is {teacher}")
    return wrong


def _check_page(file: Path, computed: str) -> list[str]:
    written = file.read_text() if file.exists() else ""
    lines = difflib.unified_diff(
        written.splitlines(), computed.splitlines(), "README.md", "computed", lineterm="", n=0
    )
    return list(lines)
