"""
# What a run leaves in the record

A JSON file and a curve for each run: small enough to be committed, and enough to compute every
figure of the record again. Neither weights nor images are among them.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import machine
from distillation import transfer
from distillation.checkpoint import atomic_json, atomic_write
from distillation.data import ImageSet, TensorLoader
from distillation.errors import DataError
from distillation.runs import Run
from experiments.record.protocol import Part
from experiments.record.training import Runs, arguments

# A column of the curves for each that a run has
_CURVES = (
    *("loss.train", "accuracy.train", "loss.valid", "accuracy.valid", "loss.test", "accuracy.test"),
    *("agreement.test", "kl.test", "ece.test"),
)


@torch.no_grad()
def test_logits(run: Run, train: ImageSet, test: ImageSet) -> torch.Tensor:
    """
    ### A recorded model's logits on the test images, in the run's precision: `[images, classes]`
    """
    channels_last = run.config["channels_last"]
    model = run.load_model()
    model = model.to(memory_format=torch.channels_last if channels_last else torch.preserve_format)
    loader = TensorLoader(
        test, 500, shuffle=False, mean=train.mean, std=train.std, channels_last=channels_last
    )
    bf16 = run.info.get("precision") == "bf16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return torch.cat([model(batch.images).float() for batch in loader])


def describe(part: Part, run: Run, store: Runs) -> dict[str, Any]:
    """
    ### What was run, where, and what it took
    """
    info = run.info
    return {
        "key": part.key,
        "group": part.group,
        "run": run.uuid,
        "teacher": run.parent_uuid,
        "learns_from": part.learns_from,
        "command": _command(part),
        "config": {k: v for k, v in run.config.items() if k != "data"},
        "seed": run.config["seed"],
        "parameters": run.facts["parameters"],
        "macs": run.facts["macs"],
        "started": run.started,
        "ended": run.ended,
        "wall_seconds": store.seconds(run, "wall"),
        "cpu_seconds": store.seconds(run, "cpu"),
        "versions": info["versions"],
        "threads": info["threads"],
        "precision": info.get("precision"),
        # One for each time it was started, where they differ
        "commits": _commits(info),
        "machine": machine(),
    }


def measure(
    run: Run, logits: torch.Tensor, test: ImageSet, teacher: torch.Tensor | None
) -> dict[str, Any]:
    """
    ### What it knows: predictions, calibration, and what it has from its teacher

    `logits` and the teacher's are `[images, classes]`. Predictions are a digit each, in the order
    of the test images.
    """
    choice = logits.argmax(dim=-1)
    last = run.curve("accuracy.test")[1][-1]
    correct = int((choice == test.labels).sum())
    if abs(correct / len(test) - last) > tolerance(len(test)):
        raise DataError(
            f"run {run.label} has recorded an accuracy of {last:.4f}, but its model is right for "
            f"{correct} of {len(test)} test images; are these the images it was tested on?"
        )
    bins = transfer.calibration_bins(logits, test.labels)
    # A bin without images has no means
    rows = zip(*(values.tolist() for values in bins), strict=True)
    measured = {
        "predictions": "".join(map(str, choice.tolist())),
        "accuracy": correct / len(test),
        "ece": float(transfer.calibration_error(logits, test.labels)),
        "bins": [dict(zip(bins._fields, row, strict=True)) for row in rows if row[0]],
        "agreement": None,
        "kl": None,
    }
    if teacher is not None:
        measured["agreement"] = float(transfer.agreement(logits, teacher))
        measured["kl"] = float(transfer.kl_from_teacher(logits, teacher))
    return measured


def tolerance(images: int) -> float:
    """
    ### By how much two measured accuracies of one model may differ

    Near ties are rounded otherwise by another number of threads or on another device: two images
    of a thousand, or three.
    """
    return max(0.002, 3 / images) + 1e-9


def write(folder: Path, facts: dict[str, Any], run: Run) -> None:
    """
    ### Write a run's two files
    """
    rows = [row for row in run.metrics if "accuracy.test" in row]
    # A search does not hand on what it saw of the test images
    kept = [name for name in _CURVES if not (name.endswith(".test") and "tried" in facts)]
    columns = [name for name in kept if any(name in row for row in rows)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["epoch", "samples", *columns])
    for row in rows:
        values = ["" if row.get(c) is None else f"{row[c]:.6g}" for c in columns]
        table.writerow([row["epoch"] + 1, row["step"], *values])
    atomic_write(folder / "curves" / f"{facts['key']}.csv", text.getvalue())
    # Last, for its presence says that the part is recorded
    atomic_json(folder / "runs" / f"{facts['key']}.json", facts)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """
    ### The recorded runs by key
    """
    found = {}
    for file in sorted((folder / "runs").glob("*.json")):
        try:
            facts = json.loads(file.read_text())
            found[facts["key"]] = facts
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is not a recorded run: {error!r}") from error
    return found


def right(facts: dict[str, Any], labels: str) -> np.ndarray:
    """
    ### Which test images a recorded run gets right: bool, `[images]`
    """
    return classes(facts["predictions"]) == classes(labels)


def classes(digits: str) -> np.ndarray:
    """
    ### A digit an image, as an array of classes
    """
    return np.frombuffer(digits.encode("ascii"), dtype=np.uint8) - ord("0")


def _commits(info: dict[str, Any]) -> list[str]:
    started = [info, *info.get("resumed", [])]
    # From a run store that did not note it on resuming: the first one's
    return list(dict.fromkeys(s["git_commit"] for s in started if s.get("git_commit")))


def _command(part: Part) -> str:
    teacher = None if part.learns_from is None else f"${part.learns_from.upper()}"
    return " ".join(["python", "-m", part.module, *arguments(part, teacher)])
