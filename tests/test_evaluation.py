"""Measures of a classifier."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distillation.evaluation import calibration_error, measure


def logits_of(confidences: list[float]) -> torch.Tensor:
    """Two-class logits whose first class has these probabilities."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def test_a_model_that_is_as_sure_as_it_is_right_is_calibrated():
    logits = logits_of([0.75] * 4)
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0)


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy():
    logits = logits_of([0.9] * 4 + [0.6] * 4)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])
    # accuracies 0.5 and 1.0 in two bins of four
    assert calibration_error(logits, labels) == pytest.approx((0.4 + 0.4) / 2)


def test_errors_of_one_bin_cancel_but_those_of_two_bins_do_not():
    labels = torch.tensor([0, 1])
    assert calibration_error(logits_of([0.9, 0.6]), labels, bins=1) == pytest.approx(0.25)
    assert calibration_error(logits_of([0.9, 0.6]), labels, bins=10) == pytest.approx(0.35)


def test_certainty_falls_into_the_last_bin():
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    assert calibration_error(logits, torch.tensor([0, 0])) == 0
    assert calibration_error(logits, torch.tensor([1, 1])) == 1


def test_what_is_measured_does_not_depend_on_the_batches():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    images, labels = torch.rand(10, 5), torch.arange(10) % 3
    whole = measure(model, [(images, labels)])
    parts = measure(model, [(images[:7], labels[:7]), (images[7:], labels[7:])])
    assert parts == pytest.approx(whole, rel=1e-5)
    assert whole["images"] == 10
