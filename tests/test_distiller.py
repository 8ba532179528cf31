"""The `Distiller` alone, in a loop by hand, with teachers of every kind."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distillation import Distiller, LogitsDistillationLoss, StaticLossBalancer
from distillation.criterion import LayerLoss
from distillation.errors import ConfigError, DistillationError, TeacherError
from distillation.losses import kl_divergence
from distillation.table import GivenInputs, TeacherTable
from distillation.teacher import EnsembleTeacher, FrozenTeacher


class Net(nn.Module):
    def __init__(self, width: int = 8, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(5, width)
        self.act = nn.ReLU()
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.act(self.second(self.act(self.first(x)))))


@pytest.fixture
def student():
    return Net()


@pytest.fixture
def teacher():
    return Net(seed=1)


@pytest.fixture
def x():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(2))


def test_a_loop_by_hand_needs_no_conversion(student, teacher, x):
    distiller = Distiller(student, teacher, LogitsDistillationLoss(2.0), StaticLossBalancer(0.5))
    y = torch.arange(6) % 3
    logits = distiller.forward(x)
    loss = distiller.compute_kd_loss(F.cross_entropy(logits, y))
    wanted = 0.5 * kl_divergence(student(x), teacher(x), 2.0) + 0.5 * F.cross_entropy(logits, y)
    assert torch.equal(loss, wanted)
    assert type(student) is Net and not any(m._forward_hooks for m in student.modules())


def test_it_may_be_called_like_a_model(student, teacher, x):
    distiller = Distiller(student, teacher, nn.MSELoss())
    assert torch.equal(distiller(x), student(x))


def test_outputs_hands_over_both_and_forgets_them(student, teacher, x):
    distiller = Distiller(student, teacher)
    distiller.forward(x)
    ours, theirs = distiller.outputs()
    assert torch.equal(ours, student(x)) and torch.equal(theirs, teacher(x))
    assert ours.requires_grad and not theirs.requires_grad
    with pytest.raises(DistillationError, match="forward"):
        distiller.outputs()


def test_release_leaves_both_models_as_they_were(student, teacher, x):
    distiller = Distiller(student, teacher, {("first", "first"): nn.MSELoss()})
    distiller.forward(x)
    distiller.release()
    assert teacher.training and teacher.head.weight.requires_grad
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())


def test_hooks_go_with_a_distiller_that_is_dropped(student, teacher, x):
    distiller = Distiller(student, teacher, {("first", "first"): nn.MSELoss()})
    gone = weakref.ref(distiller)
    del distiller
    gc.collect()
    assert gone() is None
    assert not student.first._forward_hooks and teacher.head.weight.requires_grad


def test_an_ensemble_teaches(student, x):
    teachers = [Net(seed=1), Net(seed=2)]
    ensemble = EnsembleTeacher(teachers, weights=[1, 3], average="logits")
    distiller = Distiller(student, ensemble, nn.MSELoss())
    distiller.forward(x)
    wanted = F.mse_loss(student(x), 0.25 * teachers[0](x) + 0.75 * teachers[1](x))
    assert torch.allclose(distiller.compute_kd_loss(), wanted)


def test_layers_of_an_ensembles_members_can_be_paired(student, x):
    teachers = [Net(seed=1), Net(seed=2)]
    distiller = Distiller(student, teachers, {("second", "1.second"): nn.MSELoss()})
    distiller.forward(x)
    features = [net.second(net.act(net.first(x))) for net in (student, teachers[1])]
    assert torch.equal(distiller.compute_kd_loss(), F.mse_loss(*features))


# A teacher that is a table of outputs ---------------------------------------------------------


@pytest.fixture
def table(teacher, tmp_path):
    inputs = GivenInputs(10, data="ten rows", views=2)
    table = TeacherTable(teacher, tmp_path / "table", inputs, layers=("second",))
    yield table
    table.release()


KEYS = {"sample": torch.tensor([1, 3, 5, 7, 9, 0]), "view": torch.tensor([0, 1, 0, 1, 0, 1])}


def test_keys_may_come_with_the_loss_or_with_the_input(student, teacher, table, x):
    distiller = Distiller(student, table, nn.MSELoss())
    wanted = F.mse_loss(student(x), teacher(x))
    distiller.forward(x)
    assert torch.allclose(distiller.compute_kd_loss(**KEYS), wanted, atol=1e-4)
    distiller.forward(x, **KEYS)
    assert torch.allclose(distiller.compute_kd_loss(), wanted, atol=1e-4)
    assert distiller.teacher.hits == 6 and distiller.teacher.misses == 6


def test_a_table_without_keys_says_what_it_needs(student, table, x):
    distiller = Distiller(student, table, nn.MSELoss())
    distiller.forward(x)
    with pytest.raises(TeacherError, match="sample="):
        distiller.compute_kd_loss()


def test_keys_for_a_teacher_that_needs_none_change_nothing(student, teacher, x):
    distiller = Distiller(student, teacher, nn.MSELoss())
    distiller.forward(x)
    wanted = distiller.compute_kd_loss()
    distiller.forward(x)
    assert torch.equal(distiller.compute_kd_loss(**KEYS), wanted)


def test_stored_layers_of_a_table_can_be_paired(student, teacher, table, x):
    distiller = Distiller(student, table, {("second", "second"): nn.MSELoss()})
    distiller.forward(x, **KEYS)
    features = [net.second(net.act(net.first(x))) for net in (student, teacher)]
    assert torch.allclose(distiller.compute_kd_loss(), F.mse_loss(*features), atol=1e-4)


def test_layers_that_a_table_does_not_store_are_named(student, table):
    with pytest.raises(ConfigError, match=r"'first'.*'second'"):
        Distiller(student, table, {("first", "first"): nn.MSELoss()})


def test_an_ensemble_with_a_table_in_it_takes_keys(student, teacher, table, x):
    ensemble = EnsembleTeacher([table, FrozenTeacher(Net(seed=4))], average="logits")
    distiller = Distiller(student, ensemble, nn.MSELoss())
    distiller.forward(x)
    assert distiller.compute_kd_loss(**KEYS) > 0


# What a loss is given -------------------------------------------------------------------------


class Outputs(nn.Module):
    """Gives several things, as models of language do."""

    def __init__(self, seed: int):
        super().__init__()
        self.net = Net(seed=seed)

    def forward(self, x):
        hidden = self.net.first(x)
        return OrderedDict(logits=self.net(x), hidden=(x, hidden))


class Keep(nn.Module):
    """A loss of one's own, which gets what the layers gave."""

    def forward(self, student_output, teacher_output):
        self.got = student_output, teacher_output
        return student_output["logits"].sum()


def test_our_losses_get_the_logits_of_an_output_with_several_tensors(x):
    student, teacher = Outputs(0), Outputs(1)
    distiller = Distiller(student, teacher, LogitsDistillationLoss())
    distiller.forward(x)
    wanted = kl_divergence(student(x)["logits"], teacher(x)["logits"])
    assert torch.equal(distiller.compute_kd_loss(), wanted)


def test_a_loss_of_ones_own_gets_the_whole_output(x):
    keep = Keep()
    distiller = Distiller(Outputs(0), Outputs(1), keep)
    distiller.forward(x)
    distiller.compute_kd_loss()
    assert [set(output) for output in keep.got] == [{"logits", "hidden"}] * 2


def test_a_selector_says_which_tensor_is_meant(x):
    student, teacher = Outputs(0), Outputs(1)
    loss = LayerLoss(nn.MSELoss(), student=("hidden", -1), teacher=lambda out: out["hidden"][1])
    distiller = Distiller(student, teacher, loss)
    distiller.forward(x)
    wanted = F.mse_loss(student.net.first(x), teacher.net.first(x))
    assert torch.equal(distiller.compute_kd_loss(), wanted)


def test_keywords_pass_through_a_layer_loss(student, teacher, x):
    masked = LayerLoss(LogitsDistillationLoss(), call=-1)
    distiller = Distiller(student, teacher, masked)
    keep = torch.tensor([1, 1, 0, 0, 0, 0]).bool()
    distiller.forward(x)
    loss = distiller.compute_kd_loss(mask=keep)
    assert torch.allclose(loss, kl_divergence(student(x[:2]), teacher(x[:2])))
    with pytest.raises(ConfigError, match="'mask'"):
        distiller.compute_kd_loss(maks=keep)


class Sum(nn.Module):
    """The sum of the losses of all calls."""

    def forward(self, student_output, teacher_output):
        return sum(map(F.mse_loss, student_output, teacher_output))


@pytest.mark.parametrize("call", [0, 1, -1, "all"])
def test_the_loss_chooses_among_the_calls_of_a_layer(student, teacher, x, call):
    loss = Sum() if call == "all" else nn.MSELoss()
    distiller = Distiller(student, teacher, {("act", "act"): LayerLoss(loss, call=call)})
    distiller.forward(x)
    calls = []
    for net in (student, teacher):
        first = net.first(x).relu()
        calls.append([first, net.second(first).relu()])
    if call == "all":
        wanted = F.mse_loss(calls[0][0], calls[1][0]) + F.mse_loss(calls[0][1], calls[1][1])
    else:
        wanted = F.mse_loss(calls[0][call], calls[1][call])
    assert torch.equal(distiller.compute_kd_loss(), wanted)


def test_without_a_choice_the_last_call_counts(student, teacher, x):
    plain = Distiller(student, teacher, {("act", "act"): nn.MSELoss()})
    last = Distiller(student, teacher, {("act", "act"): LayerLoss(nn.MSELoss(), call=1)})
    plain.forward(x), last.forward(x)
    assert torch.equal(plain.compute_kd_loss(), last.compute_kd_loss())


def test_logits_changed_in_place_before_the_loss_are_noticed(student, teacher, x):
    distiller = Distiller(student, teacher, nn.MSELoss())
    distiller.forward(x).mul_(2)
    with pytest.raises(DistillationError, match="changed in place"):
        distiller.compute_kd_loss()


# Refusals -------------------------------------------------------------------------------------


def test_a_teacher_that_shares_a_weight_is_refused(student, teacher):
    teacher.head.weight = student.head.weight
    with pytest.raises(TeacherError, match=r"head\.weight"):
        Distiller(student, teacher, nn.MSELoss())
    assert student.head.weight.requires_grad and teacher.training


@pytest.mark.parametrize("what", [None, nn.Linear])
def test_a_student_that_is_no_module_is_refused(what, teacher):
    with pytest.raises(ConfigError, match=r"student must be an nn\.Module instance"):
        Distiller(what, teacher, nn.MSELoss())
    assert teacher.training


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ({("haed", "head"): nn.MSELoss()}, "'head'"),
        ({("head", "haed"): nn.MSELoss()}, "'head'"),
        ({"head": nn.MSELoss()}, "keys are pairs"),
        ({("head", "head"): "mse"}, "'mse'"),
        (nn.MSELoss, "is a class"),
    ],
)
def test_a_criterion_that_does_not_fit_is_refused_without_a_trace(
    student, teacher, criterion, message
):
    with pytest.raises(ConfigError, match=message):
        Distiller(student, teacher, criterion)
    assert teacher.training and not any(m._forward_hooks for m in teacher.modules())


def test_a_teacher_made_by_a_source_stays_the_callers(student, teacher, x):
    source = FrozenTeacher(teacher)
    Distiller(student, source, nn.MSELoss()).release()
    assert torch.equal(source(x), teacher(x)) and not teacher.training


def test_two_threads_do_not_see_each_others_forward(student, teacher, x):
    distiller = Distiller(student, teacher, {("first", "first"): nn.MSELoss()})
    inputs = [x, 2 * x]
    wanted = [F.mse_loss(student.first(i), teacher.first(i)).item() for i in inputs]
    barrier, got = threading.Barrier(2), [0.0, 0.0]

    def work(i):
        for _ in range(20):
            distiller.forward(inputs[i])
            barrier.wait()
            got[i] = distiller.compute_kd_loss().item()
            barrier.wait()

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == pytest.approx(wanted)


def test_a_copy_of_the_student_is_distilled_by_a_copy_of_the_distiller(student, teacher, x):
    distiller = Distiller(student, teacher, {("first", "first"): nn.MSELoss()})
    twin = copy.deepcopy(student)
    other = distiller.copy_for(twin, {})
    with torch.no_grad():
        twin.first.weight.zero_()
    other.forward(x)
    assert torch.equal(other.compute_kd_loss(), F.mse_loss(twin.first(x), teacher.first(x)))
    distiller.release()
    assert not teacher.training
    other.release()
    assert teacher.training
