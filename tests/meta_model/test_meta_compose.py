"""A converted model in other hands: containers, autocast, checkpointing, compile, copies.

For each: gradients equal those of the plain loop, the state dict reloads, the export is clean.
"""

from __future__ import annotations

import copy
import types

import pytest
import torch
from meta_cases import (
    Net,
    T,
    assert_same,
    batch,
    converted,
    features,
    gradients,
    loss_by_hand,
    loss_of,
    pair,
    portrait,
)
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from distillation import DistillationModel, LogitsDistillationLoss, convert, export
from distillation.errors import DistillationError

SLOW = pytest.mark.slow  # a C++ compiler runs


def assert_reloads_and_exports(model: nn.Module) -> None:
    """The state dict loads into a freshly converted twin, and the export has no trace of us."""
    twin = converted(*pair(seed=9), criterion=model._kd.distiller.criterion.as_mapping())
    twin.load_state_dict(model.state_dict(), strict=True)
    assert_same(twin.state_dict(), model.state_dict())
    for converted_model in (twin, model):
        assert type(export(converted_model)) is Net
        assert portrait(converted_model).keys() == portrait(Net()).keys()
        own = vars(converted_model).keys() - {"_is_torch_compile"}  # torch.compile's own mark
        assert own == vars(Net()).keys()


def test_inside_a_sequential():
    student, teacher = pair()
    by_hand = copy.deepcopy(student)
    model = converted(student, teacher)
    whole = nn.Sequential(nn.Identity(), model)
    x, y = batch()
    model.compute_kd_loss(F.cross_entropy(whole(x), y)).backward()
    loss_by_hand(by_hand, teacher, x, y).backward()
    assert_same(gradients(model), gradients(by_hand))
    assert_reloads_and_exports(model)


def test_under_autocast():
    student, teacher = pair()
    by_hand = copy.deepcopy(student)
    model = converted(student, teacher)
    x, y = batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = model.compute_kd_loss(F.cross_entropy(logits, y))
        with torch.no_grad():
            t = teacher(x)
        s = by_hand(x)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    p, q = (F.log_softmax(z.float() / T, -1) for z in (t, s))
    kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean() * T**2
    with torch.autocast("cpu", torch.bfloat16):
        (0.7 * kl + 0.3 * F.cross_entropy(s, y)).backward()
    loss.backward()
    ours, theirs = gradients(model), gradients(by_hand)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-5) for name in theirs)
    assert_reloads_and_exports(model)


class Checkpointed(Net):
    """Its body runs under activation checkpointing."""

    reentrant = False
    active = True

    def forward(self, x):
        x = self.stem(x).relu()
        if self.active:
            x = checkpoint(self.body, x, use_reentrant=self.reentrant)
        else:
            x = self.body(x)
        return self.head(self.drop(x.relu().mean((2, 3))))


class Reentrant(Checkpointed):
    reentrant = True


@pytest.mark.parametrize("cls", [Checkpointed, Reentrant])
def test_activation_checkpointing_of_both_kinds(cls):
    _, teacher = pair()
    torch.manual_seed(0)
    by_hand = cls()
    model = converted(copy.deepcopy(by_hand), teacher)
    x, y = batch()
    loss_by_hand(by_hand, teacher, x, y).backward()
    loss_of(model, x, y).backward()
    assert_same(gradients(model), gradients(by_hand))
    with pytest.raises(DistillationError, match="forward"):
        model.compute_kd_loss()  # what ran again in backward was not recorded
    twin = converted(cls(), teacher)
    twin.load_state_dict(model.state_dict(), strict=True)
    assert vars(export(model)).keys() == vars(cls()).keys()


def test_a_pair_inside_a_checkpointed_block_gets_its_gradient():
    student, teacher = pair()
    plain = converted(copy.deepcopy(student), teacher, criterion=features())
    student.__class__ = Checkpointed
    model = converted(student, teacher, criterion=features())
    x, y = batch()
    loss_of(plain, x, y).backward()
    loss_of(model, x, y).backward()
    assert_same(gradients(model), gradients(plain))


def test_a_pair_inside_a_reentrant_block_is_an_error_and_no_silent_zero():
    student, teacher = pair()
    student.__class__ = Reentrant
    model = converted(student, teacher, criterion=features())
    with pytest.raises(DistillationError, match=r"'body'.*use_reentrant=False"):
        loss_of(model, *batch())


def test_the_whole_model_may_be_checkpointed_without_reentry():
    student, teacher = pair()
    by_hand = copy.deepcopy(student)
    model = converted(student, teacher)
    x, y = batch()
    with set_checkpoint_early_stop(False):  # otherwise an exception ends the second forward
        logits = checkpoint(model, x, use_reentrant=False)
        model.compute_kd_loss(F.cross_entropy(logits, y)).backward()
    loss_by_hand(by_hand, teacher.eval(), x, y).backward()
    assert_same(gradients(model), gradients(by_hand))
    with pytest.raises(DistillationError, match="forward"):
        model.compute_kd_loss()
    with pytest.raises(DistillationError, match="use_reentrant=False"):
        checkpoint(model, x.requires_grad_(), use_reentrant=True)


def test_a_deepcopy_has_its_own_student_and_losses_and_the_same_teacher():
    student, teacher = pair()
    model = converted(student, teacher, criterion=features())
    x, y = batch()
    model(x)  # what is held here must not reach the copy
    twin = copy.deepcopy(model)
    assert type(twin) is type(model) and twin.teacher_model is teacher
    assert twin.loss_modules[0] is not model.loss_modules[0]
    with pytest.raises(DistillationError, match="forward"):
        twin.compute_kd_loss()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    third = copy.deepcopy(twin)
    wanted = loss_of(third, x, y)
    assert torch.equal(loss_of(twin, x, y), wanted)
    assert not torch.equal(loss_of(model, x, y), wanted)
    export(third)
    export(model)
    assert not teacher.training
    loss_of(twin, x, y).backward()
    assert model.body.weight.grad is None and twin.body.weight.grad is not None
    assert_reloads_and_exports(twin)
    assert teacher.training
    assert not any(m._forward_hooks for net in (model, twin, teacher) for m in net.modules())


def test_a_deepcopy_of_a_parent_and_of_a_patched_forward():
    student, teacher = pair()
    student.forward = lambda x: Net.forward(student, x) + 1
    parent = copy.deepcopy(nn.Sequential(converted(student, teacher)))
    assert isinstance(parent[0], DistillationModel) and parent[0] is not student
    assert loss_of(parent[0], *batch()) > 0


def test_a_deepcopy_keeps_a_forward_that_was_wrapped_since():
    model = converted(*pair())

    def one_more(self, x):
        return type(self).forward(self, x) + 1

    model.forward = types.MethodType(one_more, model)
    x, y = batch()
    wanted = loss_of(model.eval(), x, y)
    twin = copy.deepcopy(model)
    assert twin.forward.__self__ is twin and model.forward.__self__ is model
    assert torch.equal(loss_of(twin, x, y), wanted)
    assert torch.equal(loss_of(model, x, y), wanted)


def test_averaged_weights_of_a_converted_model():
    student, teacher = pair()
    model = converted(student, teacher, criterion=features())
    plain = converted(*pair(), criterion=features())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    x, y = batch()
    wanted = {name: p.detach().clone() for name, p in plain.named_parameters()}
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
        average.update_parameters(model)
        for name, parameter in model.named_parameters():
            new = parameter.detach()
            wanted[name] = new.clone() if step == 0 else wanted[name].lerp(new, 0.5)
    for name, parameter in average.module.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-7)
    assert average.module.teacher_model is teacher
    assert loss_of(average.module, x, y) > 0
    assert type(export(average.module)) is Net
    assert isinstance(model, DistillationModel)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=SLOW)])
@pytest.mark.parametrize("pairs", [False, True], ids=["logits", "features"])
def test_compiled_without_a_graph_break(pairs, backend):
    student, teacher = pair()
    criterion = features() if pairs else LogitsDistillationLoss(T)
    plain = converted(copy.deepcopy(student), teacher, criterion=copy.deepcopy(criterion))
    model = converted(student, teacher, criterion=criterion)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x, y = batch()
    for seed in range(4):
        x, y = batch(seed=seed)
        loss = model.compute_kd_loss(F.cross_entropy(compiled(x), y))
        wanted = loss_of(plain, x, y)
        assert torch.allclose(loss, wanted)
        loss.backward()
        wanted.backward()
        ours, theirs = gradients(model), gradients(plain)
        assert ours.keys() == theirs.keys()
        for name, grad in theirs.items():
            assert torch.allclose(ours[name], grad, rtol=1e-4, atol=1e-6), name
    with torch.no_grad():
        assert compiled.eval()(x).shape == (8, 10)
        assert model.compute_kd_loss(F.cross_entropy(compiled(x), y)) > 0
    assert counters["stats"]["unique_graphs"] == 2  # training and evaluation, each once
    assert_reloads_and_exports(model)
    assert torch.allclose(compiled(x), model(x), atol=1e-6)


@pytest.mark.parametrize("first", ["convert", "parametrize"])
def test_a_parametrization_of_the_students_own_weight_survives_the_export(first):
    torch.manual_seed(0)
    others = parametrizations.weight_norm(nn.Linear(4, 3))
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.randn(5, 4)
    if first == "parametrize":
        parametrizations.orthogonal(student)
    model = convert(student, teacher_model=teacher, criterion=nn.MSELoss())
    if first == "convert":
        parametrizations.orthogonal(model)
    wanted = F.mse_loss(model(x), teacher(x))
    assert torch.equal(model.compute_kd_loss(), wanted)
    exported = export(model)
    assert type(exported).__mro__[1] is nn.Linear and type(exported) is not type(others)
    assert torch.allclose(exported.weight @ exported.weight.T, torch.eye(3), atol=1e-5)
    parametrize.remove_parametrizations(exported, "weight")
    assert type(exported) is nn.Linear
