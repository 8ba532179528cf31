"""Channel-wise distillation of maps."""

import loss_formulas as formulas
import numpy as np
import pytest
import torch
from loss_cases import logits

from distillation.errors import ConfigError, ShapeError
from distillation.losses import ChannelWiseKnowledgeDistillationLoss, accepts

MAP = (2, 3, 4, 5)


def distributions(maps, mode):
    """(rows, classes) of a softmax over positions per channel, or over channels per position."""
    maps = maps.numpy().reshape(2, 3, 20)
    return maps.reshape(6, 20) if mode == "channel_wise" else maps.swapaxes(1, 2).reshape(40, 3)


@pytest.mark.parametrize("mode", ["channel_wise", "spatial_wise"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_its_formula(mode, temperature):
    s, t = logits(*MAP), logits(*MAP, seed=1)
    rows = formulas.kl(distributions(s, mode), distributions(t, mode), temperature)
    loss = ChannelWiseKnowledgeDistillationLoss(mode, temperature)(s, t)
    np.testing.assert_allclose(loss.numpy(), rows.mean(), rtol=1e-10)


def test_defaults_are_the_papers():
    loss = ChannelWiseKnowledgeDistillationLoss()
    assert (loss.normalization_mode, loss.temperature) == ("channel_wise", 4.0)


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("mode", ["channel_wise", "spatial_wise"])
def test_gradcheck_and_zero_at_equality(mode, ignore_index):
    s, t = logits(*MAP).requires_grad_(), logits(*MAP, seed=1)
    loss = ChannelWiseKnowledgeDistillationLoss(mode, 2.0, ignore_index)
    target = None
    if ignore_index is not None:
        target = torch.randint(2, (2, 4, 5), generator=torch.Generator().manual_seed(0)) * 255
    assert torch.autograd.gradcheck(lambda student: loss(student, t, target), (s,))
    assert loss(t.clone(), t, target).item() == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("mode", ["channel_wise", "spatial_wise"])
def test_ignored_positions_do_not_exist(mode):
    """Two columns are ignored: the loss is that of the maps without them."""
    s, t = logits(*MAP), logits(*MAP, seed=1)
    target = torch.zeros(2, 4, 5, dtype=torch.long)
    target[:, :, 3:] = 255
    loss = ChannelWiseKnowledgeDistillationLoss(mode, ignore_index=255)(s, t, target)
    cut = ChannelWiseKnowledgeDistillationLoss(mode)(s[..., :3], t[..., :3])
    torch.testing.assert_close(loss, cut)


@pytest.mark.parametrize("mode", ["channel_wise", "spatial_wise"])
def test_an_image_that_is_ignored_entirely_does_not_count(mode):
    s, t = logits(*MAP).requires_grad_(), logits(*MAP, seed=1)
    target = torch.zeros(2, 4, 5, dtype=torch.long)
    target[1] = 255
    loss = ChannelWiseKnowledgeDistillationLoss(mode, ignore_index=255)(s, t, target)
    loss.backward()
    first = ChannelWiseKnowledgeDistillationLoss(mode)(s[:1].detach(), t[:1])
    torch.testing.assert_close(loss.detach(), first)
    assert torch.isfinite(s.grad).all()
    assert (s.grad[1] == 0).all()


@pytest.mark.parametrize("mode", ["channel_wise", "spatial_wise"])
def test_everything_ignored_is_zero(mode):
    s = logits(*MAP).requires_grad_()
    loss = ChannelWiseKnowledgeDistillationLoss(mode, ignore_index=0)
    value = loss(s, logits(*MAP, seed=1), torch.zeros(2, 4, 5).long())
    value.backward()
    assert value.item() == 0
    assert (s.grad == 0).all()


def test_target_is_taken_only_with_an_ignore_index():
    assert "target" in accepts(ChannelWiseKnowledgeDistillationLoss(ignore_index=255))
    assert "target" not in accepts(ChannelWiseKnowledgeDistillationLoss())


def test_errors():
    maps = torch.zeros(MAP)
    loss = ChannelWiseKnowledgeDistillationLoss
    with pytest.raises(ConfigError, match="unknown normalization_mode 'chanel_wise'; did you mean"):
        loss("chanel_wise")
    with pytest.raises(ConfigError, match="temperature"):
        loss(temperature=-1)
    with pytest.raises(ShapeError, match=r"must be \(batch, channels, height, width\)"):
        loss()(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="differ in shape"):
        loss()(maps, torch.zeros(2, 3, 8, 10))
    with pytest.raises(ConfigError, match="needs target"):
        loss(ignore_index=255)(maps, maps)
    with pytest.raises(ConfigError, match="would not use target"):
        loss()(maps, maps, torch.zeros(2, 4, 5).long())
    with pytest.raises(ShapeError, match=r"target has shape \(2, 5, 4\)"):
        loss(ignore_index=255)(maps, maps, torch.zeros(2, 5, 4).long())
