"""Stores that real recorders wrote, and a client that asks as a browser on this machine does."""

from __future__ import annotations

import json
import os
from pathlib import Path

from starlette.testclient import TestClient

from distillation import runs
from distillation.dashboard import create_app

HERE = "http://127.0.0.1:8090"


def client(root: Path, **options) -> TestClient:
    """A client of the dashboard over `root`; an exception of the server fails the test."""
    return TestClient(create_app(root, **options), base_url=HERE)


def record(
    root: Path,
    experiment: str = "digits",
    *,
    curves: dict[str, list[float]] | None = None,
    fields: dict | None = None,
    **options,
) -> str:
    """The UUID of a completed run, whose metrics have one value each 10 samples."""
    options.setdefault("config", {"epochs": 3, "optimizer": {"learning_rate": 0.1}})
    curves = {"accuracy.test": [0.5, 0.9]} if curves is None else curves
    with runs.create(experiment, root=root, **options) as recorder:
        if fields:
            recorder.update(**fields)
        for i in range(max(map(len, curves.values()), default=0)):
            row = {name: values[i] for name, values in curves.items() if i < len(values)}
            recorder.log(10 * (i + 1), i, row)
    return recorder.uuid


def folder(root: Path, uuid: str) -> Path:
    """The folder of a run."""
    return runs.find(uuid, root).path


def edit(path: Path, **fields) -> None:
    """Change fields of a JSON file behind everyone's back."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def listed(asked: TestClient) -> dict[str, dict]:
    """The runs of the list by UUID."""
    return {run["uuid"]: run for run in asked.get("/api/runs").json()["runs"]}


def evaluation(accuracy: float = 0.75, **fields) -> dict:
    """An evaluation of two classes, two images each, as a run's evaluation.json holds it."""
    bins = [{"count": 0, "confidence": None, "accuracy": None}] * 14
    return {
        "split": "test",
        "epoch": 2,
        "classes": ["cat", "dog"],
        "confusion": [[2, 0], [1, 1]],
        "accuracy": accuracy,
        "ece": 0.1,
        "bins": [*bins, {"count": 4, "confidence": 0.85, "accuracy": accuracy}],
        "agreement": None,
        "kl": None,
        **fields,
    }


def large_store(root: Path, count: int, points: int) -> str:
    """`count` completed runs of `points` rows; the UUID of one.

    One run is recorded; the others are copies of its folder with a UUID and a start of their own,
    their metrics links to the same file: what is read is what it would be, at less of the disk.
    """
    row = {"loss.train_step": 0.5, "accuracy.train_step": 0.5}
    with runs.create("large", root=root, config={f"key{i}": i for i in range(40)}) as recorder:
        for i in range(points):
            recorder.log(128 * (i + 1), i // 400, dict.fromkeys(row, i / points))
    first = recorder.path
    info = json.loads((first / "run.json").read_text())
    for number in range(1, count):
        uuid = f"{number:032x}"
        copy = first.with_name(uuid)
        copy.mkdir()
        (copy / "run.json").write_text(json.dumps({**info, "uuid": uuid}))
        (copy / "config.json").write_bytes((first / "config.json").read_bytes())
        os.link(first / "metrics.jsonl", copy / "metrics.jsonl")
    return recorder.uuid
