"""Minifinetuning's loss: the correction of the teacher by the labels, and the divergence to it."""

import loss_formulas as formulas
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import logits

from distillation.errors import ConfigError, ShapeError
from distillation.losses import MFTLoss, kl_divergence
from distillation.losses.functional import corrected_probabilities


def labels(*shape, classes, seed=7):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_equals_its_formula(reduction, temperature, threshold):
    s, t, y = logits(3, 8, 5), logits(3, 8, 5, seed=1), labels(3, 8, classes=5)
    p = formulas.corrected(t.numpy(), y.numpy(), temperature, threshold)
    rows = temperature**2 * formulas.divergence(p, formulas.probabilities(s.numpy(), temperature))
    loss = MFTLoss(temperature, threshold, reduction)(s, t, target=y)
    np.testing.assert_allclose(loss.numpy(), formulas.reduced(rows, reduction, 5), rtol=1e-9)


def test_a_wrong_first_choice_is_overtaken_by_the_threshold():
    t = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)
    p = corrected_probabilities(t, torch.tensor([1]), threshold=0.2)[0]
    assert (p[1] - p[0]).item() == pytest.approx(0.2)


def test_a_right_first_choice_gains_the_threshold_at_most_up_to_one():
    t = torch.tensor([[1.0, 0.0], [9.0, 0.0]], dtype=torch.float64)
    before = torch.softmax(t, -1)
    after = corrected_probabilities(t, torch.tensor([0, 0]), threshold=0.2)
    assert (after[0, 0] - before[0, 0]).item() == pytest.approx(0.2)
    assert after[1].tolist() == [1.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-60, 60), min_size=2, max_size=6),
    st.integers(0, 5),
    st.floats(0, 1),
    st.floats(0.3, 10),
)
def test_the_correction_is_a_distribution_that_prefers_the_label(row, label, threshold, T):
    label %= len(row)
    t = torch.tensor([row], dtype=torch.float64)
    p = corrected_probabilities(t, torch.tensor([label]), T, threshold)[0]
    assert p.sum().item() == pytest.approx(1)
    assert (p >= 0).all()
    assert p[label] >= p.max() - 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
def test_a_teacher_that_is_certain_gives_finite_numbers(dtype, threshold):
    t = torch.tensor([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0]], dtype=dtype)
    s = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    loss = MFTLoss(threshold=threshold)(s, t, target=torch.tensor([0, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


def test_gradient_is_that_of_finite_differences():
    s, t, y = logits(3, 5).requires_grad_(), logits(3, 5, seed=1), labels(3, classes=5)
    loss = MFTLoss(2.0)
    assert torch.autograd.gradcheck(lambda student: loss(student, t, target=y), (s,))


def test_is_zero_where_the_student_equals_the_corrected_teacher():
    t, y = logits(6, 5), labels(6, classes=5)
    student = corrected_probabilities(t, y, threshold=0.1).log()
    assert MFTLoss(threshold=0.1)(student, t, target=y).item() == pytest.approx(0, abs=1e-12)


def test_without_threshold_a_right_teacher_is_taken_as_it_is():
    t = logits(6, 5)
    s, y = logits(6, 5, seed=1), t.argmax(-1)
    loss = MFTLoss(2.0, threshold=0.0)(s, t, target=y)
    torch.testing.assert_close(loss, kl_divergence(s, t, 2.0))


def test_ignored_labels_do_not_count():
    s, t = logits(4, 5), logits(4, 5, seed=1)
    y = torch.tensor([1, -100, 3, -100])
    keep = y >= 0
    loss = MFTLoss(ignore_index=-100)
    torch.testing.assert_close(loss(s, t, y), MFTLoss()(s[keep], t[keep], y[keep]))
    torch.testing.assert_close(loss(s, t, y), MFTLoss()(s, t, y, mask=keep))


def test_all_labels_ignored_gives_zero_and_a_gradient():
    s = logits(4, 5).requires_grad_()
    loss = MFTLoss(ignore_index=-100)(s, logits(4, 5, seed=1), torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0
    assert (s.grad == 0).all()


def test_an_impossible_class_on_both_sides_adds_nothing():
    s, t, y = logits(4, 5), logits(4, 5, seed=1), labels(4, classes=5)
    expected = MFTLoss()(s, t, y)
    inf = torch.full((4, 1), -float("inf"), dtype=torch.float64)
    s, t = torch.cat([s, inf], 1).requires_grad_(), torch.cat([t, inf], 1)
    loss = MFTLoss()(s, t, y)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    assert torch.isfinite(s.grad).all()


def test_classes_may_lie_along_another_dimension():
    s, t, y = logits(2, 5, 3), logits(2, 5, 3, seed=1), labels(2, 3, classes=5)
    torch.testing.assert_close(MFTLoss(dim=1)(s, t, y), MFTLoss()(s.mT, t.mT, y))


def test_half_precision_is_raised_to_float32():
    s, t = logits(4, 5).bfloat16(), logits(4, 5, seed=1).bfloat16()
    y = labels(4, classes=5)
    assert torch.equal(MFTLoss()(s, t, y), MFTLoss()(s.float(), t.float(), y))


def test_errors():
    s = torch.zeros(2, 5)
    with pytest.raises(ConfigError, match="needs target"):
        MFTLoss()(s, s)
    with pytest.raises(ShapeError, match=r"target has shape \(3,\)"):
        MFTLoss()(s, s, target=torch.zeros(3).long())
    with pytest.raises(ConfigError, match="integers"):
        MFTLoss()(s, s, target=torch.zeros(2))
    for threshold in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=r"threshold must be .* at least 0 and at most 1"):
            MFTLoss(threshold=threshold)
