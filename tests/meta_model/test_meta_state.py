"""What a converted model shows: state dict, parameters, modules, modes, contexts, dtypes."""

from __future__ import annotations

import pytest
import torch
from meta_cases import (
    FeatureLoss,
    Net,
    assert_same,
    batch,
    converted,
    features,
    loss_of,
    make_teacher,
    pair,
)
from torch import nn

from distillation import LogitsDistillationLoss, convert, export
from distillation.errors import DistillationError
from distillation.losses import ScheduledLossBalancer, UncertaintyLossBalancer

LOSS_KEYS = {"_loss_modules.0.project.weight", "_loss_modules.0.project.bias"}


def test_without_loss_parameters_the_state_dict_is_the_students():
    student, teacher = pair()
    keys = list(student.state_dict())
    assert list(converted(student, teacher).state_dict()) == keys


def test_loss_parameters_are_trained_and_saved_with_the_model():
    student, teacher = pair()
    plain = set(student.state_dict())
    model = converted(student, teacher, criterion=features())
    assert set(model.state_dict()) == plain | LOSS_KEYS
    assert {name for name, _ in model.named_parameters()} >= LOSS_KEYS
    loss_of(model, *batch()).backward()
    assert model.loss_modules[0].project.weight.grad.abs().sum() > 0


def test_the_state_dict_reloads_strictly():
    first = converted(*pair(), criterion=features())
    second = converted(*pair(seed=5), criterion=features(), loss_balancer=None)
    with torch.no_grad():
        first.loss_modules[0].project.weight.add_(1)
    second.load_state_dict(first.state_dict(), strict=True)
    assert_same(second.state_dict(), first.state_dict())


@pytest.mark.parametrize("show", [True, False])
def test_a_parent_reloads_its_own_state_dict(show):
    def parent(seed):
        model = converted(*pair(seed), criterion=features(), expose_minimal_state_dict=not show)
        return nn.Sequential(nn.Sequential(model), nn.Linear(10, 2))

    first, second = parent(0), parent(5)
    first[0][0].loss_modules[0].project.bias.data.fill_(3.0)
    second.load_state_dict(first.state_dict(), strict=True)
    assert_same(second.state_dict(), first.state_dict())


def test_assigning_load_replaces_the_parameters():
    first = converted(*pair(), criterion=features())
    second = converted(*pair(seed=5), criterion=features())
    state = {name: value.clone() for name, value in first.state_dict().items()}
    second.load_state_dict(state, strict=True, assign=True)
    assert second.loss_modules[0].project.weight.data_ptr() == (
        state["_loss_modules.0.project.weight"].data_ptr()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("_loss_modules.0.project.bias"), "Missing.*_loss_modules.0.project.bias"),
        (lambda s: s.update({"_loss_modules.7.x": torch.ones(1)}), "Unexpected.*_loss_modules.7.x"),
        (lambda s: s.update({"_teacher_model.x": torch.ones(1)}), "Unexpected.*_teacher_model.x"),
        (lambda s: s.update({"_loss_modules.0.project.bias": torch.ones(1)}), "size mismatch"),
    ],
    ids=["missing", "unexpected", "teacher", "shape"],
)
def test_what_does_not_fit_is_named(change, message):
    model = converted(*pair(), criterion=features())
    state = model.state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        model.load_state_dict(state)


def test_losses_keep_the_criterions_order():
    names = [f"layer{i}" for i in range(8)]

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            for name in names:
                self.add_module(name, nn.Conv2d(1, 1, 1))

        def forward(self, x):
            return sum(getattr(self, name)(x) for name in names)

    losses = {(name, name): FeatureLoss(1, 1) for name in names}
    model = convert(Wide(), teacher_model=Wide(), criterion=losses)
    assert list(model.loss_modules) == list(losses.values())
    model(torch.ones(1, 1, 2, 2))
    assert list(model.compute_kd_loss(skip_balancer=True)) == [f"FeatureLoss_{i}" for i in range(8)]


def test_a_balancer_with_learned_weights_is_part_of_the_model():
    model = converted(*pair(), loss_balancer=UncertaintyLossBalancer(1))
    assert "_loss_balancer.log_variances" in model.state_dict()
    loss_of(model, *batch()).backward()
    assert model.loss_balancer.log_variances.grad.abs().sum() > 0


def test_a_scheduled_balancer_counts_training_steps_only():
    model = converted(*pair(), loss_balancer=ScheduledLossBalancer(0.5, steps=10))
    for mode in (True, False, True):
        loss_of(model.train(mode), *batch())
    assert model.state_dict()["_loss_balancer.step"] == 2


def test_the_teacher_is_nowhere_by_default():
    student, teacher = pair()
    model = converted(student, teacher, criterion=features())
    theirs = {id(t) for t in teacher.state_dict(keep_vars=True).values()}
    assert not theirs & {id(p) for p in model.parameters()}
    assert not theirs & {id(b) for b in model.buffers()}
    assert not theirs & {id(t) for t in model.state_dict(keep_vars=True).values()}
    assert teacher not in list(model.modules())


def test_a_shown_teacher_is_in_the_state_dict_and_never_in_the_parameters():
    student, teacher = pair()
    own = list(student.state_dict())
    model = converted(student, teacher, expose_minimal_state_dict=False)
    shown = [f"_teacher_model.{name}" for name in teacher.state_dict()]
    assert set(model.state_dict()) == {*own, *shown}
    assert len(list(model.parameters())) == len(list(Net().parameters()))


def test_a_shown_teacher_is_loaded():
    first = converted(*pair(), expose_minimal_state_dict=False)
    second = converted(Net(), make_teacher(seed=9), expose_minimal_state_dict=False)
    second.load_state_dict(first.state_dict(), strict=True)
    assert_same(second.teacher_model.state_dict(), first.teacher_model.state_dict())


def test_hiding_contexts_nest_and_restore():
    model = converted(*pair(), criterion=features(), expose_minimal_state_dict=False)
    everything = set(model.state_dict())
    with model.hide_teacher_model(), model.hide_loss_modules():
        assert set(model.state_dict()) == set(Net().state_dict())
        with model.hide_loss_modules(enable=False):
            assert set(model.state_dict()) >= LOSS_KEYS
            with model.hide_loss_modules():
                pass
            assert set(model.state_dict()) >= LOSS_KEYS
        assert not set(model.state_dict()) & LOSS_KEYS
        assert len(list(model.parameters())) == len(list(Net().parameters()))
    assert set(model.state_dict()) == everything


def test_a_context_restores_after_an_error():
    model = converted(*pair())
    with pytest.raises(ZeroDivisionError), model.only_student_forward():
        1 / 0  # noqa: B018
    assert loss_of(model, *batch()) > 0


def test_only_teacher_and_only_student_forward():
    student, teacher = pair()
    x, _ = batch()
    model = converted(student, teacher).eval()
    own = model(x)
    with model.only_teacher_forward():
        assert torch.equal(model(x), teacher(x))
        with model.only_student_forward():
            assert torch.equal(model(x), own)
        assert torch.equal(model(x), teacher(x))
        with model.only_teacher_forward(enable=False):
            assert torch.equal(model(x), own)
        assert torch.equal(model(x), teacher(x))
    assert torch.equal(model(x), own)


def test_the_student_alone_leaves_nothing_for_a_loss():
    model = converted(*pair())
    with model.only_student_forward():
        model(batch()[0])
    with pytest.raises(DistillationError, match="forward"):
        model.compute_kd_loss()


def test_the_student_alone_drops_the_pass_before_it():
    model = converted(*pair())
    model(batch(seed=1)[0])
    with model.only_student_forward():
        model(batch(seed=2)[0])
    with pytest.raises(DistillationError, match="Run the student's forward first"):
        model.compute_kd_loss()


def test_train_and_eval_return_the_model_and_leave_the_teacher():
    student, teacher = pair()
    model = converted(student, teacher)
    assert model.eval() is model and model.train() is model
    assert model.training and not teacher.training


def test_a_teacher_may_be_told_to_follow():
    student, teacher = pair()
    model = converted(student, teacher, teacher_mode="follow").train()
    assert teacher.training
    before = teacher.stem[1].running_mean.clone()
    model(batch()[0])
    assert not torch.equal(teacher.stem[1].running_mean, before)
    model.eval()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("inside", [False, True])
def test_casts_reach_the_teacher_also_through_a_parent(inside):
    student, teacher = pair()
    model = converted(student, teacher)
    outer = nn.Sequential(model) if inside else model
    outer.double()
    assert teacher.head.weight.dtype == torch.float64
    x, y = batch()
    assert loss_of(model, x.double(), y).dtype == torch.float64
    outer.to(torch.bfloat16)
    assert teacher.head.weight.dtype == torch.bfloat16
    outer.half()
    assert teacher.head.weight.dtype == torch.float16
    outer.to(memory_format=torch.channels_last)
    assert teacher.body.weight.is_contiguous(memory_format=torch.channels_last)


def test_emptying_the_model_does_not_empty_the_teacher():
    student, teacher = pair()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    converted(student, teacher).to_empty(device="cpu")
    assert_same(teacher.state_dict(), before)


def test_a_sequential_student_keeps_its_length_and_its_slices():
    def plain():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

    criterion = {("3", "head"): LogitsDistillationLoss(), ("1", "drop"): VectorLoss(12, 20)}
    x, _ = batch()
    model = convert(plain(), teacher_model=make_teacher(), criterion=criterion)
    assert torch.equal(model(x), plain()(x))
    assert len(model) == 4 and isinstance(model[-1], nn.Linear)
    assert type(model[:2]) is nn.Sequential
    assert any(name.startswith("_loss_modules.1") for name, _ in model.named_parameters())
    assert type(export(model)) is nn.Sequential


class VectorLoss(nn.Module):
    def __init__(self, student_width, teacher_width):
        super().__init__()
        self.project = nn.Linear(student_width, teacher_width)

    def forward(self, student_output, teacher_output):
        return (self.project(student_output) - teacher_output).pow(2).mean()


def test_a_forward_that_walks_over_its_children_meets_only_its_own():
    class Walker(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Flatten(), nn.Linear(64, 10)

        def forward(self, x):
            for child in self.children():
                x = child(x)
            return x

    criterion = {
        ("second", "head"): LogitsDistillationLoss(),
        ("first", "drop"): VectorLoss(64, 20),
    }
    model = convert(Walker(), teacher_model=make_teacher(), criterion=criterion)
    assert model(batch()[0]).shape == (8, 10)
    assert model.compute_kd_loss(skip_balancer=True)["VectorLoss_1"] > 0


def test_a_plain_students_checkpoint_is_loaded_after_the_conversion():
    student, teacher = pair()
    state = {name: tensor + 1 for name, tensor in student.state_dict().items()}
    model = converted(
        student, teacher, criterion=features(), loss_balancer=UncertaintyLossBalancer(2)
    )
    before = model.loss_balancer.log_variances.clone()
    with pytest.warns(UserWarning, match="nothing for _loss_modules and _loss_balancer"):
        model.load_state_dict(state)
    assert torch.equal(model.head.weight, state["head.weight"])
    assert torch.equal(model.loss_balancer.log_variances, before)


def test_a_checkpoint_with_some_of_the_losses_is_not_whole():
    model = converted(*pair(), criterion=features(), loss_balancer=UncertaintyLossBalancer(2))
    state = model.state_dict()
    del state["_loss_balancer.log_variances"]
    with pytest.raises(RuntimeError, match=r"Missing.*_loss_balancer\.log_variances"):
        model.load_state_dict(state)
