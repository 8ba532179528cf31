"""metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation import dashboard
from distillation.errors import ConfigError, RunError
from distillation.runs import metrics
from distillation.runs.metrics import MetricsFile

NAMES = st.text(max_size=12).filter(lambda name: name not in metrics.KEYS)
ROWS = st.lists(
    st.tuples(st.integers(0, 2**60), st.integers(0, 1000), st.dictionaries(NAMES, st.floats())),
    max_size=8,
)


def write(path: Path, rows) -> None:
    file = MetricsFile(path)
    for step, epoch, values in rows:
        file.append(step, epoch, values)
        file.flush()


@given(ROWS)
@settings(deadline=None)
def test_rows_survive_a_round_trip_and_what_is_not_finite_is_null(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write(path, rows)
        expected = []
        for step, epoch, values in rows:
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            expected.append({"step": step, "epoch": epoch, **finite})
        assert [{k: v for k, v in r.items() if k != "time"} for r in metrics.read(path)] == expected


@given(ROWS.filter(len), st.floats(0, 1))
@settings(deadline=None)
def test_a_file_cut_off_anywhere_reads_as_the_rows_before_and_can_be_continued(rows, part):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write(path, rows)
        content = path.read_bytes()
        end = round(part * len(content))
        whole = content[:end].count(b"\n")
        os.truncate(path, end)
        assert len(metrics.read(path)) == whole

        write(path, [(7, 0, {"loss": 1.0})])
        read = metrics.read(path)
        assert len(read) == whole + 1
        assert read[-1]["loss"] == 1.0


def test_every_row_is_strict_json_with_step_epoch_and_time(tmp_path):
    write(tmp_path / "m", [(64, 1, {"loss.train": math.nan, "n": 3, "x": np.float32(0.5)})])
    row = json.loads((tmp_path / "m").read_text(), parse_constant=pytest.fail)
    assert list(row) == ["step", "epoch", "time", "loss.train", "n", "x"]
    assert (row["step"], row["epoch"], row["loss.train"], row["n"]) == (64, 1, None, 3.0)


def test_a_row_damaged_in_the_middle_is_named_by_its_line(tmp_path):
    write(tmp_path / "m", [(step, 0, {"loss": 1.0}) for step in range(3)])
    lines = (tmp_path / "m").read_text().splitlines(keepends=True)
    (tmp_path / "m").write_text(lines[0] + "{broken\n" + lines[2])
    with pytest.raises(RunError, match="line 2"):
        metrics.read(tmp_path / "m")


@pytest.mark.parametrize("value", [torch.tensor(1.0), "0.5", None, 1j])
def test_only_numbers_are_logged(tmp_path, value):
    with pytest.raises(ConfigError, match=f"'loss' is a {type(value).__name__}"):
        MetricsFile(tmp_path / "m").append(0, 0, {"loss": value})


@pytest.mark.parametrize("name", ["step", "epoch", "time", 3])
def test_a_metric_may_not_take_the_names_of_the_row_itself(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name!r} cannot be a metric's name"):
        MetricsFile(tmp_path / "m").append(0, 0, {name: 1.0})


def test_a_step_is_a_whole_number_of_samples(tmp_path):
    with pytest.raises(ConfigError, match=r"step must be a whole number of samples, not 1\.5"):
        MetricsFile(tmp_path / "m").append(1.5, 0, {})


def test_rewinding_drops_the_rows_past_the_step(tmp_path):
    write(tmp_path / "m", [(step, 0, {"loss": float(step)}) for step in (0, 10, 20, 30)])
    file = MetricsFile(tmp_path / "m")
    assert [row["step"] for row in file.rewind(10)] == [0, 10]
    assert [row["step"] for row in metrics.read(tmp_path / "m")] == [0, 10]
    assert file.rewind(None) == metrics.read(tmp_path / "m") == []


def test_best_values_are_the_highest_accuracies_and_the_lowest_losses():
    rows = [
        {"step": 1, "epoch": 0, "time": 0, "accuracy.test": 0.5, "loss.test": 2.0},
        {"step": 2, "epoch": 0, "time": 0, "accuracy.test": 0.9, "loss.test": None},
        {"step": 3, "epoch": 0, "time": 0, "accuracy.test": 0.9, "loss.test": 1.0},
    ]
    assert metrics.best_values(rows) == {"accuracy.test": (0.9, 2), "loss.test": (1.0, 3)}


@pytest.mark.parametrize(
    ("name", "maximised"),
    [
        ("accuracy.test", True),
        ("Accuracy", True),
        ("top5.valid", True),
        ("agreement.test", True),
        ("multiclassf1score.valid", True),
        ("multiclassaccuracy.valid", True),
        ("meaniou.valid", True),
        ("binaryauroc_2.valid", True),
        ("meansquarederror.valid", False),
        ("previous_error.test", False),
        ("loss.train", False),
        ("loss.accuracy.train", False),
        ("KDLogitsLoss/Loss", False),
        ("ece.test", False),
    ],
)
def test_whether_more_is_better_follows_from_the_name(name, maximised):
    assert metrics.is_maximised(name) is maximised


def test_the_dashboard_knows_the_same_names():
    script = Path(dashboard.__file__).parent / "pages" / "static" / "format.js"
    listed = re.search(r"MAXIMISED = \[(.*?)\]", script.read_text(), re.DOTALL)[1]
    assert tuple(re.findall(r'"(\w+)"', listed)) == metrics.MAXIMISED


def test_the_main_metrics_are_test_accuracy_and_loss():
    summary = {
        "param.conv.norm": 1.0,
        "loss.train": 0.5,
        "accuracy.train": 0.9,
        "loss.test": 0.6,
        "accuracy.test": 0.8,
    }
    assert list(metrics.main_values(summary)) == ["accuracy.test", "loss.test"]
