"""KDModule: a student and a teacher behind one forward, the teacher as a guest."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from distillation import KDModule, KDOutput, NormalizationAdapter
from distillation.checkpoint import fingerprint
from distillation.errors import CheckpointError, ConfigError, TeacherError
from distillation.kd_module import make_kd_module
from distillation.losses import (
    MGDLoss,
    ScheduledLossBalancer,
    StaticLossBalancer,
    UncertaintyLossBalancer,
)


class Conv(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width * 64, 3)

    def forward(self, x):
        return self.head(self.block(x).flatten(1))


def pair(**options):
    torch.manual_seed(0)
    student, teacher = Conv(4), Conv(8)
    return student, teacher, KDModule(student=student, teacher=teacher, **options)


X = torch.linspace(-1, 1, 6 * 64).view(6, 1, 8, 8)


def test_forward_gives_both_outputs_as_a_kd_output():
    student, teacher, net = pair()
    net.eval()
    output = net(X)
    assert isinstance(output, KDOutput)
    assert torch.equal(output.student_output, student(X))
    assert torch.equal(output.teacher_output, teacher(X))
    assert output.student_output.requires_grad
    assert not output.teacher_output.requires_grad


def test_the_teacher_is_in_no_list_of_the_module():
    student, teacher, net = pair()
    teachers = {id(p) for p in teacher.parameters()}
    assert not teachers & {id(p) for p in net.parameters()}
    assert set(net.state_dict()) == {f"student.{k}" for k in student.state_dict()}
    assert teacher not in list(net.modules())


def test_the_teacher_stays_frozen_and_in_eval_mode_while_the_student_trains():
    _, teacher, net = pair()
    before = fingerprint(teacher)
    net.train()
    net(X).student_output.sum().backward()
    assert not any(m.training for m in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert fingerprint(teacher) == before


def test_the_teacher_follows_when_asked():
    _, teacher, net = pair(run_teacher_on_eval=False)
    before = teacher.block[1].running_mean.clone()
    net.train()
    net(X)
    assert teacher.training
    assert not torch.equal(teacher.block[1].running_mean, before)
    net.eval()
    assert not teacher.training


def test_release_gives_the_flags_back_and_the_next_forward_borrows_again():
    _, teacher, net = pair()
    net.release()
    net.train(), net.double(), net.float()
    assert net.teacher is teacher
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    net(X)
    assert not teacher.training
    net.release()
    assert teacher.training


def test_input_adapters_see_the_inputs_of_their_model_only():
    student, teacher, net = pair(
        arch_params={
            "teacher_input_adapter": lambda x: x * 2,
            "student_input_adapter": lambda x: x * 3,
        }
    )
    net.eval()
    output = net(X)
    assert torch.equal(output.student_output, student(X * 3))
    assert torch.equal(output.teacher_output, teacher(X * 2))


def test_a_normalisation_is_undone_and_done_again():
    adapter = NormalizationAdapter([0.5, 0.4], [0.2, 0.1], [0.1, 0.3], [0.7, 0.9])
    image = torch.rand(2, 2, 5, 5)

    def normal(mean, std):
        return (image - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1)

    adapted = adapter(normal([0.5, 0.4], [0.2, 0.1]))
    assert torch.allclose(adapted, normal([0.1, 0.3], [0.7, 0.9]), atol=1e-6)
    assert not list(adapter.parameters())
    assert adapter.double().multiplier.dtype == torch.float64
    with pytest.raises(ConfigError, match="2, 2, 1, 2"):
        NormalizationAdapter([0, 0], [1, 1], [0], [1, 1])
    with pytest.raises(ConfigError, match="above 0"):
        NormalizationAdapter([0], [0], [0], [1])


def test_an_adapter_module_moves_with_the_module_but_is_not_trained():
    adapter = NormalizationAdapter([0.5], [0.2], [0.1], [0.7])
    _, teacher, net = pair(arch_params={"teacher_input_adapter": adapter})
    net.double()
    assert adapter.additive.dtype == torch.float64
    assert next(teacher.parameters()).dtype == torch.float64
    assert {n.split(".")[0] for n, _ in net.named_parameters()} == {"student"}


def test_emptying_the_module_does_not_empty_the_teacher():
    _, teacher, net = pair()
    before = fingerprint(teacher)
    net.to_empty(device="cpu")
    assert fingerprint(teacher) == before


@pytest.mark.parametrize("key", ["teacher_adapter", "input_adapter"])
def test_unknown_arch_params_are_refused(key):
    with pytest.raises(ConfigError, match=r"'teacher_input_adapter'"):
        pair(arch_params={key: None})


def test_teacher_and_student_must_be_two():
    net = Conv()
    with pytest.raises(TeacherError):
        KDModule(student=net, teacher=net)
    shared = Conv()
    shared.head = net.head
    with pytest.raises(TeacherError, match="share"):
        KDModule(student=net, teacher=shared)


def test_the_teacher_cannot_be_exchanged_silently():
    _, _, net = pair()
    with pytest.raises(ConfigError, match="make a new KDModule"):
        net.teacher = Conv()


def test_a_subclass_that_only_uses_the_module_finds_it_frozen():
    class Own(KDModule):
        def forward(self, x):
            return KDOutput(self.student(x), self.teacher.head(self.teacher.block(x).flatten(1)))

    torch.manual_seed(0)
    teacher = Conv(8)
    net = Own(student=Conv(), teacher=teacher)
    net.release()
    assert not net(X).teacher_output.requires_grad
    assert not teacher.training


def test_a_subclass_keeps_its_own_constructor_arguments():
    class Scaled(KDModule):
        def __init__(self, scale=1.0, **options):
            super().__init__(**options)
            self.scale = scale

        def forward(self, x):
            return KDOutput(self.student(x) * self.scale, self.teacher(x))

    adapter = NormalizationAdapter([0.5], [0.2], [0.1], [0.7])
    params = {"scale": 3.0, "teacher_input_adapter": adapter}
    net = make_kd_module(Scaled, Conv(), Conv(8), params)
    assert net.scale == 3.0
    assert net.teacher_input_adapter is adapter
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        make_kd_module(Scaled, Conv(), Conv(8), {"scal": 3.0})


@pytest.mark.parametrize("architecture", ["kd_modul", nn.Linear, 3])
def test_a_kd_architecture_that_is_none_is_refused(architecture):
    with pytest.raises(ConfigError, match="kd_architecture"):
        make_kd_module(architecture, Conv(), Conv())


def test_losses_between_layers_go_through_the_same_core():
    criterion = {("block", "block"): MGDLoss(4, 8)}
    _, _, net = pair(
        arch_params={"criterion": criterion, "loss_balancer": StaticLossBalancer(0.25)}
    )
    output = net(X)
    task = output.student_output.square().mean()
    total = net.distiller.compute_kd_loss(student_loss=task)
    kd = net.distiller.last_losses["MGDLoss_0"]
    assert torch.allclose(total, 0.25 * kd + 0.75 * task)
    assert {n.split(".")[0] for n, _ in net.own_parameters()} == {"losses"}


def test_a_batch_of_an_evaluation_is_no_step_of_a_scheduled_balancer():
    balancer = ScheduledLossBalancer(0.5, steps=10)
    _, _, net = pair(arch_params={"criterion": nn.MSELoss(), "loss_balancer": balancer})
    for mode in (True, False, True):
        task = net.train(mode)(X).student_output.square().mean()
        net.distiller.compute_kd_loss(student_loss=task)
    assert balancer.step == 2


def test_losses_move_with_the_module_between_two_trainings():
    loss = MGDLoss(4, 8)
    _, _, net = pair(arch_params={"criterion": {("block", "block"): loss}})
    net.release()
    net.double()
    assert next(loss.parameters()).dtype == torch.float64


def test_another_student_takes_the_place_for_a_while():
    student, _, net = pair()
    other = copy.deepcopy(student).eval()
    with torch.no_grad():
        other.head.bias.add_(1)
    net.eval()
    before = net(X).student_output
    with net.with_student(other):
        assert torch.allclose(net(X).student_output, before + 1, atol=1e-6)
    assert net.student is student


def test_the_full_state_dict_goes_there_and_back():
    _, teacher, net = pair()
    state = net.full_state_dict()
    assert {k.split(".")[0] for k in state} == {"student", "teacher"}
    assert not any(k.startswith("teacher.") for k in net.full_state_dict(teacher=False))
    torch.manual_seed(5)
    other = KDModule(student=Conv(4), teacher=Conv(8))
    other.load_full_state_dict(state)
    assert fingerprint(other.teacher) == fingerprint(teacher)
    del state["student.head.bias"]
    with pytest.raises(CheckpointError, match=r"student\.head\.bias"):
        other.load_full_state_dict(state)


def test_a_copy_shares_the_teacher_and_not_the_student():
    student, teacher, net = pair()
    copied = copy.deepcopy(net)
    assert copied.teacher is teacher
    assert copied.student is not student
    net.eval(), copied.eval()
    assert torch.equal(copied(X).student_output, net(X).student_output)


def test_a_copy_has_an_adapter_of_its_own():
    adapter = NormalizationAdapter([0.5], [0.2], [0.1], [0.7])
    _, teacher, net = pair(arch_params={"teacher_input_adapter": adapter})
    copied = copy.deepcopy(net)
    copied.teacher_input_adapter.additive += 1
    expected = teacher.eval()(copied.teacher_input_adapter(X))
    assert torch.equal(copied(X).teacher_output, expected)


def test_a_copy_has_losses_and_a_balancer_of_its_own():
    options = {"criterion": {("block", "block"): MGDLoss(4, 8)}}
    _, _, net = pair(arch_params={**options, "loss_balancer": UncertaintyLossBalancer(1)})
    theirs = {id(p) for _, p in copy.deepcopy(net).own_parameters()}
    assert theirs and not theirs & {id(p) for _, p in net.own_parameters()}


def test_a_teacher_may_be_a_list_an_ensemble():
    torch.manual_seed(0)
    first, second = Conv(8).eval(), Conv(8).eval()
    net = KDModule(student=Conv(), teacher=[first, second])
    output = net(X).teacher_output
    mean = (first(X).softmax(1) + second(X).softmax(1)) / 2
    assert torch.allclose(output.softmax(1), mean, atol=1e-6)


def test_a_student_that_was_there_for_a_while_is_let_go():
    _, _, net = pair(arch_params={"criterion": {("block", "block"): MGDLoss(4, 8)}})
    other = Conv(4)
    gone = weakref.ref(other)
    with net.with_student(other):
        net(X)
    assert not any(module._forward_hooks for module in other.modules())
    del other
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("side", ["adapter", "teacher"])
def test_an_input_that_is_changed_in_place_is_an_error(side):
    """The teacher goes first: the student would see what it leaves."""

    class Halving(Conv):
        def forward(self, x):
            return super().forward(x.mul_(0.5))

    options = {"arch_params": {"teacher_input_adapter": lambda x: x.sub_(0.5)}}
    teacher = Conv() if side == "adapter" else Halving()
    net = KDModule(student=Conv(), teacher=teacher, **(options if side == "adapter" else {}))
    with pytest.raises(TeacherError, match=r"changes the input in place.*x\.clone\(\)"):
        net(X.clone())


def test_a_teacher_may_change_a_copy_of_the_input():
    class Halving(Conv):
        def forward(self, x):
            return super().forward(x.mul_(0.5))

    options = {"teacher_input_adapter": lambda x: x.clone()}
    net = KDModule(student=Conv(), teacher=Halving(), arch_params=options).eval()
    assert torch.equal(net(X).student_output, net.student(X))
