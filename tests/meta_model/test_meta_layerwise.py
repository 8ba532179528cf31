"""`layerwise_kd`: layers of the student learn to stand in for layers of the teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from meta_cases import Net, assert_same, batch, gradients, pair, portrait
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from distillation import convert, export
from distillation.errors import ConfigError


class Cheap(nn.Module):
    """A separable convolution with batch norm, in the place of a full one."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.point = nn.Conv2d(channels, out_channels, 1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return self.norm(self.point(self.depth(x)))


def replacement() -> tuple[Net, Net]:
    """A teacher, and a copy of it with its body replaced."""
    teacher = pair()[1]
    torch.manual_seed(2)
    student = copy.deepcopy(teacher)
    student.body = Cheap(10, 20)
    return student, teacher


def converted(student, teacher, pairs=(("body", "body"),)):
    criterion = {names: nn.MSELoss() for names in pairs}
    config = {"teacher_model": teacher, "criterion": criterion}
    return convert(student, mode=[("layerwise_kd", config)])


def test_the_gradient_is_that_of_the_layer_alone_on_the_teachers_input():
    student, teacher = replacement()
    x, _ = batch()
    with torch.no_grad():
        given = copy.deepcopy(teacher).eval().stem(x).relu()
        wanted = teacher.body(given)
    alone = copy.deepcopy(student.body).train()
    loss = F.mse_loss(alone(given), wanted)
    loss.backward()
    model = converted(student, teacher).train()
    model(x)
    ours = model.compute_kd_loss()
    ours.backward()
    assert torch.equal(ours, loss)
    assert_same(gradients(student.body), gradients(alone))
    assert_same(student.body.state_dict(), alone.state_dict())


def test_everything_else_is_frozen_and_keeps_its_statistics():
    student, teacher = replacement()
    rest = {k: v.clone() for k, v in student.state_dict().items() if not k.startswith("body")}
    model = converted(student, teacher).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(3):
        model(batch(seed=seed)[0])
        model.compute_kd_loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    now = {k: v for k, v in student.state_dict().items() if not k.startswith("body")}
    assert_same(now, rest)
    assert student.body.norm.num_batches_tracked == 3


def test_it_learns_the_layer():
    student, teacher = replacement()
    model = converted(student, teacher).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        model(batch(64)[0])
        loss = model.compute_kd_loss()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


@pytest.mark.parametrize("train", [True, False])
def test_forward_gives_what_the_exported_student_will_say(train):
    student, teacher = replacement()
    x, _ = batch()
    model = converted(student, teacher)
    wanted = export(copy.deepcopy(model)).eval()(x).detach()
    assert torch.equal(model.train(train)(x), wanted)
    assert model.body.training == train and model.compute_kd_loss() > 0


def test_export_gives_every_flag_back():
    student, teacher = replacement()
    student.stem.eval()
    student.head.bias.requires_grad_(False)
    before, theirs = portrait(student), portrait(teacher)
    model = converted(student, teacher)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"body.{name}" for name, _ in student.body.named_parameters()
    }
    model(batch()[0])
    model.compute_kd_loss()
    export(model)
    assert portrait(student) == before
    assert portrait(teacher) == theirs


@pytest.mark.parametrize("mode", [True, False])
def test_train_and_eval_called_meanwhile_count_after_the_export(mode):
    student, teacher = replacement()
    model = converted(student, teacher)
    model.train(mode)
    assert not model.stem.training and model.training == mode
    export(model)
    assert {m.training for m in student.modules()} == {mode}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("", "")], "needs layers"),
        ([("bodi", "body")], "'body'"),
        ([("body", "bodi")], "'body'"),
        ([("body", "body"), ("body", "stem")], "two pairs"),
        ([("stem", "stem"), ("stem.0", "stem.0")], "inside"),
    ],
)
def test_pairs_that_make_no_sense_are_refused_and_leave_the_student(pairs, message):
    student, teacher = replacement()
    before, theirs = portrait(student), portrait(teacher)
    with pytest.raises(ConfigError, match=message):
        converted(student, teacher, pairs)
    assert portrait(student) == before
    assert portrait(teacher) == theirs


def test_two_layers_are_trained_at_once_each_on_its_own_input():
    student, teacher = replacement()
    torch.manual_seed(3)
    student.head = nn.Linear(20, 10)
    model = converted(student, teacher, [("body", "body"), ("head", "head")])
    x, _ = batch()
    model(x)
    losses = model.compute_kd_loss(skip_balancer=True)
    with torch.no_grad():
        features = teacher.body(teacher.stem(x).relu()).relu().mean((2, 3))
        wanted = F.mse_loss(student.head(features), teacher(x))
    assert torch.equal(losses["MSELoss_1"].detach(), wanted)


class Inside(Net):
    """Checkpoints its body from outside, as model libraries do."""

    def forward(self, x):
        x = checkpoint(self.body, self.stem(x).relu(), use_reentrant=False)
        return self.head(self.drop(x.relu().mean((2, 3))))


def test_checkpointing_around_the_layer_keeps_the_gradient():
    student, teacher = replacement()
    plain = converted(copy.deepcopy(student), teacher)
    student.__class__ = Inside
    model = converted(student, teacher)
    x, _ = batch()
    for net in (plain, model):
        net.train()(x)
        net.compute_kd_loss().backward()
    assert_same(gradients(model), gradients(plain))


def test_compiled_without_a_graph_break():
    student, teacher = replacement()
    plain = converted(copy.deepcopy(student), teacher).train()
    model = converted(student, teacher).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, _ = batch()
    for net, call in ((model, compiled), (plain, plain)):
        call(x)
        net.compute_kd_loss().backward()
    assert model.body.training
    ours, theirs = gradients(model), gradients(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in theirs)
