"""Measures of what a student has taken over: against formulas, written another way."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import distillation.torchvision_guard  # noqa: F401, before torchmetrics
from distillation.errors import ConfigError, ShapeError
from distillation.files import dumps
from distillation.transfer import (
    Tally,
    accuracy_per_class,
    agreement,
    calibration_bins,
    calibration_error,
    confusion_matrix,
    kl_from_teacher,
    record,
)


@pytest.fixture
def outputs():
    """Student's and teacher's logits, and labels, of 200 images of five classes."""
    generator = torch.Generator().manual_seed(1)
    student = 2 * torch.randn(200, 5, generator=generator)
    teacher = student + torch.randn(200, 5, generator=generator)
    return student, teacher, torch.randint(5, (200,), generator=generator)


def logits_of(confidences: list[float]) -> torch.Tensor:
    """Two-class logits whose first class has these probabilities."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def softmax(logits: torch.Tensor) -> np.ndarray:
    values = np.exp(logits.double().numpy())
    return values / values.sum(1, keepdims=True)


# Agreement and divergence


def test_agreement_is_the_share_of_equal_choices():
    student = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 0.0]])
    teacher = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.1, 0.0], [4.0, 0.0, 3.0], [0.0, 0.0, 1.0]])
    assert agreement(student, teacher).item() == 0.5


def test_the_divergence_is_the_teachers_from_the_students_in_nats(outputs):
    student, teacher, _ = outputs
    p, q = softmax(teacher), softmax(student)
    expected = (p * np.log(p / q)).sum(1).mean()
    assert kl_from_teacher(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert kl_from_teacher(teacher, student).item() != pytest.approx(expected, rel=1e-2)


def test_a_student_that_is_its_teacher_agrees_and_does_not_diverge(outputs):
    student, _, _ = outputs
    assert agreement(student, student).item() == 1
    assert kl_from_teacher(student, student).item() == 0


def test_sums_are_taken_in_float64(outputs):
    student, teacher, labels = outputs
    for value in (
        agreement(student, teacher),
        kl_from_teacher(student.half(), teacher.half()),
        calibration_error(student, labels),
    ):
        assert value.dtype == torch.float64


# Confusion


def test_the_confusion_matrix_has_true_classes_in_rows():
    logits = F.one_hot(torch.tensor([0, 1, 1, 2, 2, 2]), 3).float()
    labels = torch.tensor([0, 0, 1, 2, 2, 1])
    confusion = confusion_matrix(logits, labels)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 2]]
    assert accuracy_per_class(confusion).tolist() == [0.5, 0.5, 1.0]


def test_a_class_without_images_has_no_accuracy():
    confusion = confusion_matrix(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert accuracy_per_class(confusion).isnan().tolist() == [False, False, True]


# Calibration: 15 bins of equal width, open on the left


def test_a_model_that_is_as_sure_as_it_is_right_is_calibrated():
    logits = logits_of([0.75] * 4)
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1])).item() == pytest.approx(0)


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy():
    logits = logits_of([0.9] * 4 + [0.6] * 4)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])
    # accuracies 0.5 and 1.0 in two bins of four
    assert calibration_error(logits, labels).item() == pytest.approx((0.4 + 0.4) / 2)


def test_errors_of_one_bin_cancel_but_those_of_two_bins_do_not():
    labels = torch.tensor([0, 1])
    logits = logits_of([0.9, 0.6])
    assert calibration_error(logits, labels, bins=1).item() == pytest.approx(0.25)
    assert calibration_error(logits, labels, bins=10).item() == pytest.approx(0.35)


def test_certainty_falls_into_the_last_bin():
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    assert calibration_error(logits, torch.tensor([0, 0])).item() == 0
    assert calibration_error(logits, torch.tensor([1, 1])).item() == 1
    assert calibration_bins(logits, torch.tensor([0, 1])).count.tolist() == [0] * 14 + [2]


def test_an_upper_edge_belongs_to_its_bin_as_the_paper_has_it():
    # two equal classes: the confidence is exactly 1/2, an edge of two bins
    bins = calibration_bins(torch.zeros(1, 2), torch.tensor([0]), bins=2)
    assert bins.count.tolist() == [1, 0]


def test_bins_are_those_of_the_papers_definition(outputs):
    student, _, labels = outputs
    p = softmax(student)
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    bins = calibration_bins(student, labels)
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        assert bins.count[m] == inside.sum()
        if inside.any():
            assert bins.confidence[m].item() == pytest.approx(confidence[inside].mean())
            assert bins.accuracy[m].item() == pytest.approx(right[inside].mean())
            gap = abs(right[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
        else:
            assert math.isnan(bins.confidence[m]), "no image, no confidence"
            assert math.isnan(bins.accuracy[m])
    assert calibration_error(student, labels).item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("bins", [5, 15])
def test_torchmetrics_finds_the_same_error(outputs, bins):
    from torchmetrics.functional.classification import multiclass_calibration_error

    # Its bins are open on the right; no confidence here lies on an edge
    student, _, labels = outputs
    other = multiclass_calibration_error(
        student.double().softmax(-1), labels, num_classes=5, n_bins=bins, norm="l1"
    )
    assert calibration_error(student, labels, bins).item() == pytest.approx(other.item(), rel=1e-6)


# Batch by batch


def test_batches_add_up_to_the_whole(outputs):
    student, teacher, labels = outputs
    tally = Tally()
    for part in torch.arange(200).split(64):
        tally.add(student[part], labels[part], teacher[part])
    found = tally.compute()
    assert found.images == 200
    assert found.agreement == agreement(student, teacher).item()
    assert found.kl == pytest.approx(kl_from_teacher(student, teacher).item(), rel=1e-12)
    assert found.teacher_accuracy == (teacher.argmax(-1) == labels).double().mean().item()
    assert found.ece == pytest.approx(calibration_error(student, labels).item(), rel=1e-12)
    assert found.confusion == confusion_matrix(student, labels).tolist()
    assert found.accuracy == (student.argmax(-1) == labels).double().mean().item()
    assert found.per_class == accuracy_per_class(confusion_matrix(student, labels)).tolist()
    assert sum(row["count"] for row in found.bins) == 200


def test_processes_that_share_the_images_add_up_to_the_whole(outputs):
    student, teacher, labels = outputs
    whole, first, second = Tally(), Tally(), Tally()
    whole.add(student, labels, teacher)
    first.add(student[:90], labels[:90], teacher[:90])
    second.add(student[90:], labels[90:], teacher[90:])
    second.add(student[:0], labels[:0], teacher[:0])  # no image of a short last batch
    other = second._sums
    found, expected = first.compute(reduce=lambda sums: sums + other), whole.compute()
    assert found.confusion == expected.confusion
    assert found.kl == pytest.approx(expected.kl, rel=1e-12)


def test_without_a_teacher_there_is_no_agreement(outputs):
    student, _, labels = outputs
    tally = Tally()
    tally.add(student, labels)
    found = tally.compute()
    assert (found.agreement, found.kl, found.teacher_accuracy) == (None, None, None)
    assert not found.teacher_at_chance
    assert found.ece > 0


@pytest.mark.parametrize(("right", "guesses"), [(10, True), (18, True), (20, False), (100, False)])
def test_a_teacher_within_three_standard_errors_of_chance_guesses(right, guesses):
    """Of 100 images and ten classes: 10 ± 3, so up to 19."""
    labels = torch.arange(100) % 10
    choices = torch.where(torch.arange(100) < right, labels, (labels + 1) % 10)
    tally = Tally()
    tally.add(torch.eye(10)[labels], labels, torch.eye(10)[choices])
    assert tally.compute().teacher_at_chance is guesses


def test_a_tally_that_is_reset_begins_anew(outputs):
    student, teacher, labels = outputs
    tally = Tally()
    tally.add(student, labels, teacher)
    tally.reset()
    assert not tally
    tally.add(student[:10, :4], labels[:10].clamp(max=3))
    assert tally.compute().images == 10


def test_outputs_that_are_no_numbers_are_told_as_such(outputs):
    student, teacher, labels = outputs
    student[3] = float("nan")
    tally = Tally()
    tally.add(student, labels, teacher)
    found = tally.compute()
    assert math.isnan(found.ece)
    assert math.isnan(found.kl)
    assert sum(map(sum, found.confusion)) == 200


def test_the_record_is_strict_json(outputs):
    student, _, labels = outputs
    tally = Tally()
    tally.add(student, labels)
    told = json.loads(
        dumps(record(tally.compute(), split="test", epoch=2, step=64, classes="abcde"))
    )
    assert list(told)[:4] == ["split", "epoch", "step", "classes"]
    assert told["classes"] == ["a", "b", "c", "d", "e"]
    assert (told["agreement"], told["kl"]) == (None, None)
    assert told["bins"][0] == {"count": 0, "confidence": None, "accuracy": None}
    assert len(told["bins"]) == 15


# What does not fit


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "labels reach from 0 to 3, but there are 3"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "labels reach from -1 to 0"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "labels must be int64 (2,)"),
        (torch.zeros(2, 3), torch.tensor([0]), "labels must be int64 (2,)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one of each"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 1]), "(images, classes)"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), "floating point"),
    ],
)
def test_shapes_and_labels_that_do_not_fit_are_refused(logits, labels, message):
    for measure in (calibration_error, calibration_bins, confusion_matrix):
        with pytest.raises(ShapeError) as caught:
            measure(logits, labels)
        assert message in str(caught.value)


def test_a_teacher_of_another_number_of_classes_is_refused():
    for measure in (agreement, kl_from_teacher):
        with pytest.raises(ShapeError, match="3 classes and the teacher 4"):
            measure(torch.zeros(2, 3), torch.zeros(2, 4))


def test_a_tally_is_fed_alike_each_time(outputs):
    student, teacher, labels = outputs
    tally = Tally()
    with pytest.raises(ConfigError, match="nothing was evaluated"):
        tally.compute()
    tally.add(student, labels, teacher)
    with pytest.raises(ConfigError, match="all batches"):
        tally.add(student, labels)
    with pytest.raises(ShapeError, match="6 classes"):
        tally.add(torch.zeros(2, 6), torch.tensor([0, 1]))
    with pytest.raises(ShapeError, match="4 names of classes for outputs of 5"):
        record(tally.compute(), split="test", epoch=1, step=1, classes="abcd")
    with pytest.raises(ConfigError, match="bins"):
        Tally(bins=0)


def test_rows_that_are_left_out_count_for_nothing(outputs):
    student, teacher, labels = outputs
    kept = torch.arange(200) % 3 > 0
    spoilt = labels.where(kept, -100)
    student[0], teacher[3] = float("nan"), float("inf")
    with_mask, without = Tally(), Tally()
    with_mask.add(student, spoilt, teacher, kept)
    without.add(student[kept], labels[kept], teacher[kept])
    found, expected = with_mask.compute().to_json(), without.compute().to_json()
    assert found["images"] == int(kept.sum())
    assert dumps(found["confusion"]) == dumps(expected["confusion"])
    for name in ("accuracy", "ece", "agreement", "kl"):
        assert found[name] == pytest.approx(expected[name], rel=1e-12)


def test_without_an_image_there_is_no_mean(outputs):
    student, _, labels = outputs
    tally = Tally()
    tally.add(student, labels, kept=torch.zeros(200, dtype=torch.bool))
    found = tally.compute()
    assert found.images == 0
    assert math.isnan(found.accuracy) and math.isnan(found.ece)


@pytest.mark.parametrize("kept", [torch.ones(199, dtype=torch.bool), torch.ones(200)])
def test_what_is_kept_is_a_truth_for_each_row(outputs, kept):
    student, _, labels = outputs
    with pytest.raises(ShapeError, match=r"kept must be bool \(200,\)"):
        Tally().add(student, labels, kept=kept)
