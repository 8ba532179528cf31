"""Each loss between logits against its definition in NumPy float64, and its gradient."""

import math

import loss_formulas as formulas
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import LOSSES, NEEDS_CLASSES, logits, make

from distillation import losses


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_its_formula(name, reduction, temperature):
    s, t = logits(3, 4, 7), logits(3, 4, 7, seed=1)
    loss = make(name, temperature, reduction=reduction)(s, t)
    rows = LOSSES[name][1](s.numpy(), t.numpy(), temperature)
    expected = formulas.reduced(rows, reduction, NEEDS_CLASSES.get(name, 7))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_default_reduction_is_the_documented_one(name):
    s, t = logits(5, 7), logits(5, 7, seed=1)
    rows = LOSSES[name][1](s.numpy(), t.numpy(), 1.0)
    expected = formulas.reduced(rows, "mean" if name == "mse" else "batchmean", 7)
    np.testing.assert_allclose(make(name)(s, t).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(name, reduction):
    s, t = logits(2, 5).requires_grad_(), logits(2, 5, seed=1)
    loss = make(name, 2.0, reduction=reduction)
    assert torch.autograd.gradcheck(lambda student: loss(student, t), (s,))


@pytest.mark.parametrize("name", [n for n, (_, _, zero) in LOSSES.items() if zero])
def test_is_zero_where_student_equals_teacher(name):
    t = logits(6, 10)
    assert abs(make(name, 3.0)(t.clone(), t).item()) < 1e-14


def test_soft_cross_entropy_at_equality_is_the_teachers_entropy():
    t = logits(6, 10)
    p = formulas.probabilities(t.numpy())
    loss = losses.SoftCrossEntropyLoss()(t.clone(), t)
    assert loss.item() == pytest.approx(-(p * np.log(p)).sum() / 6, rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_gets_no_gradient(name):
    s, t = logits(2, 5).requires_grad_(), logits(2, 5, seed=1).requires_grad_()
    make(name)(s, t).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_classes_may_lie_along_another_dimension(name):
    s, t = logits(2, 3, 4, 5), logits(2, 3, 4, 5, seed=1)
    along_1 = make(name, dim=1, reduction="none")(s, t)
    at_end = make(name, reduction="none")(s.movedim(1, -1), t.movedim(1, -1))
    torch.testing.assert_close(along_1, at_end)
    assert along_1.shape == (2, 4, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_raised_to_float32(name, dtype):
    s = logits(4, 10, dtype=torch.float32).to(dtype).requires_grad_()
    t = logits(4, 10, seed=1, dtype=torch.float32).to(dtype)
    loss = make(name, 4.0)(s, t)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, make(name, 4.0)(s.detach().float(), t.float()))
    loss.backward()
    assert s.grad.dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_lower_the_precision(name):
    s, t = (logits(4, 10, seed=i, dtype=torch.float32) for i in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make(name, 4.0)(s, t)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, make(name, 4.0)(s, t))


def test_a_half_precision_teacher_may_meet_a_full_precision_student():
    s, t = logits(4, 10, dtype=torch.float32), logits(4, 10, seed=1).bfloat16()
    assert torch.equal(losses.kl_divergence(s, t), losses.kl_divergence(s, t.float()))


def test_kl_is_bit_for_bit_the_agreed_expression():
    """All doors compute this; what they compute must not depend on the door."""
    s, t = logits(64, 10, dtype=torch.float32), logits(64, 10, seed=1, dtype=torch.float32)
    log_softmax, kl_div = torch.log_softmax, torch.nn.functional.kl_div
    terms = kl_div(log_softmax(s / 5.0, -1), log_softmax(t / 5.0, -1), reduction="none",
                   log_target=True)  # fmt: skip
    expected = terms.sum(-1).sum() / 64 * 25.0
    assert torch.equal(losses.kl_divergence(s, t, 5.0), expected)
    assert torch.equal(losses.LogitsDistillationLoss(5.0)(s, t), expected)


def test_kl_at_high_temperature_is_half_the_mean_square_of_centred_logits():
    s, t = logits(8, 10), logits(8, 10, seed=1)
    delta = s - t
    centred = delta - delta.mean(-1, keepdim=True)
    limit = (centred.square().sum(-1) / (2 * 10)).mean()
    torch.testing.assert_close(losses.kl_divergence(s, t, 1e4), limit, rtol=2e-3, atol=0)


def test_soft_cross_entropy_has_the_gradient_of_kl():
    s, t = logits(4, 10).requires_grad_(), logits(4, 10, seed=1)
    (a,) = torch.autograd.grad(losses.kl_divergence(s, t, 2.0), s)
    (b,) = torch.autograd.grad(losses.soft_cross_entropy(s, t, 2.0), s)
    torch.testing.assert_close(a, b)


def test_reverse_kl_is_kl_with_the_sides_exchanged():
    s, t = logits(4, 10), logits(4, 10, seed=1)
    torch.testing.assert_close(losses.reverse_kl(s, t, 2.0), losses.kl_divergence(t, s, 2.0))


def test_mse_by_default_is_torchs():
    s, t = logits(4, 10), logits(4, 10, seed=1)
    torch.testing.assert_close(losses.mse_logits(s, t), torch.nn.functional.mse_loss(s, t))


def test_cosine_is_torchs_embedding_loss_with_target_one():
    s, t = logits(4, 10), logits(4, 10, seed=1)
    expected = torch.nn.functional.cosine_embedding_loss(s, t, torch.ones(4))
    torch.testing.assert_close(losses.cosine(s, t), expected)


finite = st.floats(-40, 40)
pairs = st.integers(2, 6).flatmap(
    lambda c: st.tuples(
        st.lists(st.lists(finite, min_size=c, max_size=c), min_size=3, max_size=3),
        st.lists(st.lists(finite, min_size=c, max_size=c), min_size=3, max_size=3),
    )
)


@settings(max_examples=40, deadline=None)
@given(pairs, st.floats(0.3, 20))
def test_divergences_are_never_negative_and_jensen_shannon_is_bounded(pair, temperature):
    s, t = (torch.tensor(side, dtype=torch.float64) for side in pair)
    for name in ("kl", "reverse_kl", "jensen_shannon"):
        rows = make(name, temperature, reduction="none")(s, t)
        assert (rows >= -1e-12 * temperature**2).all()
    assert (rows <= temperature**2 * math.log(2) * (1 + 1e-12)).all()


@settings(max_examples=40, deadline=None)
@given(pairs, st.floats(-20, 20))
def test_a_constant_added_to_all_logits_changes_no_divergence(pair, shift):
    s, t = (torch.tensor(side, dtype=torch.float64) for side in pair)
    for name in ("kl", "reverse_kl", "jensen_shannon", "soft_cross_entropy"):
        loss = make(name, 2.0)
        torch.testing.assert_close(loss(s + shift, t), loss(s, t), rtol=1e-8, atol=1e-10)


def test_jensen_shannon_is_symmetric():
    s, t = logits(4, 10), logits(4, 10, seed=1)
    torch.testing.assert_close(losses.jensen_shannon(s, t), losses.jensen_shannon(t, s))
