"""What `distill_many` measures of its students, on batches and answers that they share."""

from __future__ import annotations

import json

import pytest
import torch
from many_kit import (
    TEST,
    TRAIN,
    make_loader,
    make_student,
    make_teacher,
)

from distillation import runs
from distillation.data import ReplayableLoader, TensorLoader, digits
from distillation.many import distill_many
from distillation.table import ImageInputs, TeacherTable


def test_the_last_evaluation_is_kept_with_the_run(tmp_path):
    test = TensorLoader(TEST, 60, shuffle=False, mean=TRAIN.mean, std=TRAIN.std)
    few = TensorLoader(TEST.subset(20, seed=0), 20, shuffle=False, mean=TRAIN.mean, std=TRAIN.std)
    splits = {"test": test, "few": few}
    loader = make_loader()
    result = distill_many(
        {"a": make_student()}, make_teacher(), loader, epochs=2, valid_loaders=splits, root=tmp_path
    )["a"]
    told = json.loads((runs.find(result.run_uuid, tmp_path).path / "evaluation.json").read_text())
    assert (told["split"], told["epoch"], told["images"]) == ("test", 2, len(TEST))
    assert told["accuracy"] == pytest.approx(result.metrics[-1]["accuracy.test"])
    assert told["ece"] == pytest.approx(result.metrics[-1]["ece.test"])
    assert told["classes"] == list(TEST.classes)


def agreement_and_kl(student, teacher):
    """By another formula, in float64."""
    batch = next(iter(TensorLoader(TEST, 60, shuffle=False, mean=TRAIN.mean, std=TRAIN.std)))
    with torch.no_grad():
        ours, theirs = (m.eval()(batch.images).double() for m in (student, teacher))
    p, q = theirs.softmax(1), ours.softmax(1)
    same = (ours.argmax(1) == theirs.argmax(1)).double().mean()
    return float(same), float((p * (p.log() - q.log())).sum(1).mean())


@pytest.mark.parametrize("teacher_table", [None, "auto", "a folder"])
def test_each_student_is_compared_with_the_teacher(tmp_path, teacher_table):
    if teacher_table == "a folder":
        teacher_table = tmp_path / "tables"
    test = TensorLoader(TEST, 60, shuffle=False, mean=TRAIN.mean, std=TRAIN.std)
    teacher, students = make_teacher(), {"a": make_student(), "b": make_student(seed=1)}
    results = distill_many(
        students,
        teacher,
        make_loader(),
        epochs=2,
        valid_loaders={"test": test},
        teacher_table=teacher_table,
        root=tmp_path / "runs",
    )
    for result in results.values():
        measured = result.metrics[-1]
        agreement, kl = agreement_and_kl(result.model, teacher)
        assert measured["agreement.test"] == pytest.approx(agreement)
        assert measured["kl.test"] == pytest.approx(kl, rel=1e-2)
        run = runs.find(result.run_uuid, tmp_path / "runs")
        told = json.loads((run.path / "evaluation.json").read_text())
        assert told["agreement"] == pytest.approx(agreement)


def test_a_teacher_that_guesses_is_warned_of_once(tmp_path):
    test = TensorLoader(digits()[1], 120, shuffle=False)
    students = {"a": make_student(), "b": make_student(seed=1)}
    with pytest.warns(UserWarning, match="of 360 validation images, where chance is 10.0%") as told:
        distill_many(
            students, make_teacher(), make_loader(), epochs=2, valid_loaders={"test": test}
        )
    assert len([w for w in told if "chance" in str(w.message)]) == 1


def test_a_validation_shows_the_table_the_same_pictures_in_every_epoch(tmp_path):
    test = next(iter(TensorLoader(TEST, 60, shuffle=False, mean=TRAIN.mean, std=TRAIN.std)))
    items = list(zip(test.images, test.labels.tolist(), strict=True))
    pictures = ReplayableLoader(items, batch_size=20, shuffle=False)
    teacher, calls = make_teacher(), []
    options = {"valid_loaders": {"test": pictures}, "teacher_table": "auto", "root": tmp_path}
    distill_many({"a": make_student()}, teacher, make_loader(), epochs=3, **options)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    distill_many({"a": make_student()}, teacher, make_loader(), epochs=3, **options)
    # But for the few entries that are computed again to see that they are the teacher's
    assert len(calls) <= 2


@pytest.mark.parametrize("in_ensemble", [False, True])
def test_a_table_as_the_teacher_has_no_say_on_other_images(tmp_path, in_ensemble):
    test = TensorLoader(TEST, 60, shuffle=False, mean=TRAIN.mean, std=TRAIN.std)
    with TeacherTable(make_teacher(), tmp_path, ImageInputs.of(make_loader())) as table:
        table.fill()
        teacher = [table, make_teacher()] if in_ensemble else table
        results = distill_many(
            {"a": make_student()}, teacher, make_loader(), epochs=1, valid_loaders={"test": test}
        )
    assert set(results["a"].metrics[-1]) >= {"accuracy.test", "ece.test"}
    assert not any(name.startswith(("agreement", "kl")) for name in results["a"].metrics[-1])


def test_labels_that_the_loss_ignores_are_not_evaluated(tmp_path):
    images = next(iter(TensorLoader(TEST, 60, shuffle=False, mean=TRAIN.mean, std=TRAIN.std)))[0]
    labels = TEST.labels.clone()
    labels[:25] = -100
    result = distill_many(
        {"a": make_student()},
        make_teacher(),
        make_loader(),
        epochs=1,
        valid_loaders={"test": [(images, labels)]},
        root=tmp_path,
    )["a"]
    told = json.loads((runs.find(result.run_uuid, tmp_path).path / "evaluation.json").read_text())
    assert told["images"] == 35
