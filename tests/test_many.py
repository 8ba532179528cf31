"""Several students, one stream: each becomes what it would have become alone."""

from __future__ import annotations

import pytest
import torch
from many_kit import (
    TEST,
    TRAIN,
    cosine,
    make_loader,
    make_student,
    make_students,
    make_teacher,
    sgd,
    weights,
)
from torch.nn import functional as F

from distillation import runs
from distillation.data import TensorLoader
from distillation.distiller import Distiller
from distillation.errors import ConfigError, TeacherError
from distillation.losses import LogitsDistillationLoss, StaticLossBalancer
from distillation.many import Student, distill_many
from distillation.models.digits import DigitsLargeModel
from distillation.table import ImageInputs, TeacherTable


def test_each_student_equals_the_one_trained_alone_bit_for_bit():
    together = make_students()
    distill_many(together, make_teacher(), make_loader(), epochs=2)
    for name, student in make_students().items():
        distill_many({name: student}, make_teacher(), make_loader(), epochs=2)
        assert torch.equal(weights(student), weights(together[name])), name
    assert not torch.equal(weights(together["small"]), weights(together["warm"]))


def test_a_student_equals_the_one_of_a_loop_written_by_hand():
    student = make_student(DigitsLargeModel, seed=3)
    distill_many({"a": make_student(), "b": student}, make_teacher(), make_loader(), epochs=2)

    by_hand, teacher, loader = make_student(DigitsLargeModel, seed=3), make_teacher(), make_loader()
    model, loss_fn = by_hand.model.train(), LogitsDistillationLoss(temperature=4.0)
    optimizer = sgd(model.parameters())
    schedule = cosine(optimizer, 2 * len(loader))
    torch.manual_seed(3)
    for epoch in range(2):
        for batch in loader.batches(epoch):
            with torch.no_grad():
                teacher_logits = teacher(batch.images)
            output = model(batch.images)
            loss = 0.9 * loss_fn(output, teacher_logits) + (1 - 0.9) * F.cross_entropy(
                output, batch.labels
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    assert torch.equal(weights(student), weights(by_hand))


def test_the_teacher_is_asked_once_for_each_batch(tmp_path):
    teacher, calls = make_teacher(), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    distill_many(make_students(), teacher, make_loader(), epochs=1)
    assert len(calls) == len(make_loader()) == 7

    with TeacherTable(teacher, tmp_path / "table", ImageInputs.of(make_loader())) as table:
        table.fill()
        before = len(calls)
        distill_many(make_students(), table, make_loader(), epochs=3)
        assert len(calls) == before
        assert table.count() == 400  # the caller's table is still open


def test_the_random_numbers_of_the_caller_are_left_alone():
    teacher, students = make_teacher(), {"large": make_student(DigitsLargeModel)}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    distill_many(students, teacher, make_loader(), epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("several", [False, True])
def test_a_teacher_is_named_by_its_run_of_the_same_store(tmp_path, several):
    first = distill_many(
        {"teacher": make_student(DigitsLargeModel)},
        make_teacher(),
        make_loader(),
        epochs=1,
        root=tmp_path,
    )["teacher"]
    named, model = first.run_uuid, first.model
    if several:
        named, model = [named], [model]
    by_name, by_hand = {"a": make_student()}, {"a": make_student()}
    distill_many(by_name, named, make_loader(), epochs=1, root=tmp_path)
    distill_many(by_hand, model, make_loader(), epochs=1)
    assert torch.equal(weights(by_name["a"]), weights(by_hand["a"]))


def test_metrics_name_the_loss_and_the_split_and_flags_come_back():
    test = TensorLoader(TEST, 60, shuffle=False, mean=TRAIN.mean, std=TRAIN.std)
    student, teacher = make_student(), make_teacher()
    result = distill_many(
        {"a": student}, teacher, make_loader(), epochs=2, valid_loaders={"test": test}
    )["a"]
    assert set(result.metrics[-1]) == {
        "loss.train",
        "LogitsDistillationLoss_0.train",
        "student_loss.train",
        "accuracy.test",
        "loss.test",
        "ece.test",
        "agreement.test",
        "kl.test",
    }
    assert len(result.metrics) == 2
    with torch.no_grad():
        student.model.eval()
        right = student.model(next(iter(test)).images).argmax(-1) == TEST.labels
    assert result.metrics[-1]["accuracy.test"] == pytest.approx(right.float().mean().item())
    assert all(p.requires_grad for p in teacher.parameters())
    assert result.run_uuid is None
    trained = make_student()
    distill_many({"a": trained}, teacher, make_loader(), epochs=1)
    assert trained.model.training


def test_each_student_is_a_run_of_the_store(tmp_path):
    students = {
        "small": make_student(config={"temperature": 4.0}),
        "seed 1": make_student(seed=1),
    }
    results = distill_many(students, make_teacher(), make_loader(), epochs=2, root=tmp_path)
    for name, student in students.items():
        run = runs.find(results[name].run_uuid, tmp_path)
        assert (run.name, run.status, run.seed) == (name, "completed", student.seed)
        assert run.curve("loss.train") == (
            [200, 400],
            [row["loss.train"] for row in results[name].metrics],
        )
        loaded = run.load_model().state_dict()
        for key, value in student.model.state_dict().items():
            assert torch.equal(loaded[key], value)
    assert runs.find(results["small"].run_uuid, tmp_path).config["temperature"] == 4.0


def test_wrong_input_is_named_before_anything_is_trained(tmp_path):
    teacher, loader, student = make_teacher(), make_loader(), make_student()
    wrong = [
        ({}, {}, "at least one student"),
        ({"a": student, "b": student}, {}, "'a' and 'b' share a trained part"),
        ({"a": student.model}, {}, "must be a Student, not DigitsSmallModel"),
        ({"a": student}, {"precision": "bf61"}, "did you mean 'bf16'"),
        ({"a": student}, {"epochs": 0}, "epochs must be at least 1"),
        ({"a": student}, {"resume": {"a": "x"}}, "resume needs root="),
        ({"a": student}, {"resume": {"aa": "x"}, "root": tmp_path}, "did you mean 'a'"),
    ]
    for students, options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            distill_many(students, teacher, loader, **{"epochs": 1, **options})
    with pytest.raises(ConfigError, match="cannot start in the middle"):
        distill_many({"a": student}, teacher, [(0, 1)], epochs=1)
    same = Student(teacher, sgd, balancer=StaticLossBalancer(0.5))
    with pytest.raises(TeacherError, match="same object"):
        distill_many({"a": same}, teacher, loader, epochs=1)


@pytest.mark.parametrize("how", ["auto", "folder"])
def test_teacher_table_is_the_option_of_the_other_doors(tmp_path, how):
    """The second study finds what the first one filled, and learns the same."""
    options = {"auto": {"teacher_table": "auto", "root": tmp_path}}
    options["folder"] = {"teacher_table": tmp_path / "table"}
    studies, calls = [], []
    for _ in range(2):
        teacher, runs_of_teacher = make_teacher(), []
        teacher.register_forward_hook(lambda *_, seen=runs_of_teacher: seen.append(1))
        students = {"a": make_student(), "b": make_student(seed=1)}
        distill_many(students, teacher, make_loader(), epochs=2, **options[how])
        studies.append(torch.cat([weights(student) for student in students.values()]))
        calls.append(len(runs_of_teacher))
        assert all(p.requires_grad for p in teacher.parameters())
    assert torch.equal(*studies)
    assert calls[0] > calls[1] == 1  # opening compares two entries with the teacher
    place = tmp_path / ".tables" if how == "auto" else tmp_path / "table"
    assert len([path for path in place.iterdir() if path.is_dir()]) == 1


def test_a_table_stores_the_layers_that_the_students_look_at(tmp_path):
    def student():
        made = make_student()
        made.criterion = {("", ""): LogitsDistillationLoss(), ("fc", "fc"): torch.nn.MSELoss()}
        made.balancer = StaticLossBalancer([0.5, 0.1])
        return made

    learned = student()
    distill_many(
        {"a": learned}, make_teacher(), make_loader(), epochs=1, teacher_table=tmp_path / "table"
    )
    by_hand, loader = student(), make_loader()
    optimizer = sgd(by_hand.model.parameters())
    schedule = cosine(optimizer, len(loader))
    distiller = Distiller(
        by_hand.model.train(), make_teacher(), by_hand.criterion, by_hand.balancer
    )
    for batch in loader.batches(0):
        own = F.cross_entropy(distiller.forward(batch.images), batch.labels)
        distiller.compute_kd_loss(own).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert torch.allclose(weights(learned), weights(by_hand), atol=1e-4)


def test_a_table_of_another_teacher_and_a_loader_without_keys_are_refused(tmp_path):
    inputs = ImageInputs.of(make_loader())
    with TeacherTable(make_teacher(), tmp_path / "table", inputs) as table:
        students = {"a": make_student()}
        distill_many(students, None, make_loader(), epochs=1, teacher_table=table)
        assert table.count() > 0
        with pytest.raises(TeacherError, match="given beside it has"):
            other = DigitsLargeModel()
            distill_many(students, other, make_loader(), epochs=1, teacher_table=table)
    bare = TensorLoader(TRAIN, 32, keys=False)
    with pytest.raises(ConfigError, match="keys=False"):
        distill_many(students, make_teacher(), bare, epochs=1, teacher_table="auto", root=tmp_path)
    with pytest.raises(ConfigError, match="teacher is missing"):
        distill_many(students, None, make_loader(), epochs=1)
