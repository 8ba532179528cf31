"""Curves: downsampling that loses no extreme, and files that are read as they grow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dashboard_kit import client, folder, record
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distillation import runs
from distillation.dashboard.curves import downsample
from distillation.dashboard.series import Series, SeriesCache

numbers = st.floats(-1e300, 1e300) | st.just(math.nan)
series = arrays(np.float64, st.integers(0, 400), elements=numbers, fill=st.nothing())


@given(series, st.integers(10, 100))
def test_no_more_points_than_asked_for_and_in_their_order(values, points):
    kept = downsample(values, points)
    assert len(kept) <= points or len(values) <= points
    assert (np.diff(kept) > 0).all()
    if len(values):
        assert (kept[0], kept[-1]) == (0, len(values) - 1)


@given(series, st.integers(10, 100))
def test_every_stretch_keeps_its_lowest_highest_and_whether_a_value_is_missing(values, points):
    kept = downsample(values, points)
    if len(values) <= points:
        assert len(kept) == len(values)
        return
    inner = values[1:-1]
    each = 3 if np.isnan(values).any() else 2
    size = math.ceil(len(inner) / ((points - 2) // each))
    for start in range(0, len(inner), size):
        bucket = inner[start : start + size]
        inside = kept[(kept > start) & (kept <= start + len(bucket))]
        chosen = values[inside]
        assert np.isnan(chosen).any() == np.isnan(bucket).any()
        finite = bucket[~np.isnan(bucket)]
        if len(finite):
            assert np.nanmin(chosen) == finite.min()
            assert np.nanmax(chosen) == finite.max()


def test_a_single_peak_among_ten_thousand_values_is_seen(tmp_path):
    values = [1.0] * 10_000
    values[6_543] = 7.0
    values[1_234] = math.nan
    uuid = record(tmp_path, curves={"loss.train": values})
    answer = client(tmp_path).get(f"/api/runs/{uuid}/curves", params={"points": 100}).json()
    curve = answer["curves"]["loss.train"]
    assert len(curve["steps"]) == len(curve["values"]) <= 100
    assert curve["values"][curve["steps"].index(65_440)] == 7.0
    assert curve["values"][curve["steps"].index(12_350)] is None
    assert (curve["steps"][0], curve["steps"][-1]) == (10, 100_000)
    assert answer["size"] == (folder(tmp_path, uuid) / "metrics.jsonl").stat().st_size


def test_a_curve_is_what_the_run_says(tmp_path):
    uuid = record(tmp_path, curves={"loss.train": [3.0, 2.0, 1.0], "accuracy.test": [0.5]})
    run = runs.find(uuid, tmp_path)
    curves = client(tmp_path).get(f"/api/runs/{uuid}/curves").json()["curves"]
    assert set(curves) == {"loss.train", "accuracy.test"}
    for name, curve in curves.items():
        assert (curve["steps"], curve["values"]) == run.curve(name)


def test_curves_are_chosen_by_name(tmp_path):
    uuid = record(tmp_path, curves={"a": [1.0], "b,c": [2.0], "param.w": [3.0]})
    asked = client(tmp_path)

    def names(**query):
        return set(asked.get(f"/api/runs/{uuid}/curves", params=query).json()["curves"])

    assert names() == {"a", "b,c"}, "statistics of parameters only when they are asked for"
    assert names(names="a,param.w,nothing") == {"a", "param.w"}
    assert names(name="b,c") == {"b,c"}
    assert names(names="") == set()


@pytest.mark.parametrize("points", ["9", "20001", "-5", "x", "1.5", "９９", "1" * 50])
def test_a_number_of_points_that_is_none_is_refused(tmp_path, points):
    uuid = record(tmp_path)
    answer = client(tmp_path).get(f"/api/runs/{uuid}/curves", params={"points": points})
    assert answer.status_code == 400
    assert "from 10 to 20000" in answer.json()["error"]


def row(step: int, value: float = 0.5) -> str:
    return f'{{"step": {step}, "epoch": 0, "time": 1, "loss": {value}}}\n'


def steps(known: Series) -> list[int]:
    known.refresh()
    return list(known.columns["loss"][0]) if known.columns else []


def test_of_a_file_that_grows_only_what_is_new_is_read(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(row(i) for i in range(1000)))
    known = Series(path)
    assert steps(known) == list(range(1000))
    added = []
    monkeypatch.setattr(known, "_add", lambda line: added.append(line) or Series._add(known, line))
    with path.open("a") as file:
        file.write(row(1000))
    assert steps(known) == list(range(1001))
    assert len(added) == 1


@pytest.mark.parametrize("in_place", [True, False])
def test_a_run_that_went_back_is_read_again(tmp_path, in_place):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(row(i) for i in range(100)))
    known = Series(path)
    steps(known)
    again = "".join(row(i) for i in range(50)) + "".join(row(i, 0.25) for i in range(50, 150))
    if in_place:
        path.write_text(again)
    else:
        (tmp_path / "new").write_text(again)
        (tmp_path / "new").replace(path)
    assert steps(known) == list(range(150))
    assert known.columns["loss"][1][99] == 0.25


def test_a_file_that_is_gone_has_no_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(1))
    known = Series(path)
    assert steps(known) == [1]
    path.unlink()
    assert steps(known) == []


def test_the_curves_in_memory_are_bounded(tmp_path):
    cache = SeriesCache(most=250)
    paths = [tmp_path / f"{i}.jsonl" for i in range(5)]
    for path in paths:
        path.write_text("".join(row(i) for i in range(100)))
        cache.read(path)
    assert list(cache._known) == paths[-2:]


def test_a_live_curve_grows_between_two_looks(tmp_path):
    asked = client(tmp_path)
    with runs.create("digits", root=tmp_path) as recorder:
        address = f"/api/runs/{recorder.uuid}/curves"
        recorder.log(10, 0, {"loss.train": 0.5})
        assert recorder.run.status == "running"  # a look writes what is buffered
        first = asked.get(address)
        same = asked.get(address, headers={"If-None-Match": first.headers["etag"]})
        recorder.log(20, 0, {"loss.train": 0.25})
        assert recorder.run.status == "running"
        second = asked.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert first.json()["curves"]["loss.train"]["steps"] == [10]
    assert same.status_code == 304
    assert second.json()["curves"]["loss.train"]["steps"] == [10, 20]
