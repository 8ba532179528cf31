"""Teachers are guests: frozen, without autograd, unchanged, and given back."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distillation.checkpoint import fingerprint
from distillation.errors import ConfigError, TeacherError
from distillation.references import Reference
from distillation.teacher import FrozenTeacher, as_teacher

HERE = __name__


class Net(nn.Module):
    """Batch norm and dropout: everything that behaves otherwise in training."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.body(x))


def make(width=4):
    return Net(width)


@pytest.fixture
def x():
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def flags(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
    )


# FrozenTeacher --------------------------------------------------------------------------------


def test_a_teacher_runs_frozen_in_evaluation_and_without_autograd(x):
    model = Net()
    teacher = FrozenTeacher(model)
    wanted = copy.deepcopy(model).eval()(x)
    y = teacher(x)
    assert torch.equal(y, wanted)
    assert not y.requires_grad and not y.is_inference()
    assert not any(itertools.chain(*flags(model)))


def test_a_source_is_no_part_of_the_module_that_holds_it():
    student = Net()
    names = list(student.state_dict())
    student.teacher = FrozenTeacher(Net())
    assert list(student.state_dict()) == names
    assert len(list(student.modules())) == len(list(Net().modules()))


def test_a_teacher_is_bit_identical_after_training(x):
    model, student = Net(), Net()
    before = copy.deepcopy(model.state_dict())
    teacher = FrozenTeacher(model)
    everything = [*student.parameters(), *model.parameters()]  # a careless script's optimizer
    optimizer = torch.optim.AdamW(everything, lr=0.1, weight_decay=0.5)
    for _ in range(5):
        model.train()  # a careless script, or a parent module that contains the teacher
        loss = F.mse_loss(student(x), teacher(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.grad is None


def test_outputs_of_any_structure_are_detached(x):
    class Structured(nn.Module):
        def forward(self, x):
            with torch.enable_grad():
                y = x * 2
            return {"same": x, "pair": (y, [x]), "flag": True}

    output = FrozenTeacher(Structured())(x.requires_grad_())
    tensors = [output["same"], output["pair"][0], output["pair"][1][0]]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert output["flag"] is True
    assert x.requires_grad


def test_a_model_that_runs_in_inference_mode_can_be_distilled(x):
    class Inference(Net):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    student = Net()
    loss = (student(x) * FrozenTeacher(Inference())(x)).sum()  # saves the teacher for backward
    loss.backward()
    assert student.head.weight.grad is not None


def test_half_precision_inputs_are_widened_to_the_weights(x):
    half = x.bfloat16()
    teacher = FrozenTeacher(Net())
    assert torch.equal(teacher(half), teacher(half.float()))
    assert torch.equal(teacher.run((), {"x": half}), teacher(half))
    assert teacher.double()(half).dtype == torch.float64
    assert teacher.bfloat16()(half).dtype == torch.bfloat16


def test_keyword_inputs_reach_the_model_and_sample_and_view_do_not(x):
    class Masked(nn.Module):
        def forward(self, x, *, scale):
            return x * scale

    index = torch.arange(8)
    y = FrozenTeacher(Masked())(x, scale=2, sample=index, view=index)
    assert torch.equal(y, 2 * x)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_flags_come_back_with_the_last_of_several_students(order):
    model = Net()
    model.head.requires_grad_(False)
    model.body[1].eval()
    before = flags(model)
    sources = [FrozenTeacher(model), FrozenTeacher(model), FrozenTeacher(model.body)]
    for index in order:
        assert flags(model) != before
        sources[index].release()
        sources[index].release()
    assert flags(model) == before


def test_a_students_hold_ends_with_the_student():
    model, student = Net(), Net()
    before = flags(model)
    student.teacher = FrozenTeacher(model)
    student.teacher.owner = student  # a cycle: only the garbage collector ends it
    del student
    gc.collect()
    assert flags(model) == before


def test_a_released_teacher_lets_the_model_go(x):
    model = Net()
    teacher, alive = FrozenTeacher(model), weakref.ref(model)
    teacher.release()
    assert teacher.released and teacher.module is None
    del model
    gc.collect()
    assert alive() is None
    with pytest.raises(TeacherError, match="released"):
        teacher(x)
    with pytest.raises(TeacherError, match="released"):
        teacher.share()


def test_a_teacher_is_not_pickled():
    with pytest.raises(TeacherError, match="describe"):
        pickle.dumps(FrozenTeacher(Net()))


def test_copies_share_the_model_and_have_their_own_hold(x):
    model = Net()
    teacher = FrozenTeacher(model, reference=Reference.of(make), run_uuid="a" * 32, run_step=7)
    twin = copy.deepcopy({"teacher": teacher})["teacher"]
    assert twin is not teacher and twin.module is model
    assert (twin.reference, twin.run_uuid, twin.run_step) == (Reference.of(make), "a" * 32, 7)
    teacher.release()
    assert not model.training
    twin.release()
    assert model.training


def test_follow_has_the_students_mode_but_no_autograd(x):
    model = Net()
    before = model.body[1].running_mean.clone()
    teacher = FrozenTeacher(model, mode="follow").train_with(True)
    y = teacher(x)
    assert model.training and not y.requires_grad
    assert not torch.equal(model.body[1].running_mean, before)
    assert torch.equal(teacher.train_with(False)(x), teacher(x))
    assert not any(p.requires_grad for p in model.parameters())


def test_train_is_not_frozen_and_autograd_sees_it(x):
    model = Net()
    teacher = FrozenTeacher(model, mode="train").train_with(True)
    teacher(x).sum().backward()
    assert model.head.weight.grad is not None
    with torch.no_grad():
        assert not teacher(x).requires_grad


@pytest.mark.parametrize("given", [lambda s: s, lambda s: [s], lambda s: (lambda: s,)])
def test_a_source_is_not_asked_for_another_mode_than_its_own(given):
    source = FrozenTeacher(Net())
    with pytest.raises(ConfigError, match=r"'follow' .* comes too late for FrozenTeacher"):
        as_teacher(given(source), mode="follow")
    as_teacher(given(FrozenTeacher(Net(), mode="follow")), mode="follow")


def test_eval_does_not_follow_the_student():
    model = Net()
    assert FrozenTeacher(model).train_with(True).module.training is False


def test_one_teacher_serves_students_in_two_threads(x):
    teacher = FrozenTeacher(Net())
    wanted, wrong = teacher(x), []

    def work():
        mine = teacher.share()
        for _ in range(50):
            if not torch.equal(mine(x), wanted) or mine(x).requires_grad:
                wrong.append(1)
        mine.release()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and not teacher.module.training


def test_a_compiled_call_gives_the_same(x):
    torch._dynamo.reset()
    teacher = FrozenTeacher(Net())
    compiled = torch.compile(lambda x: teacher(x), fullgraph=True, backend="aot_eager")
    y = compiled(x.requires_grad_())
    assert torch.equal(y, teacher(x)) and not y.requires_grad


@pytest.mark.parametrize("name", ["half", "bfloat16", "double"])
def test_a_cast_reaches_the_weights_and_keeps_the_fingerprint(name):
    model = Net()
    teacher = FrozenTeacher(model)
    before = teacher.fingerprint
    assert before == fingerprint(model)
    dtype = getattr(nn.Linear(1, 1), name)().weight.dtype
    assert getattr(teacher, name)() is teacher
    assert model.head.weight.dtype is dtype
    assert model.body[1].num_batches_tracked.dtype is torch.int64
    assert teacher.fingerprint == before
    assert teacher.float().fingerprint == before == teacher.share().fingerprint
    with torch.no_grad():
        model.head.weight.add_(1)
    assert teacher.fingerprint == fingerprint(model) != before


def test_apply_of_a_student_reaches_the_teacher():
    teacher = FrozenTeacher(Net())
    teacher._apply(lambda tensor: tensor.to("meta"))
    assert teacher.module.head.weight.is_meta
    assert not teacher.module.head.weight.requires_grad


def test_to_takes_what_a_module_takes():
    teacher = FrozenTeacher(nn.Conv2d(3, 4, 3))
    teacher.to("cpu", torch.float64, memory_format=torch.channels_last)
    weight = teacher.module.weight
    assert weight.dtype is torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last)


# Teacher is student ---------------------------------------------------------------------------


def shares_a_layer(model):
    student = Net()
    student.head = model.head
    return student


def shares_a_parameter(model):
    student = Net()
    student.head.weight = model.head.weight
    return student


def shares_memory(model):
    student = Net()
    student.head.weight = nn.Parameter(model.head.weight.detach().view(2, 4))
    return student


def shares_a_buffer(model):
    student = Net()
    student.body[1].running_mean = model.body[1].running_mean
    return student


@pytest.mark.parametrize(
    ("make_student", "message"),
    [
        (lambda model: model, "same object"),
        (lambda model: nn.Sequential(model), "share submodule"),
        (shares_a_layer, "share submodule: 'head'"),
        (shares_a_parameter, "share weights: 'head.weight'"),
        (shares_memory, "share weights: 'head.weight'"),
        (shares_a_buffer, "share weights: 'body.1.running_mean'"),
    ],
)
def test_a_student_that_is_part_of_the_teacher_is_refused(make_student, message):
    model = Net()
    with pytest.raises(TeacherError, match=message):
        FrozenTeacher(model).refuse_student(make_student(model))
    with pytest.raises(TeacherError, match=message):
        as_teacher([Net(), model]).refuse_student(make_student(model))


def test_a_copy_of_the_student_is_a_fine_teacher():
    model = Net()
    FrozenTeacher(model).refuse_student(copy.deepcopy(model))
    FrozenTeacher(Net().to("meta")).refuse_student(Net().to("meta"))
