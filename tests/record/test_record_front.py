"""What the front page says of margin and goals, computed again from accuracies."""

from __future__ import annotations

import statistics

import pytest
from scipy.stats import ttest_rel

from experiments.record.front import summary

IMAGES = 1000
PROTOCOL = {
    "labels": "0" * IMAGES,
    "data": {"train": 50_000, "test": IMAGES},
    "scale": {"precision": "bf16"},
}


def recorded(group, accuracies, precision="bf16"):
    """Runs of a group, a seed for each accuracy."""
    rows = {}
    for seed, accuracy in enumerate(accuracies):
        right = round(accuracy * IMAGES)
        rows[f"{group}_{seed}"] = {
            "key": f"{group}_{seed}",
            "group": group,
            "seed": seed,
            "accuracy": accuracy,
            "predictions": "0" * right + "1" * (IMAGES - right),
            "parameters": 437034,
            "config": {"epochs": 30},
            "precision": precision,
        }
    return rows


def said(*groups):
    found = {key: facts for rows in groups for key, facts in rows.items()}
    lines = summary("records/x", PROTOCOL, found).splitlines()
    return next((line for line in lines if line.startswith("The distilled student has")), None)


def test_the_margin_over_either_plain_student_has_its_error_and_test():
    distilled, alone, all_views = (0.88, 0.885, 0.891), (0.86, 0.87, 0.868), (0.875, 0.88, 0.879)
    line = said(
        recorded("distilled", distilled),
        recorded("small", alone),
        recorded("all_views", all_views),
    )
    for other, name in ((alone, "Small, alone"), (all_views, "every view of each image")):
        differences = [a - b for a, b in zip(distilled, other, strict=True)]
        mean = 100 * statistics.mean(differences)
        error = 100 * statistics.stdev(differences) / 3**0.5
        p = ttest_rel(distilled, other).pvalue
        expected = f"**{mean:+.2f} ± {error:.2f}** points over “"
        assert expected in line
        assert f"{name}” (3 seeds, p = {p:.4f})" in line


def test_a_tiny_p_is_a_bound():
    distilled, alone = (0.881, 0.882, 0.880), (0.58, 0.58, 0.58)
    assert "(3 seeds, p < 0.0001)" in said(
        recorded("distilled", distilled), recorded("small", alone)
    )


@pytest.mark.parametrize("alone", [(0.86,), (0.87, 0.88)], ids=["one seed", "equal differences"])
def test_a_margin_that_cannot_be_tested_is_not_told(alone):
    assert said(recorded("distilled", (0.88, 0.89)), recorded("small", alone)) is None


def test_a_loss_is_told_as_it_is():
    line = said(recorded("distilled", (0.8, 0.81)), recorded("small", (0.85, 0.85)))
    assert "**-4.50 ± 0.50** points" in line


def test_what_was_computed_in_another_precision_is_marked_and_said():
    rows = recorded("small", (0.86, 0.87)) | recorded("smoothing", (0.88,), "fp32")
    text = summary("records/x", PROTOCOL, rows)
    assert "| control: alone, label smoothing 0.1 (fp32) | 437,034 | 30 | 1 |" in text
    assert "| Small, alone | 437,034 | 30 | 2 |" in text
    mixed = recorded("small", (0.86, 0.87)) | recorded("small", (0.85,), "fp32")
    assert "| Small, alone (bf16 and fp32) |" in summary("records/x", PROTOCOL, mixed)
    said = "Computed in bf16, but for what is marked: not every processor is fast at it."
    assert text.count(said) == 1
    assert said not in summary("records/x", PROTOCOL, recorded("small", (0.86, 0.87)))


def test_a_goal_that_was_missed_is_told_as_well_as_one_that_was_reached():
    groups = recorded("large", (0.9,)), recorded("distilled", (0.9,)), recorded("small", (0.88,))
    found = {key: facts for rows in groups for key, facts in rows.items()}
    last = summary("records/x", PROTOCOL, found).splitlines()[-1]
    assert "Large (teacher) 91.00 %, **missed**; Small, distilled 89.00 %, reached" in last
    assert "Small, distilled − Small, alone +0.70 points, reached" in last
