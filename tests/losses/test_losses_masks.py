"""Masked rows, ignore indices and impossible classes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import LOSSES, logits, make

from distillation import losses
from distillation.errors import ConfigError, ShapeError

INF = float("inf")


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_is_the_same_as_leaving_the_rows_out(name, reduction):
    s, t = logits(6, 7), logits(6, 7, seed=1)
    mask = torch.tensor([True, False, True, True, False, True])
    loss = make(name, 2.0, reduction=reduction)
    torch.testing.assert_close(loss(s, t, mask=mask), loss(s[mask], t[mask]))


@pytest.mark.parametrize("name", LOSSES)
def test_unreduced_rows_are_zero_where_masked(name):
    s, t = logits(2, 3, 7), logits(2, 3, 7, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])  # an attention mask of integers
    loss = make(name, reduction="none")
    rows = loss(s, t, mask=mask)
    assert torch.equal(rows, loss(s, t) * mask)


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_with_all_rows_masked_loss_and_gradient_are_zero(name, reduction):
    s, t = logits(3, 7).requires_grad_(), logits(3, 7, seed=1)
    loss = make(name, reduction=reduction)(s, t, mask=torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(s.grad, torch.zeros(3, 7, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_costs_nothing(name):
    s = torch.zeros(0, 7, requires_grad=True)
    loss = make(name)(s, torch.zeros(0, 7))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("rubbish", [math.nan, INF, -INF])
@pytest.mark.parametrize("name", LOSSES)
def test_what_masked_rows_hold_does_not_matter(name, rubbish):
    s, t = logits(3, 7), logits(3, 7, seed=1)
    expected = make(name)(s[:2], t[:2])
    s[2], t[2] = rubbish, rubbish
    s.requires_grad_()
    loss = make(name)(s, t, mask=torch.tensor([True, True, False]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    assert torch.isfinite(s.grad).all()
    assert (s.grad[2] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_ignore_index_masks_rows_by_their_label(name):
    s, t = logits(2, 3, 7), logits(2, 3, 7, seed=1)
    target = torch.tensor([[0, -100, 2], [-100, -100, 6]])
    loss = make(name, ignore_index=-100)(s, t, target=target)
    torch.testing.assert_close(loss, make(name)(s, t, mask=target != -100))


def test_ignore_index_and_mask_both_count():
    s, t = logits(4, 7), logits(4, 7, seed=1)
    loss = losses.LogitsDistillationLoss(ignore_index=0)
    value = loss(s, t, torch.tensor([0, 1, 2, 3]), mask=torch.tensor([1, 1, 0, 1]))
    torch.testing.assert_close(value, losses.kl_divergence(s[[1, 3]], t[[1, 3]]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_at_minus_infinity_on_both_sides_does_not_exist(name):
    s, t = logits(4, 5), logits(4, 5, seed=1)
    expected = make(name, 2.0, reduction="batchmean")(s, t)
    s2, t2 = (torch.cat([side, torch.full((4, 2), -INF)], dim=1) for side in (s, t))
    s2.requires_grad_()
    loss = make(name, 2.0, reduction="batchmean")(s2, t2)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    assert torch.isfinite(s2.grad).all()
    assert (s2.grad[:, 5:] == 0).all()


@pytest.mark.parametrize("name", ["kl", "jensen_shannon", "soft_cross_entropy"])
def test_a_class_impossible_for_the_teacher_alone_gives_a_finite_loss(name):
    s, t = logits(4, 5).requires_grad_(), logits(4, 5, seed=1)
    t[:, 3] = -INF
    loss = make(name)(s, t)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


def test_a_class_impossible_for_the_student_alone():
    """Forward KL is infinite, and says so; reverse KL and Jensen-Shannon stay finite."""
    s, t = logits(4, 5), logits(4, 5, seed=1)
    s[:, 3] = -INF
    s.requires_grad_()
    assert losses.kl_divergence(s, t).item() == INF
    for loss in (losses.reverse_kl(s, t), losses.jensen_shannon(s, t)):
        (grad,) = torch.autograd.grad(loss, s)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=5, max_size=5), st.integers(0, 1000))
def test_batchmean_divides_by_the_rows_that_count(keep, seed):
    s, t = logits(5, 4, seed=seed), logits(5, 4, seed=seed + 1)
    mask = torch.tensor(keep)
    rows = losses.kl_divergence(s, t, 3.0, reduction="none")
    expected = rows[mask].sum() / max(sum(keep), 1)
    torch.testing.assert_close(losses.kl_divergence(s, t, 3.0, mask=mask), expected)


def test_a_mask_of_another_shape_is_named():
    with pytest.raises(ShapeError, match=r"mask has shape \(3,\).*must have \(2, 3\)"):
        losses.kl_divergence(logits(2, 3, 7), logits(2, 3, 7), mask=torch.ones(3).bool())


def test_a_mask_of_floats_is_refused():
    with pytest.raises(ConfigError, match=r"mask must hold integers or bools.*float32"):
        losses.kl_divergence(logits(2, 7), logits(2, 7), mask=torch.ones(2))


def test_an_ignore_index_needs_targets():
    with pytest.raises(ConfigError, match="ignore_index=-100 and needs target"):
        losses.LogitsDistillationLoss(ignore_index=-100)(logits(2, 7), logits(2, 7))


def test_targets_without_ignore_index_would_have_no_effect():
    with pytest.raises(ConfigError, match="no ignore_index"):
        losses.LogitsDistillationLoss()(logits(2, 7), logits(2, 7), target=torch.zeros(2).long())


def test_targets_of_another_shape_are_named():
    loss = losses.LogitsDistillationLoss(ignore_index=0)
    with pytest.raises(ShapeError, match="target has shape"):
        loss(logits(2, 7), logits(2, 7), target=torch.zeros(3).long())


@pytest.mark.parametrize("low", ["student", "teacher"])
@pytest.mark.parametrize(
    "loss",
    [
        losses.LogitsDistillationLoss(),
        losses.ReverseKLLoss(),
        losses.JensenShannonLoss(),
        losses.SoftCrossEntropyLoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_two_ways_of_masking_a_class_go_together(loss, low):
    """-inf on one side and -10,000 on the other: no probability is left on either."""
    s, t = logits(2, 5), logits(2, 5, seed=1)
    expected = loss(s[:, :4], t[:, :4])
    s[:, 4], t[:, 4] = (-1e4, -INF) if low == "student" else (-INF, -1e4)
    s.requires_grad_()
    found = loss(s, t)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert s.grad.isfinite().all()


def test_an_empty_batch_of_the_tutorials_loss_or_of_features_costs_nothing():
    s = torch.zeros(0, 7, requires_grad=True)
    maps = torch.zeros(0, 2, 3, 3, requires_grad=True)
    labml = losses.LabmlSoftTargetsLoss()(s, s.detach())
    for loss in (labml, losses.MGDLoss(2, 2)(maps, maps.detach())):
        assert loss.item() == 0
        loss.backward()
