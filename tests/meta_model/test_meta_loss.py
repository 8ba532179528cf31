"""`compute_kd_loss`: exactness, its keywords, and what it says when it cannot."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from meta_cases import (
    WEIGHT,
    Net,
    T,
    assert_same,
    batch,
    converted,
    features,
    gradients,
    loss_by_hand,
    loss_of,
    make_teacher,
    pair,
)
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from distillation import (
    STUDENT_LOSS_KEY,
    LogitsDistillationLoss,
    StaticLossBalancer,
    convert,
    export,
)
from distillation.errors import ConfigError, DistillationError, ShapeError, TeacherError
from distillation.losses import DistillationLossBalancer, kl_divergence
from distillation.table import GivenInputs, TeacherTable


def test_fifty_steps_equal_a_loop_by_hand_bit_for_bit():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    student, teacher = pair()
    student.drop.p = 0.2  # the order of random numbers counts as well
    by_hand, model = copy.deepcopy(student), student

    def train(net, loss_fn):
        torch.manual_seed(11)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        for step in range(50):
            rows = slice(32 * step, 32 * step + 32)
            optimizer.zero_grad()
            loss_fn(images[rows], labels[rows]).backward()
            optimizer.step()

    teacher.eval()
    train(by_hand, lambda x, y: loss_by_hand(by_hand, teacher, x, y))
    converted(model, teacher)
    train(model, lambda x, y: loss_of(model, x, y))
    assert_same(export(model).state_dict(), by_hand.state_dict())
    assert not torch.equal(model.head.weight, pair()[0].head.weight)


def test_feature_pairs_give_the_gradients_of_a_loop_by_hand():
    student, teacher = pair()
    by_hand, criterion = copy.deepcopy(student), features()
    x, y = batch()
    with torch.no_grad():
        t_body = teacher.eval().body(teacher.stem(x).relu())
        t_head = teacher(x)
    body = by_hand.body(by_hand.stem(x).relu())
    head = by_hand.head(by_hand.drop(body.relu().mean((2, 3))))
    feature = criterion["body", "body"](body, t_body)
    kl = criterion["head", "head"](head, t_head)
    loss = WEIGHT * (feature + kl) + (1 - WEIGHT) * F.cross_entropy(head, y)
    loss.backward()
    projection = gradients(criterion["body", "body"])
    model = converted(student, teacher, criterion=criterion)
    ours = loss_of(model, x, y)
    assert torch.equal(ours, loss)
    ours.backward()
    assert_same(gradients(criterion["body", "body"]), projection)
    with model.hide_loss_modules():
        assert_same(gradients(model), gradients(by_hand))


def test_skip_balancer_gives_all_losses_by_name():
    model = converted(*pair(), criterion=features())
    x, y = batch()
    student_loss = F.cross_entropy(model(x), y)
    losses = model.compute_kd_loss(student_loss=student_loss, skip_balancer=True)
    assert list(losses) == ["FeatureLoss_0", "LogitsDistillationLoss_1", STUDENT_LOSS_KEY]
    assert losses[STUDENT_LOSS_KEY] is student_loss


def test_one_loss_needs_no_balancer():
    student, teacher = pair()
    x, _ = batch()
    model = convert(student, teacher_model=teacher, criterion=nn.MSELoss())
    assert torch.equal(F.mse_loss(model(x), teacher(x)), model.compute_kd_loss())


@pytest.mark.parametrize("student_loss", [None, torch.tensor(1.0)])
def test_several_losses_without_a_balancer_are_refused(student_loss):
    criterion = features() if student_loss is None else LogitsDistillationLoss()
    model = convert(pair()[0], teacher_model=make_teacher(), criterion=criterion)
    model(batch()[0])
    with pytest.raises(ConfigError, match="StaticLossBalancer"):
        model.compute_kd_loss(student_loss=student_loss)


def test_a_students_loss_that_is_no_tensor_is_refused_and_the_pass_waits_on():
    model = converted(*pair())
    logits = model(batch()[0])
    with pytest.raises(ConfigError, match="student_loss must be a tensor, not float"):
        model.compute_kd_loss(student_loss=F.cross_entropy(logits, batch()[1]).item())
    model.compute_kd_loss(student_loss=F.cross_entropy(logits, batch()[1])).backward()


def test_a_balancer_of_ones_own():
    class Largest(DistillationLossBalancer):
        def forward(self, losses):
            return torch.stack(list(losses.values())).max()

    student, teacher = pair()
    x, y = batch()
    plain = convert(student, teacher_model=teacher, criterion=LogitsDistillationLoss(T)).eval()
    losses = plain.compute_kd_loss(F.cross_entropy(plain(x), y), skip_balancer=True)
    model = converted(export(plain), teacher, loss_balancer=Largest())
    assert torch.equal(loss_of(model, x, y), max(losses.values()))


def test_loss_reduction_fn_reduces_every_loss_that_is_no_scalar():
    student, teacher = pair()
    x, y = batch()
    model = converted(student, teacher, criterion=LogitsDistillationLoss(T, reduction="none"))
    rows = F.cross_entropy(model.eval()(x), y, reduction="none")
    masked = model.compute_kd_loss(rows, loss_reduction_fn=lambda loss: loss[:5].sum() / 5)
    plain = converted(export(model), teacher)
    assert torch.allclose(masked, loss_of(plain, x[:5], y[:5]))


class Wanting(nn.Module):
    """A loss that wants the labels and the epoch."""

    def forward(self, student_output, teacher_output, *, target, epoch=0):
        self.got = (target, epoch)
        return F.cross_entropy(student_output, target) * (1 + epoch)


def test_keywords_go_only_to_the_losses_that_take_them():
    wanting = Wanting()
    model = converted(
        *pair(), criterion={("head", "head"): nn.MSELoss(), ("", ""): wanting}, loss_balancer=None
    )
    x, y = batch()
    out = model(x)
    losses = model.compute_kd_loss(skip_balancer=True, target=y, epoch=2)
    assert wanting.got[0] is y and wanting.got[1] == 2
    assert torch.equal(losses["Wanting_1"], F.cross_entropy(out, y) * 3)


def test_a_keyword_that_no_loss_takes_is_an_error_and_keeps_the_forward():
    model = converted(*pair(), criterion=Wanting(), loss_balancer=None)
    x, y = batch()
    model(x)
    with pytest.raises(ConfigError, match="'target'"):
        model.compute_kd_loss(targets=y)
    assert model.compute_kd_loss(target=y) > 0


def test_forward_comes_before_each_loss():
    model = converted(*pair())
    with pytest.raises(DistillationError, match="forward"):
        model.compute_kd_loss()
    loss_of(model, *batch())
    with pytest.raises(DistillationError, match="forward"):
        model.compute_kd_loss()


@pytest.mark.parametrize("train", [True, False])
def test_it_works_under_no_grad_and_in_evaluation(train):
    model = converted(*pair(), criterion=features()).train(train)
    with torch.no_grad():
        assert not loss_of(model, *batch()).requires_grad
    with torch.inference_mode():
        assert loss_of(model, *batch()) > 0


def test_a_class_count_that_differs_is_named_before_the_first_step():
    class Two(nn.Module):
        def forward(self, x):
            return x.new_zeros(len(x), 2)

    model = converted(Net(), Two())
    with pytest.raises(ShapeError, match="10 classes and the teacher 2"):
        loss_of(model, *batch())


def test_a_layer_may_be_in_several_pairs():
    criterion = {("head", "head"): nn.MSELoss(), ("head", ""): LogitsDistillationLoss(T)}
    model = converted(*pair(), criterion=criterion, loss_balancer=None)
    model(batch()[0])
    losses = model.compute_kd_loss(skip_balancer=True)
    assert list(losses) == ["MSELoss_0", "LogitsDistillationLoss_1"]
    assert all(loss.requires_grad for loss in losses.values())


def test_the_keys_of_a_batch_go_to_a_table(tmp_path):
    student, teacher = pair()
    x, y = batch()
    online = loss_of(converted(copy.deepcopy(student), teacher).train(), x, y)
    table = TeacherTable(teacher, tmp_path, GivenInputs(8, data="one batch"))
    model = converted(student, table).train()
    student_loss = F.cross_entropy(model(x), y)
    loss = model.compute_kd_loss(student_loss, sample=torch.arange(8))
    assert torch.allclose(loss, online, atol=1e-3)
    export(model)
    assert table(x, sample=torch.arange(8)).shape == (8, 10)
    table.release()


def test_one_teacher_serves_several_students_between_forward_and_loss():
    teacher, (x, y) = make_teacher(), batch()
    first, second = (converted(Net(), teacher, criterion=features()) for _ in range(2))
    wanted = [loss_of(model.eval(), x, y).item() for model in (first, second)]
    labels = [F.cross_entropy(first(x), y), F.cross_entropy(second(x.flip(3)), y)]
    assert first.compute_kd_loss(labels[0]).item() == wanted[0]
    assert second.compute_kd_loss(labels[1]).item() != wanted[1]


def test_gradient_accumulation_adds_each_micro_batch_once():
    student, teacher = pair()
    by_hand = copy.deepcopy(student)
    model = converted(student, teacher)
    teacher.eval()
    for seed in range(3):
        x, y = batch(seed=seed)
        (loss_by_hand(by_hand, teacher, x, y) / 3).backward()
        (loss_of(model, x, y) / 3).backward()
    assert_same(gradients(model), gradients(by_hand))


def test_nothing_is_kept_after_the_loss_after_an_error_or_after_a_change_of_mode():
    model = converted(*pair(), criterion=features())
    x, y = batch()

    def kept(use):
        seen = []
        handle = model.body.register_forward_hook(lambda m, a, out: seen.append(weakref.ref(out)))
        use()
        handle.remove()
        gc.collect()
        return [reference() is not None for reference in seen]

    def failing():
        broken = model.head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x)
        broken.remove()

    def evaluating():
        model.eval()
        with torch.no_grad():
            model(x)
        model.train()

    assert kept(lambda: loss_of(model, x, y).backward()) == [False]
    assert kept(failing) == [False]
    assert kept(evaluating) == [False]


def test_last_losses_are_there_for_the_log():
    model = converted(*pair(), loss_balancer=StaticLossBalancer(0.5))
    total = loss_of(model, *batch())
    last = model._kd.distiller.last_losses
    assert not any(loss.requires_grad for loss in last.values())
    assert torch.allclose(sum(last.values()) / 2, total.detach())


class Crops(nn.Module):
    """Calls itself for each of several crops."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.cat([self(crop) for crop in x]) if isinstance(x, list) else self.net(x)


def test_a_forward_that_calls_itself_is_one_pass():
    student, teacher = map(Crops, pair())
    crops = [batch(2, seed=3)[0], batch(5, seed=4)[0]]
    seen = []
    teacher.net.register_forward_hook(lambda *_: seen.append(1))
    wanted = kl_divergence(student.eval()(crops), teacher.eval()(crops), temperature=T)
    seen.clear()
    model = converted(student, teacher, loss_balancer=None).eval()
    model(crops)
    assert torch.equal(model.compute_kd_loss(), wanted)
    assert len(seen) == len(crops)


class Generates(nn.Module):
    """Fills a cache as it goes, as language models do."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, ids, past=None):
        x = self.embed(ids)
        if past is not None:
            past.append(x)
            x = torch.cat(past, 1)
        return self.head(x.mean(1).tanh())

    @torch.no_grad()
    def generate(self, ids):
        """Eight more."""
        past = []
        for _ in range(8):
            ids = torch.cat([ids, self(ids[:, -1:], past).argmax(-1, keepdim=True)], 1)
        return ids


def test_what_a_student_generates_is_its_own():
    torch.manual_seed(5)
    student, teacher = Generates(), Generates()
    ids = torch.tensor([[1, 2, 3]])
    alone = student.generate(ids)
    model = converted(student, teacher, loss_balancer=None)
    assert torch.equal(model.generate(ids), alone)
    assert model.generate.__doc__ == "Eight more."
    assert not hasattr(converted(*pair()), "generate")


def test_an_input_that_is_changed_before_its_keys_come_does_not_reach_the_table(tmp_path):
    class Scales(Net):
        def forward(self, x):
            return super().forward(x.div_(255))

    table = TeacherTable(make_teacher(), tmp_path, GivenInputs(8, data="one batch"))
    model = converted(Scales(), table)
    model(batch()[0])
    with pytest.raises(TeacherError, match="changed the input in place"):
        model.compute_kd_loss(sample=torch.arange(8))
    assert not table.count()
    table.release()
