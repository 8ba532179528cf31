"""What KL means here, and what the labml tutorial's loss is in these terms."""

import pytest
import torch
from loss_cases import logits
from torch import nn

from distillation.errors import ConfigError, ShapeError
from distillation.losses import (
    LabmlSoftTargetsLoss,
    LogitsDistillationLoss,
    kl_divergence,
    labml_soft_targets,
    labml_weight,
)

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")


def tutorial(student, teacher, temperature=5.0):
    """The tutorial's lines: `kl_div_loss = nn.KLDivLoss(log_target=True)` on log-softmaxes."""
    soft_targets = nn.functional.log_softmax(teacher / temperature, dim=-1)
    soft_prob = nn.functional.log_softmax(student / temperature, dim=-1)
    return nn.KLDivLoss(log_target=True)(soft_prob, soft_targets)


def plain_kl(student, teacher, temperature):
    """KL(teacher ‖ student), mean over the batch, without the factor T²."""
    p = torch.softmax(teacher / temperature, -1)
    q = torch.softmax(student / temperature, -1)
    return (p * (p / q).log()).sum(-1).mean()


def test_ours_is_t_squared_times_the_plain_divergence():
    s, t = logits(32, 10), logits(32, 10, seed=1)
    torch.testing.assert_close(kl_divergence(s, t, 5.0), 25 * plain_kl(s, t, 5.0))


def test_the_tutorials_weighted_loss_is_0_4_times_ours():
    """100 · mean over 10 classes = 10 · KL = 0.4 · T² · KL = 0.4 · ours at T = 5."""
    s, t = logits(32, 10), logits(32, 10, seed=1)
    weighted = 100 * tutorial(s, t)
    torch.testing.assert_close(weighted, 0.4 * 5.0**2 * plain_kl(s, t, 5.0))
    torch.testing.assert_close(weighted, 0.4 * LogitsDistillationLoss(temperature=5.0)(s, t))


def test_gradients_stand_in_the_same_proportion():
    s, t = logits(32, 10).requires_grad_(), logits(32, 10, seed=1)
    (theirs,) = torch.autograd.grad(100 * tutorial(s, t), s)
    (ours,) = torch.autograd.grad(kl_divergence(s, t, 5.0), s)
    torch.testing.assert_close(theirs, 0.4 * ours)


@pytest.mark.parametrize(
    ("classes", "temperature", "weight"), [(10, 5, 100), (100, 2, 30), (3, 1, 1)]
)
def test_the_factor_for_other_settings(classes, temperature, weight):
    s, t = logits(8, classes), logits(8, classes, seed=1)
    factor = labml_weight(classes, temperature, weight)
    torch.testing.assert_close(
        weight * tutorial(s, t, temperature), factor * kl_divergence(s, t, temperature)
    )


def test_the_factor_of_the_tutorial():
    assert labml_weight(classes=10) == pytest.approx(0.4)


def test_the_loss_is_the_tutorials_bit_for_bit():
    s, t = logits(64, 10, dtype=torch.float32), logits(64, 10, seed=1, dtype=torch.float32)
    s.requires_grad_()
    assert torch.equal(labml_soft_targets(s, t), tutorial(s, t))
    theirs, ours = 100.0 * tutorial(s, t), LabmlSoftTargetsLoss()(s, t)
    assert torch.equal(ours, theirs)
    (a,), (b,) = torch.autograd.grad(ours, s), torch.autograd.grad(theirs, s)
    assert torch.equal(a, b)


def test_weight_and_temperature_take_effect():
    s, t = logits(8, 10), logits(8, 10, seed=1)
    loss = LabmlSoftTargetsLoss(temperature=2.0, weight=3.0)(s, t)
    torch.testing.assert_close(loss, 3 * tutorial(s, t, 2.0))


def test_gradcheck_and_zero_at_equality():
    s, t = logits(3, 4).requires_grad_(), logits(3, 4, seed=1)
    loss = LabmlSoftTargetsLoss()
    assert torch.autograd.gradcheck(lambda student: loss(student, t), (s,))
    assert loss(t.clone(), t).item() == pytest.approx(0, abs=1e-14)


def test_classes_along_another_dimension():
    s, t = logits(3, 4, 5), logits(3, 4, 5, seed=1)
    loss = LabmlSoftTargetsLoss(dim=1)(s, t)
    torch.testing.assert_close(loss, LabmlSoftTargetsLoss()(s.mT, t.mT))


def test_errors():
    with pytest.raises(ShapeError, match="10 classes and the teacher 9"):
        LabmlSoftTargetsLoss()(torch.zeros(2, 10), torch.zeros(2, 9))
    with pytest.raises(ConfigError, match="weight must be"):
        LabmlSoftTargetsLoss(weight=-1)
    with pytest.raises(ConfigError, match="temperature must be"):
        LabmlSoftTargetsLoss(temperature=0)
