"""`export`: the student as it came, and nothing else."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from meta_cases import (
    FeatureLoss,
    Net,
    batch,
    converted,
    features,
    gradients,
    loss_of,
    make_teacher,
    pair,
    portrait,
)
from torch import nn

from distillation import DistillationModel, LogitsDistillationLoss, export, save
from distillation.errors import ConfigError


def size(obj: object) -> int:
    file = io.BytesIO()
    torch.save(obj, file)
    return file.tell()


def test_export_gives_the_same_object_as_it_was():
    student, teacher = pair()
    before = portrait(student)
    model = converted(student, teacher, criterion=features())
    loss_of(model, *batch()).backward()
    gradients(model)
    assert export(model) is student
    assert portrait(student) == before


def test_the_teacher_gets_its_flags_and_hooks_back():
    student, teacher = pair()
    teacher.train()
    teacher.stem.eval()
    teacher.head.bias.requires_grad_(False)
    before = portrait(teacher)
    model = converted(student, teacher, criterion=features())
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    export(model)
    assert portrait(teacher) == before


def test_a_shared_teacher_gets_its_flags_back_after_the_last_export():
    teacher = make_teacher()
    first, second = converted(Net(), teacher), converted(Net(), teacher)
    export(first)
    assert not teacher.training and not teacher.head.weight.requires_grad
    assert loss_of(second, *batch()) > 0
    export(second)
    assert teacher.training and teacher.head.weight.requires_grad


def test_the_teacher_is_garbage_once_the_caller_drops_it():
    student, teacher = pair()
    model = converted(student, teacher, criterion=features())
    loss_of(model, *batch()).backward()
    gone = weakref.ref(teacher)
    export(model)
    del teacher
    gc.collect()
    assert gone() is None


def test_activations_and_losses_are_garbage_too():
    student, teacher = pair()
    criterion = features()
    model = converted(student, teacher, criterion=criterion)
    model(batch()[0])  # no loss is computed: the outputs are still held
    gone = [weakref.ref(loss) for loss in criterion.values()]
    del criterion
    export(model)
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_the_exported_student_is_saved_as_small_as_one_never_converted():
    student, teacher = pair()
    never = size(student)
    model = converted(student, teacher, criterion=features())
    loss_of(model, *batch()).backward()
    gradients(model)
    assert abs(size(export(model)) / never - 1) < 0.02


def test_a_file_without_loss_parameters_is_as_small_as_the_state_dict(tmp_path):
    student, teacher = Net(64), make_teacher(256)
    plain = size(student.state_dict())
    save(converted(student, teacher), tmp_path / "student.pt")
    assert abs((tmp_path / "student.pt").stat().st_size / plain - 1) < 0.02


def test_export_takes_our_class_out_from_under_a_later_one():
    student, teacher = pair()
    model = converted(student, teacher)

    class Marked:
        marked = True

    later = type("Marked" + type(model).__name__, (Marked, type(model)), {"kept": 1})
    model.__class__ = later
    assert loss_of(model, *batch()) > 0
    assert export(model) is student
    assert type(student).__mro__[1:3] == (Marked, Net)
    assert not isinstance(student, DistillationModel)
    assert type(student).__name__ == "MarkedNet" and student.kept == 1
    assert student(batch()[0]).shape == (8, 10)


def test_a_plain_model_is_not_exported():
    with pytest.raises(ConfigError, match="Net is not converted"):
        export(Net())


def test_a_parent_is_told_which_part_to_export():
    parent = nn.Sequential(nn.Identity(), converted(*pair()))
    with pytest.raises(ConfigError, match=r"submodule '1' is: export that one"):
        export(parent)


def test_tools_that_walk_to_the_losses_and_put_them_back_leave_nothing_in_the_student():
    student, teacher = pair()
    before = set(student.state_dict())
    model = converted(student, teacher, criterion=features())
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model) is model
    balancer = model.loss_balancer
    for name, child in list(model.named_children()):
        setattr(model, name, copy.deepcopy(child) if name == "_loss_modules" else child)
    assert [type(loss) for loss in model.loss_modules] == [FeatureLoss, LogitsDistillationLoss]
    assert model.loss_balancer is balancer
    loss_of(model.eval(), *batch()).backward()
    assert model.loss_modules[0].project.weight.grad is not None
    with pytest.raises(ConfigError, match="not by a ModuleList of 0"):
        model._loss_modules = nn.ModuleList()
    assert set(export(model).state_dict()) == before
