"""The trainers' losses: task and distillation together."""

from typing import NamedTuple

import pytest
import torch
from loss_cases import logits
from torch import Tensor, nn

from distillation.errors import ConfigError, ShapeError
from distillation.losses import (
    ChannelWiseKnowledgeDistillationLoss,
    KDLogitsLoss,
    LogitsDistillationLoss,
    SegKDLoss,
    kl_divergence,
)


class Output(NamedTuple):
    student_output: object
    teacher_output: object


@pytest.fixture
def batch():
    target = torch.tensor([0, 3, 2, 9])
    return Output(logits(4, 10).requires_grad_(), logits(4, 10, seed=1)), target


def test_total_is_the_weighted_sum_of_task_and_distillation(batch):
    output, target = batch
    loss = KDLogitsLoss(nn.CrossEntropyLoss(), distillation_loss_coeff=0.8, temperature=3.0)
    total, items = loss(output, target)
    task = nn.functional.cross_entropy(output.student_output, target)
    kd = kl_divergence(*output, temperature=3.0)
    assert torch.equal(total, task * (1 - 0.8) + kd * 0.8)
    assert torch.equal(items, torch.stack([total, task, kd]).detach())


def test_items_are_named_and_detached(batch):
    loss = KDLogitsLoss(nn.CrossEntropyLoss())
    _, items = loss(*batch)
    assert loss.component_names == ["Loss", "Task Loss", "Distillation Loss"]
    assert items.shape == (3,)
    assert not items.requires_grad


def test_gradient_is_that_of_finite_differences(batch):
    (student, teacher), target = batch
    loss = KDLogitsLoss(nn.CrossEntropyLoss(), temperature=2.0)
    assert torch.autograd.gradcheck(lambda s: loss(Output(s, teacher), target)[0], (student,))


@pytest.mark.parametrize(("coeff", "part"), [(0.0, 1), (1.0, 2)])
def test_the_coefficient_goes_from_task_alone_to_distillation_alone(batch, coeff, part):
    total, items = KDLogitsLoss(nn.CrossEntropyLoss(), distillation_loss_coeff=coeff)(*batch)
    assert total.item() == items[part].item()


def test_a_task_loss_may_return_its_own_items(batch):
    class WithItems(nn.CrossEntropyLoss):
        def forward(self, *args):
            loss = super().forward(*args)
            return loss, loss.detach().unsqueeze(0)

    total, items = KDLogitsLoss(WithItems())(*batch)
    plain, plain_items = KDLogitsLoss(nn.CrossEntropyLoss())(*batch)
    assert torch.equal(total, plain)
    assert torch.equal(items, plain_items)


def test_any_module_may_be_the_distillation_loss(batch):
    output, target = batch
    _, items = KDLogitsLoss(nn.CrossEntropyLoss(), nn.MSELoss())(output, target)
    torch.testing.assert_close(items[2], nn.functional.mse_loss(*output).detach())


def test_the_target_and_keywords_reach_a_distillation_loss_that_takes_them(batch):
    class Seen(nn.Module):
        def forward(self, student: Tensor, teacher: Tensor, *, target: Tensor, epoch: int = 0):
            return (student - teacher)[range(4), target].square().mean() * epoch

    (student, teacher), target = batch
    _, items = KDLogitsLoss(nn.CrossEntropyLoss(), Seen())(*batch, epoch=3)
    expected = (student - teacher)[range(4), target].square().mean() * 3
    torch.testing.assert_close(items[2], expected.detach())


def test_a_keyword_that_the_distillation_loss_does_not_take_is_an_error(batch):
    with pytest.raises(ConfigError, match="unknown loss keyword 'maks'; did you mean 'mask'"):
        KDLogitsLoss(nn.CrossEntropyLoss())(*batch, maks=torch.ones(4))


def test_segmentation_logits_have_their_classes_where_cross_entropy_has_them():
    output = Output(logits(2, 5, 3, 3), logits(2, 5, 3, 3, seed=1))
    _, items = KDLogitsLoss(nn.CrossEntropyLoss())(output, torch.zeros(2, 3, 3).long())
    torch.testing.assert_close(items[2], kl_divergence(*output, dim=1))


def test_weights_of_the_parts_are_its_parameters():
    from distillation.losses import MGDLoss

    loss = KDLogitsLoss(nn.CrossEntropyLoss(), MGDLoss(2, 3))
    assert len(list(loss.parameters())) == 6


def test_logits_loss_errors(batch):
    output, target = batch
    ce = nn.CrossEntropyLoss()
    with pytest.raises(ConfigError, match=r"distillation_loss_coeff must be .* at most 1"):
        KDLogitsLoss(ce, distillation_loss_coeff=1.5)
    with pytest.raises(ConfigError, match="temperature must be"):
        KDLogitsLoss(ce, temperature=0)
    with pytest.raises(ConfigError, match="temperature=3 is for the default distillation loss"):
        KDLogitsLoss(ce, LogitsDistillationLoss(), temperature=3)
    with pytest.raises(ConfigError, match="task_loss_fn must be callable, not 'ce'"):
        KDLogitsLoss("ce")
    with pytest.raises(ConfigError, match=r"KDOutput.*not a Tensor"):
        KDLogitsLoss(ce)(output.student_output, target)
    with pytest.raises(ShapeError, match=r"task_loss_fn must return a scalar.*shape \(4,\)"):
        KDLogitsLoss(nn.CrossEntropyLoss(reduction="none"))(output, target)
    with pytest.raises(ShapeError, match="10 classes and the teacher 9"):
        KDLogitsLoss(ce)(Output(output.student_output, torch.zeros(4, 9)), target)


def segmentation(heads):
    maps = [logits(2, 3, 4, 4, seed=i) for i in range(2 * heads)]
    target = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    return maps[:heads], maps[heads:], target


def test_segmentation_adds_heads_and_parts_by_their_weights():
    students, teachers, target = segmentation(2)
    kd = ChannelWiseKnowledgeDistillationLoss(temperature=3.0)
    loss = SegKDLoss(kd, nn.CrossEntropyLoss(), weights=[1.0, 0.4], kd_loss_weights=[1, 4])
    total, items = loss(Output(tuple(students), tuple(teachers)), target)
    parts = [
        (nn.functional.cross_entropy(s, target), kd(s, t))
        for s, t in zip(students, teachers, strict=True)
    ]
    expected = sum(w * (a + 4 * b) for w, (a, b) in zip([1.0, 0.4], parts, strict=True))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(items, torch.stack([*parts[0], *parts[1], expected]))


def test_segmentation_names_its_items():
    loss = SegKDLoss(nn.MSELoss(), nn.CrossEntropyLoss(), weights=(1.0, 0.4))
    heads = ["Head-0_CE_Loss", "Head-0_KD_Loss", "Head-1_CE_Loss", "Head-1_KD_Loss"]
    assert loss.component_names == [*heads, "Total_Loss"]


def test_one_map_on_each_side_is_one_head_and_gradients_are_right():
    (s,), (t,), target = segmentation(1)
    loss = SegKDLoss(ChannelWiseKnowledgeDistillationLoss(), nn.CrossEntropyLoss())
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(Output(x, t), target)[0], (s,))


def test_the_target_reaches_a_kd_loss_with_an_ignore_index():
    (s,), (t,), target = segmentation(1)
    kd = ChannelWiseKnowledgeDistillationLoss(ignore_index=0)
    _, items = SegKDLoss(kd, nn.CrossEntropyLoss())(Output(s, t), target)
    torch.testing.assert_close(items[1], kd(s, t, target))


def test_segmentation_errors():
    students, teachers, target = segmentation(2)
    mse, ce = nn.MSELoss(), nn.CrossEntropyLoss()
    with pytest.raises(ShapeError, match="student has 2 prediction heads, the teacher 1"):
        SegKDLoss(mse, ce, weights=(1, 1))(Output(students, teachers[0]), target)
    with pytest.raises(ShapeError, match="weights has 1 numbers"):
        SegKDLoss(mse, ce)(Output(students, teachers), target)
    with pytest.raises(ConfigError, match="kd_loss_weights must be the pair"):
        SegKDLoss(mse, ce, kd_loss_weights=(1, 2, 3))
    with pytest.raises(ConfigError, match="kd_loss_weights must be a sequence of numbers"):
        SegKDLoss(mse, ce, kd_loss_weights=0.5)
    with pytest.raises(ConfigError, match="weights must hold one number per prediction head"):
        SegKDLoss(mse, ce, weights=())
    with pytest.raises(ConfigError, match=r"each of weights must be .* at least 0"):
        SegKDLoss(mse, ce, weights=(-1,))
    with pytest.raises(ConfigError, match="KDOutput"):
        SegKDLoss(mse, ce)(students[0], target)


@pytest.mark.parametrize("of_pairs", [nn.CosineEmbeddingLoss(), nn.MarginRankingLoss()])
def test_a_loss_whose_target_is_no_label_is_refused(of_pairs):
    with pytest.raises(ConfigError, match=r"wants a target of 1 or -1.*CosineLoss"):
        KDLogitsLoss(nn.CrossEntropyLoss(), of_pairs)
