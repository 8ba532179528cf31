"""Means, errors and tests of the record, against formulas and tables that are not ours."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from experiments.record.statistics import margin, spread


def test_spread_is_the_sample_standard_deviation_and_its_error():
    values = [0.8893, 0.8921, 0.8877]
    found = spread(values)
    assert found.n == 3
    assert math.isclose(found.mean, statistics.fmean(values), rel_tol=1e-15)
    assert math.isclose(found.deviation, statistics.stdev(values), rel_tol=1e-12)
    assert math.isclose(found.error, statistics.stdev(values) / math.sqrt(3), rel_tol=1e-12)


def test_one_seed_has_no_spread():
    found = spread([0.9])
    assert (found.n, found.mean, found.deviation, found.error) == (1, 0.9, None, None)


def _two_students(seed: int, images: int = 400):
    random = np.random.default_rng(seed)
    first = [random.random(images) < 0.9 for _ in range(3)]
    second = [random.random(images) < 0.8 for _ in range(3)]
    return first, second


def test_margin_over_seeds_is_a_paired_t_test():
    first, second = _two_students(0)
    found = margin(first, second)
    ours = [a.mean() for a in first], [b.mean() for b in second]
    assert math.isclose(found.over_seeds.mean, np.mean(ours[0]) - np.mean(ours[1]))
    assert math.isclose(found.p_seeds, stats.ttest_rel(*ours).pvalue, rel_tol=1e-9)


def test_mcnemar_counts_the_images_that_only_one_gets_right():
    first = [np.array([True, True, True, True, False, False])]
    second = [np.array([True, False, False, False, True, False])]
    found = margin(first, second)
    assert (found.gained, found.lost) == (3, 1)
    # Two-sided binomial: 2 (C(4,3) + C(4,4)) / 2^4
    assert found.p_images == [pytest.approx(2 * 5 / 16)]
    assert found.p_seeds is None


def test_error_over_images_is_that_of_a_mean_of_paired_differences():
    first, second = _two_students(1)
    differences = np.mean([a.astype(int) - b for a, b in zip(first, second, strict=True)], axis=0)
    expected = statistics.stdev(differences.tolist()) / math.sqrt(len(differences))
    assert math.isclose(margin(first, second).image_error, expected, rel_tol=1e-12)


def test_equal_students_have_no_margin():
    first, _ = _two_students(2)
    found = margin(first, first)
    assert found.over_seeds.mean == 0 and found.p_seeds is None
    assert (found.gained, found.lost, found.p_images) == (0, 0, [1.0, 1.0, 1.0])


def test_students_of_different_seeds_are_not_paired():
    first, second = _two_students(3)
    with pytest.raises(ValueError, match="shorter"):
        margin(first, second[:2])
