"""`convert`: what it accepts, what it leaves as it was, and what it refuses."""

from __future__ import annotations

import inspect
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from meta_cases import Net, T, batch, converted, loss_of, make_teacher, pair, portrait
from torch import nn

from distillation import (
    DistillationModel,
    KDLossConfig,
    LogitsDistillationLoss,
    StaticLossBalancer,
    convert,
    export,
)
from distillation.errors import ConfigError, DistillationError, TeacherError
from distillation.teacher import FrozenTeacher


def config(teacher=None, **more):
    return {
        "teacher_model": make_teacher if teacher is None else teacher,
        "criterion": LogitsDistillationLoss(temperature=T),
        **more,
    }


@pytest.mark.parametrize(
    "spell",
    [
        lambda c: [("kd_loss", c)],
        lambda c: ("kd_loss", c),
        lambda c: {"kd_loss": c},
        lambda c: [("kd_loss", KDLossConfig(**c))],
    ],
    ids=["pairs", "pair", "dict", "KDLossConfig"],
)
def test_every_spelling_of_mode_converts(spell):
    model = convert(Net(), mode=spell(config()))
    model(batch()[0])
    assert model.compute_kd_loss() > 0


def test_the_configuration_can_be_keywords():
    model = convert(Net(), **config())
    model(batch()[0])
    assert model.compute_kd_loss() > 0


@pytest.mark.parametrize("mode", ["export_student", ["export_student"], {"export_student": {}}])
def test_export_student_is_a_mode(mode):
    student = Net()
    convert(student, mode=[("kd_loss", config())])
    assert type(convert(student, mode=mode)) is Net


def test_an_empty_list_changes_nothing():
    student = Net()
    before = portrait(student)
    assert convert(student, mode=[]) is student
    assert portrait(student) == before


@pytest.mark.parametrize("model", [Net, (Net,), (Net, (4,)), (Net, (), {"width": 4})])
def test_the_model_may_be_a_class_or_a_call(model):
    made = convert(model, mode=[("kd_loss", config())])
    assert isinstance(made, Net) and isinstance(made, DistillationModel)


@pytest.mark.parametrize(
    "teacher",
    [
        make_teacher,
        (make_teacher,),
        (make_teacher, (12,)),
        (make_teacher, (), {"width": 12}),
        Net,
        Net(10),
        [Net(10), Net(12)],
    ],
    ids=["function", "tuple1", "tuple2", "tuple3", "class", "instance", "ensemble"],
)
def test_every_spelling_of_the_teacher_gives_one(teacher):
    model = convert(Net(), **config(teacher))
    model(batch()[0])
    assert model.compute_kd_loss() > 0


def test_conversion_is_in_place_and_keeps_class_parameters_and_output():
    student, teacher = pair()
    x, _ = batch()
    student.eval()
    before, parameters = student(x), list(student.parameters())
    model = converted(student, teacher)
    assert model is student and isinstance(model, Net) and isinstance(model, nn.Module)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert torch.equal(model(x), before)
    assert model.original_cls is Net and model.teacher_model is teacher


def test_the_signature_of_forward_is_kept():
    plain = inspect.signature(Net().forward)
    model = convert(Net(), **config())
    assert inspect.signature(model.forward) == plain
    assert inspect.signature(type(model).forward) == inspect.signature(Net.forward)


def test_inputs_may_be_named_like_the_keys_of_a_table():
    class Denoiser(Net):
        def forward(self, sample, view=1.0):
            return super().forward(sample * view)

    x, _ = batch()
    for teacher in (Denoiser(), [Denoiser(), Denoiser()]):
        model = convert(Denoiser(), **config(teacher))
        model(sample=x, view=2.0)
        wanted = model.compute_kd_loss()
        model(2 * x)
        assert torch.allclose(model.compute_kd_loss(), wanted, rtol=1e-4)


def test_converting_one_class_leaves_the_others_alone():
    class Other(nn.Module):
        def forward(self, images, *, scale=1.0):
            return images.mean((1, 2, 3), keepdim=False)[:, None].expand(-1, 10) * scale

    first = convert(Net(), **config())
    wanted = inspect.signature(first.forward)
    second = convert(Other(), **config())
    assert inspect.signature(first.forward) == wanted
    assert inspect.signature(second.forward) == inspect.signature(Other().forward)
    assert not isinstance(second, Net)


def test_three_classes_of_one_name_are_three_classes():
    def define():
        class Same(Net):
            pass

        return Same

    models = [convert(define(), **config()) for _ in range(3)]
    for model in models:
        model(batch()[0])
        assert model.compute_kd_loss() > 0
        assert type(export(model)).__name__ == "Same"


def test_two_models_of_one_class_share_the_made_class():
    first, second = (convert(Net(), **config()) for _ in range(2))
    assert type(first) is type(second)


def test_a_forward_set_on_the_instance_is_what_runs():
    student, teacher = pair()

    def doubled(self, x, times=2):
        return Net.forward(self, x) * times

    student.forward = types.MethodType(doubled, student)
    x, _ = batch()
    student.eval()
    wanted = student(x)
    model = converted(student, teacher)
    assert torch.equal(model(x), wanted)
    assert "times" in inspect.signature(model.forward).parameters
    assert export(model).__dict__["forward"].__func__ is doubled


def test_a_forward_wrapped_after_the_conversion_survives_the_export():
    student, teacher = pair()
    model = converted(student, teacher)
    inner = model.forward
    model.forward = lambda x: inner(x) + 1
    x, _ = batch()
    model.eval()
    out = model(x)
    assert torch.equal(export(model)(x), out)


def test_converting_twice_is_refused_and_harmless():
    student, teacher = pair()
    model = converted(student, teacher)
    with pytest.raises(ConfigError, match=r"converted already; export\(model\) first"):
        converted(model, make_teacher())
    assert loss_of(model, *batch()) > 0


def test_the_teacher_may_not_be_the_student():
    student = Net()
    with pytest.raises(TeacherError, match="same object"):
        converted(student, student)
    assert type(student) is Net and student.training and student.head.weight.requires_grad


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"criterion": {("boddy", "body"): nn.MSELoss()}}, "'body'"),
        ({"criterion": {("body", "boddy"): nn.MSELoss()}}, "'body'"),
        ({"criterion": {"body": nn.MSELoss()}}, r"\(student_layer, teacher_layer\)"),
        ({"criterion": {}}, "criterion"),
        ({"criterion": LogitsDistillationLoss}, "is a class"),
        ({"criterion": "kl"}, "'kl'"),
        ({"loss_balancer": 0.5}, "loss_balancer"),
        ({"teacher_mode": "evil"}, "'eval'"),
        ({"teacher_model": None}, r"teacher_model is missing; give convert\(…, teacher_model=…\)"),
        ({"criterion": None}, r"criterion is missing; give convert\(…, criterion=…\)"),
        ({"teacher_model": lambda: 3}, "int"),
        ({"temperature": 3}, "temperature"),
        ({"critrion": nn.MSELoss()}, "'criterion'"),
    ],
)
def test_a_failed_conversion_names_the_offender_and_leaves_student_and_teacher(change, named):
    student, teacher = pair()
    before, theirs = portrait(student), portrait(teacher)
    with pytest.raises(DistillationError, match=named):
        convert(student, mode=[("kd_loss", {**config(teacher), **change})])
    assert portrait(student) == before
    assert portrait(teacher) == theirs


def test_when_the_second_mode_fails_the_first_is_undone():
    student, teacher = pair()
    before, theirs = portrait(student), portrait(teacher)
    with pytest.raises(ConfigError, match="converted already"):
        convert(student, mode=[("kd_loss", config(teacher)), ("kd_loss", config())])
    assert portrait(student) == before
    assert portrait(teacher) == theirs


def test_when_a_mode_after_the_export_fails_the_model_is_still_converted():
    student, teacher = pair()
    model = converted(student, teacher)
    cls, inner = type(model), model.forward
    model.forward = lambda x: inner(x)
    with pytest.raises(ConfigError):
        convert(model, mode=["export_student", ("kd_loss", config(criterion={}))])
    assert type(model) is cls
    assert loss_of(model, *batch()) > 0


def test_a_class_that_cannot_be_subclassed_leaves_the_student():
    class Final(Net):
        def __init_subclass__(cls):
            raise TypeError("Final is final")

    student, teacher = Final(), make_teacher()
    student.forward = types.MethodType(Net.forward, student)
    before, theirs = portrait(student), portrait(teacher)
    with pytest.raises(TypeError, match="is final"):
        converted(student, teacher)
    assert portrait(student) == before
    assert portrait(teacher) == theirs


def test_the_mode_of_a_source_is_not_changed_afterwards():
    with pytest.raises(ConfigError, match="mode='follow'"):
        converted(Net(), FrozenTeacher(make_teacher()), teacher_mode="follow")


@pytest.mark.parametrize("mode", ["kd_los", ["kd_loss"], [("kd_loss",)], 3, [3]])
def test_a_mode_that_is_none_is_named(mode):
    with pytest.raises(ConfigError, match=r"kd_los|mode"):
        convert(Net(), mode=mode)


anything = st.recursive(
    st.none() | st.integers() | st.sampled_from(["kd_loss", "layerwise_kd", "export", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["kd_loss", "teacher_model", "criterion", "y"]), inner)
    ),
    max_leaves=6,
)


@given(mode=anything.filter(lambda mode: mode is not None and mode not in ([], {})))
def test_whatever_mode_is_a_model_is_converted_or_the_error_is_ours(mode):
    student = Net(2)
    before = portrait(student)
    with pytest.raises(DistillationError):
        convert(student, mode=mode)
    assert portrait(student) == before


def test_mode_and_keywords_together_are_refused():
    with pytest.raises(ConfigError, match="criterion"):
        convert(Net(), mode=[], criterion=nn.MSELoss())


@pytest.mark.parametrize("model", [3, lambda: 3, (Net, 3), ()])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ConfigError, match="model"):
        convert(model, **config())


def test_a_model_with_a_clashing_attribute_is_refused():
    student = Net()
    student.loss_balancer = "mine"
    with pytest.raises(ConfigError, match="'loss_balancer' of its own"):
        convert(student, **config())


def test_wrappers_are_converted_inside():
    with pytest.raises(ConfigError, match="before it is wrapped"):
        convert(nn.DataParallel(Net()), **config())


def test_a_converted_model_is_not_pickled(tmp_path):
    model = convert(Net(), **config())
    with pytest.raises(DistillationError, match=r"distillation\.save"):
        torch.save(model, tmp_path / "model.pt")


def test_the_same_cell_can_run_ten_times():
    teacher = make_teacher()
    flags = [(p.requires_grad, teacher.training) for p in teacher.parameters()]
    student = Net()
    before = portrait(student)
    for _ in range(10):
        model = convert(student, **config(teacher, loss_balancer=StaticLossBalancer(0.5)))
        loss_of(model, *batch()).backward()
        student.zero_grad()
        export(model)
    assert portrait(student) == before
    assert [(p.requires_grad, teacher.training) for p in teacher.parameters()] == flags
    assert sum(len(m._forward_hooks) for m in teacher.modules()) == 0
