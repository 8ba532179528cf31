"""A recorded run's model on its test set, and beside its teacher there."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distillation import runs
from distillation.data import digits
from distillation.errors import DataError, RunError, ShapeError
from distillation.evaluation import evaluate_run, measure
from distillation.frozen_teacher import FrozenTeacher
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel
from distillation.references import Reference
from distillation.transfer import agreement, kl_from_teacher


def test_what_is_measured_does_not_depend_on_the_batches():
    torch.manual_seed(0)
    model, teacher = nn.Linear(5, 3), nn.Linear(5, 3)
    images, labels = torch.rand(10, 5), torch.arange(10) % 3
    whole = measure(model, [(images, labels)], teacher)
    parts = measure(model, [(images[:7], labels[:7]), (images[7:], labels[7:])], teacher)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert whole["images"] == 10
    loss = nn.functional.cross_entropy(model(images), labels).item()
    assert whole["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_teacher_may_want_its_images_normalised_otherwise():
    model = nn.Linear(5, 3)
    images, labels = torch.rand(10, 5), torch.arange(10) % 3
    told = measure(model, [(2 * images, labels)], model, [(images, labels)])
    assert told["kl"] == pytest.approx(kl_from_teacher(model(2 * images), model(images)).item())
    assert measure(model, [(images, labels)], model)["kl"] == 0


def test_a_teacher_of_other_classes_is_refused():
    batch = (torch.rand(4, 5), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="3 classes and the teacher 4"):
        measure(nn.Linear(5, 3), [batch], nn.Linear(5, 4))


# A student's run, and its teacher's


def recorded(root, model: nn.Module, made_by: type, **options) -> runs.Run:
    """A run of digits with the weights of `model` at step 10, other ones at step 20."""
    with runs.create("digits", root=root, model=Reference.of(made_by), keep=2, **options) as run:
        run.update(evaluation={"dataset": "digits"})
        run.save_checkpoint(10, {"model": model.state_dict()})
        run.save_checkpoint(20, {"model": made_by().state_dict()})
    return runs.find(run.uuid, root)


@pytest.fixture
def pair(tmp_path):
    """A student and its teacher, which it had as it was at step 10."""
    torch.manual_seed(0)
    large, small = DigitsLargeModel().eval(), DigitsSmallModel().eval()
    teacher = recorded(tmp_path, large, DigitsLargeModel)
    student = recorded(tmp_path, small, DigitsSmallModel, parent=teacher)
    note_teacher(tmp_path, student, step=10, fingerprint=FrozenTeacher(large).fingerprint)
    return runs.find(f"{student.uuid}@10", tmp_path), teacher, small, large


def note_teacher(root, student: runs.Run, **facts) -> None:
    with runs.resume(student.uuid, root) as recorder:
        recorder.update(teacher=facts)


def test_a_student_is_compared_with_its_teacher_as_it_had_it(pair):
    student, teacher, small, large = pair
    _, test = digits()
    images = (test.images / 255 - torch.tensor(test.mean)) / torch.tensor(test.std)
    with torch.no_grad():
        theirs, ours = large(images), small(images)
    told = evaluate_run(student)
    assert told["teacher"] == teacher.uuid
    assert told["agreement"] == pytest.approx(agreement(ours, theirs).item())
    assert told["kl"] == pytest.approx(kl_from_teacher(ours, theirs).item(), rel=1e-4)
    assert "teacher_left_out" not in told


def test_a_run_without_a_teacher_has_no_agreement(pair):
    told = evaluate_run(pair[1])
    assert not {"teacher", "agreement", "kl"} & set(told)
    assert told["ece"] >= 0


def test_a_teacher_that_was_removed_is_said_to_be(pair, tmp_path):
    student, teacher, *_ = pair
    runs.remove(teacher.uuid, force=True, root=tmp_path)
    told = evaluate_run(student)
    assert told["teacher_left_out"] == f"run {teacher.uuid} is not in this store"
    assert told["images"] == 360
    assert "kl" not in told


def test_a_teacher_with_other_weights_is_not_compared_with(pair, tmp_path):
    student, *_ = pair
    note_teacher(tmp_path, student, step=20, fingerprint="0" * 64)
    told = evaluate_run(runs.find(student.uuid, tmp_path))
    assert "not the teacher it was" in told["teacher_left_out"]
    assert "agreement" not in told


def test_what_is_measured_can_be_saved_for_the_dashboard(pair):
    student, *_ = pair
    assert not (student.path / "evaluation.json").exists()
    told = evaluate_run(student, save=True)
    saved = json.loads((student.path / "evaluation.json").read_text())
    for name in ("accuracy", "ece", "agreement", "kl", "images", "step"):
        assert saved[name] == told[name]
    assert (saved["split"], saved["epoch"], saved["classes"][3]) == ("test", None, "3")
    assert sum(map(sum, saved["confusion"])) == 360


def test_a_run_that_is_being_written_is_not_written_beside(pair, tmp_path):
    student, *_ = pair
    with runs.resume(student.uuid, tmp_path), pytest.raises(RunError, match="is running"):
        evaluate_run(student, save=True)
    assert not (student.path / "evaluation.json").exists()


def test_a_model_agrees_with_itself_in_whatever_order_the_images_come():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    images = TensorDataset(torch.rand(30, 5), torch.arange(30) % 3)
    shuffled = DataLoader(images, 10, shuffle=True)
    found = measure(model, shuffled, model)
    assert (found["agreement"], found["kl"], found["images"]) == (1.0, 0.0, 30)
    assert measure(model, iter(list(shuffled)), model)["images"] == 30


def test_other_images_for_the_teacher_are_refused():
    model, batch = nn.Linear(5, 3), (torch.rand(3, 5), torch.arange(3))
    with pytest.raises(DataError, match="another number of batches"):
        measure(model, [batch, batch], model, [batch])
    with pytest.raises(DataError, match="the labels of a batch differ"):
        measure(model, [batch], model, [(batch[0], batch[1].flip(0))])
