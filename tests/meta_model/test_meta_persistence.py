"""`save` and `restore`: one safe file, without the teacher's weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meta_cases import (
    TEACHER,
    FeatureLoss,
    Net,
    T,
    assert_same,
    batch,
    converted,
    features,
    loss_of,
    make_teacher,
    pair,
    portrait,
    trained,
)
from torch import nn

from distillation import (
    DistillationModel,
    LogitsDistillationLoss,
    StaticLossBalancer,
    convert,
    export,
    models,
    restore,
    save,
)
from distillation.criterion import LayerLoss
from distillation.errors import (
    CheckpointError,
    ConfigError,
    TeacherError,
)
from distillation.losses import ScheduledLossBalancer
from distillation.references import note_run
from distillation.table import GivenInputs, TeacherTable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def test_what_was_saved_comes_back(path):
    model = trained()
    save(model, path)
    back = restore(Net(), path)
    assert isinstance(back, DistillationModel) and isinstance(back, Net)
    assert_same(back.state_dict(), model.state_dict())
    assert_same(back.teacher_model.state_dict(), model.teacher_model.state_dict())
    assert torch.equal(loss_of(back.eval(), *batch()), loss_of(model.eval(), *batch()))


def test_training_goes_on_as_if_it_had_not_been_saved(path):
    model = trained(loss_balancer=ScheduledLossBalancer([0.3, 0.4], steps=5))
    save(model, path)
    back = restore(Net, path)
    for net in (model, back):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for seed in range(3):
            optimizer.zero_grad()
            loss_of(net.train(), *batch(seed=seed)).backward()
            optimizer.step()
    assert_same(back.state_dict(), model.state_dict())


def test_the_file_is_plain_and_holds_no_teacher(path):
    model = trained(expose_minimal_state_dict=False)
    save(model, path)
    state = torch.load(path, weights_only=True)
    found = []

    def walk(value):
        if isinstance(value, torch.Tensor):
            found.append(value)
        for item in value.values() if isinstance(value, dict) else ():
            walk(item)

    walk(state)
    theirs = model.teacher_model.state_dict().values()
    assert not any(a.shape == b.shape and torch.equal(a, b) for a in found for b in theirs)
    assert set(state["student"]) == set(Net().state_dict())


def test_a_loss_of_two_pairs_comes_back_as_one(path):
    shared = FeatureLoss(6, 10)
    criterion = {("stem", "stem"): shared, **features(), ("stem.0", "stem.0"): shared}
    model = converted(*pair(), criterion=criterion)
    save(model, path)
    back = restore(Net(), path, teacher=make_teacher())
    assert back.loss_modules[3] is back.loss_modules[0] is not back.loss_modules[1]
    assert_same(back.state_dict(), model.state_dict())


def test_settings_come_back(path):
    save(trained(expose_minimal_state_dict=False, teacher_mode="follow"), path)
    back = restore(Net(), path, allow_changed_teacher=True)  # its batch norm has followed
    assert any(name.startswith("_teacher_model.") for name in back.state_dict())
    back.train()
    assert back.teacher_model.training


def test_a_student_of_a_table_is_restored_with_the_teacher_behind_it(path, tmp_path):
    table = TeacherTable(TEACHER, tmp_path / "table", GivenInputs(8, data="one batch"))
    model = converted(Net(), table)
    model(batch()[0])
    model.compute_kd_loss(torch.tensor(0.0), sample=torch.arange(8))
    save(model, path)
    back = restore(Net(), path)
    assert_same(back.teacher_model.state_dict(), make_teacher().state_dict())
    assert loss_of(back, *batch()) > 0
    export(model)
    table.release()


def test_student_only_gives_the_plain_student(path):
    model = trained()
    save(model, path)
    student = restore(Net(), path, student_only=True)
    assert type(student) is Net
    with model.hide_loss_modules():
        assert_same(student.state_dict(), model.state_dict())


def test_a_plain_model_is_saved_and_restored_plain(path):
    student = export(trained())
    save(student, path)
    back = restore(Net(), path)
    assert type(back) is Net
    assert_same(back.state_dict(), student.state_dict())
    with pytest.raises(ConfigError, match="plain model"):
        restore(Net(), path, teacher=make_teacher())


def test_layerwise_comes_back(path):
    config = {"teacher_model": (make_teacher, (6,)), "criterion": {("body", "body"): nn.MSELoss()}}
    save(convert(Net(), mode=[("layerwise_kd", config)]), path)
    back = restore(Net(), path)
    assert back.body.weight.requires_grad and not back.head.weight.requires_grad
    assert export(back).head.weight.requires_grad


def test_a_teacher_whose_run_is_gone_must_be_given(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path / "none"))
    student, teacher = pair()
    save(converted(student, note_run(teacher, "0123abcd" * 4, 640)), path)
    with pytest.raises(
        TeacherError, match=r"cannot be made again: .*0123abcd.* Pass it as teacher="
    ):
        restore(Net(), path)
    back = export(restore(Net(), path, teacher=teacher))
    assert_same(back.state_dict(), export(student).state_dict())


@pytest.mark.parametrize("spell", [lambda t: t, lambda t: lambda: t], ids=["instance", "lambda"])
def test_a_teacher_without_a_name_must_be_given_again(path, spell):
    student, teacher = pair()
    save(converted(student, spell(teacher)), path)
    with pytest.raises(TeacherError, match="pass teacher="):
        restore(Net(), path)
    back = restore(Net(), path, teacher=teacher)
    assert back.teacher_model is teacher


def test_a_changed_teacher_is_an_error_unless_allowed(path):
    save(trained(), path)
    other = make_teacher(seed=8)
    before = portrait(other)
    with pytest.raises(TeacherError, match="changed"):
        restore(Net(), path, teacher=other)
    assert portrait(other) == before
    back = restore(Net(), path, teacher=other, allow_changed_teacher=True)
    assert back.teacher_model is other


def test_a_cast_teacher_is_the_same_teacher(path):
    model = trained().double()
    save(model, path)
    back = restore(Net().double(), path)
    assert_same(back.state_dict(), model.state_dict())


def local_loss():
    class Local(nn.Module):
        def forward(self, student_output, teacher_output):
            return (student_output - teacher_output).abs().mean()

    return Local()


class Closed(nn.Module):
    """A loss that does not keep its constructor's argument under its name."""

    def __init__(self, power):
        super().__init__()
        self.exponent = power

    def forward(self, student_output, teacher_output):
        return (student_output - teacher_output).abs().pow(self.exponent).mean()


class Doubling(nn.Module):
    """A loss whose attribute is not what its constructor was given."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = 2 * weight

    def forward(self, student_output, teacher_output):
        return self.weight * (student_output - teacher_output).abs().mean()


@pytest.mark.parametrize("make", [local_loss, lambda: Closed(3), lambda: Doubling(2.0)])
def test_a_loss_that_cannot_be_made_again_must_be_given(path, make):
    save(converted(pair()[0], TEACHER, criterion=make()), path)
    with pytest.raises(ConfigError, match="pass criterion="):
        restore(Net(), path)
    back = restore(Net(), path, criterion=make())
    assert loss_of(back, *batch()) > 0


@pytest.mark.parametrize(
    "loss",
    [
        LogitsDistillationLoss(temperature=2.5),
        nn.SmoothL1Loss(beta=0.3),
        LayerLoss(nn.SmoothL1Loss(beta=0.3), call=0),
        Doubling(0.0),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_with_plain_arguments_come_back_as_they_were(path, loss):
    model = converted(pair()[0], TEACHER, criterion={("head", "head"): loss})
    save(model, path)
    back = restore(Net(), path)
    assert repr(back.loss_modules) == repr(model.loss_modules)
    assert torch.equal(loss_of(back, *batch()), loss_of(model, *batch()))


def test_a_given_criterion_is_put_in_the_order_of_the_file(path):
    model = trained()
    save(model, path)
    turned = dict(reversed(features().items()))
    back = restore(Net(), path, criterion=turned)
    assert back._kd.distiller.loss_names == model._kd.distiller.loss_names
    assert_same(back.state_dict(), model.state_dict())


def test_a_criterion_with_other_pairs_is_refused(path):
    save(trained(), path)
    with pytest.raises(ConfigError, match="layer pairs"):
        restore(Net(), path, criterion=LogitsDistillationLoss(T))


def test_weights_that_do_not_fit_leave_the_model(path):
    save(trained(), path)
    student = Net(width=5)
    before, weight = portrait(student), student.head.weight.clone()
    with pytest.raises(CheckpointError, match=r"stem\.0\.weight"):
        restore(student, path)
    assert portrait(student) == before and torch.equal(student.head.weight, weight)


def test_a_converted_model_is_not_restored_into(path):
    model = trained()
    save(model, path)
    with pytest.raises(ConfigError, match="export it first"):
        restore(model, path)


def test_a_wrapper_around_a_converted_model_is_not_saved_as_if_it_were_plain(path):
    with pytest.raises(ConfigError, match=r"'0'.*save that one"):
        save(nn.Sequential(trained()), path)


def test_student_only_takes_nothing_else(path):
    save(trained(), path)
    with pytest.raises(ConfigError, match="student_only"):
        restore(Net(), path, student_only=True, teacher=make_teacher())


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    temperature=st.floats(0.01, 100),
    weights=st.lists(st.floats(0, 1), min_size=2, max_size=2).filter(lambda w: sum(w) <= 1),
    mode=st.sampled_from(["eval", "train"]),
)
def test_any_plain_settings_come_back(tmp_path, temperature, weights, mode):
    criterion = {
        ("head", "head"): LogitsDistillationLoss(temperature=temperature),
        ("", "head"): nn.MSELoss(),
    }
    model = converted(
        Net(2),
        (make_teacher, (3,)),
        criterion=criterion,
        loss_balancer=StaticLossBalancer(weights),
        teacher_mode=mode,
    )
    save(model, tmp_path / "any.pt")
    back = restore((Net, (2,)), tmp_path / "any.pt")
    assert list(back._kd.distiller.criterion.keys) == list(criterion)
    assert back.loss_modules[0].temperature == temperature
    assert back.loss_balancer.kd_loss_weight == weights
    assert back._kd.distiller.teacher.mode == mode


def test_a_teachers_checkpoint_may_be_named_by_a_path(path, tmp_path):
    weights = tmp_path / "teacher.pt"
    torch.save(models.DigitsSmallModel().state_dict(), weights)
    teacher = (models.get, ("digits_small_model",), {"checkpoint_path": weights})
    save(converted(Net(), teacher), path)
    assert restore(Net(), path).teacher_model is not None


def test_a_teacher_whose_weights_no_name_gives_is_asked_for(path):
    teacher = models.get("digits_small_model")
    nn.init.ones_(next(teacher.parameters()))
    save(converted(Net(), teacher), path)
    with pytest.raises(TeacherError, match="teacher="):
        restore(Net(), path)
    assert restore(Net(), path, teacher=teacher).teacher_model is teacher
