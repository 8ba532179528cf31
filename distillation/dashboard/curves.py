"""A curve with fewer points that looks the same: every bucket keeps its lowest and highest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from distillation.dashboard.series import Series
from distillation.runs.metrics import is_quiet

FEWEST, MOST = 10, 20_000  # points a curve


def curves(series: Series, names: Sequence[str] | None, points: int) -> dict[str, dict]:
    """{name: {"steps": […], "values": […]}} with at most `points` each; NaN as None.

    Without `names` all metrics but the statistics of single parameters; a name that the run does
    not have is left out.
    """
    with series.guard:
        if names is None:
            names = [name for name in sorted(series.columns) if not is_quiet(name)]
        chosen = {
            name: tuple(np.array(column) for column in series.columns[name])
            for name in names
            if name in series.columns
        }
    return {name: _curve(steps, values, points) for name, (steps, values) in chosen.items()}


def downsample(values: np.ndarray, points: int) -> np.ndarray:
    """Indices, ascending, of at most `points` (10 or more) of `values` (N,) float.

    The first and the last value stay. What lies between is cut into buckets of equally many values,
    of which the lowest and the highest stay, and the first NaN where there are any: peaks, and the
    places where a run went wrong, are never lost.
    """
    count = len(values)
    if count <= points:
        return np.arange(count)
    missing = np.isnan(values)
    each = 3 if missing.any() else 2
    inner = count - 2
    size = math.ceil(inner / ((points - 2) // each))
    buckets = math.ceil(inner / size)

    def folded(array: np.ndarray, filler: object) -> np.ndarray:
        padded = np.full(buckets * size, filler, dtype=array.dtype)
        padded[:inner] = array[1:-1]
        return padded.reshape(buckets, size)

    starts = 1 + size * np.arange(buckets)
    lowest = folded(np.where(missing, np.inf, values), np.inf).argmin(axis=1)
    highest = folded(np.where(missing, -np.inf, values), -np.inf).argmax(axis=1)
    kept = [[0, count - 1], starts + lowest, starts + highest]
    if each == 3:
        gaps = folded(missing, False)
        kept.append((starts + gaps.argmax(axis=1))[gaps.any(axis=1)])
    return np.unique(np.concatenate(kept))


def _curve(steps: np.ndarray, values: np.ndarray, points: int) -> dict:
    kept = downsample(values, points)
    return {
        "steps": steps[kept].tolist(),
        "values": [None if math.isnan(v) else v for v in values[kept].tolist()],
    }
