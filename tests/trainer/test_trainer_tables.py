"""KDTrainer with a table of the teacher's outputs in the teacher's place."""

import pytest
import torch
from trainer_kit import Net, distilled, effect_of, images, loaders, make, trained, weights

from distillation import KDTrainer
from distillation.errors import ConfigError, TeacherError
from distillation.table import ImageInputs, TeacherTable


class Counting(Net):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


@effect_of("teacher_table")
@pytest.mark.parametrize("how", ["auto", "folder"])
def test_a_second_training_finds_every_output_in_the_table(tmp_path, how):
    table = "auto" if how == "auto" else tmp_path / "table"
    students, calls = [], []
    for given in (table, table, None):
        Counting.calls = 0
        student = make()
        teacher = make(Counting, width=32, seed=1)
        distilled(tmp_path, student, teacher, max_epochs=2, teacher_table=given, ema=True)
        students.append(weights(student))
        calls.append(Counting.calls)
    assert calls[1] == 0 < calls[0] < calls[2]
    assert torch.equal(students[0], students[1])
    assert torch.allclose(students[1], students[2], atol=1e-3)  # entries are half floats


def test_a_table_given_as_the_teacher_leaves_validation_to_the_model_behind_it(tmp_path):
    train, valid = loaders()
    teacher = make(width=32, seed=1)
    params = {"max_epochs": 1, "silent_mode": True}
    results = []
    with TeacherTable(teacher, tmp_path / "table", ImageInputs(images()[0])) as table:
        for given in (table, teacher):
            trainer = KDTrainer("kd", tmp_path)
            trainer.train(
                student=make(),
                teacher=given,
                training_params=params,
                train_loader=train,
                valid_loader=valid,
            )
            results.append(trainer.results["loss.valid"])
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_what_has_no_table_is_told(tmp_path):
    with pytest.raises(ConfigError, match="needs a teacher"):
        trained(tmp_path, teacher_table="auto")
    with pytest.raises(ConfigError, match="run_teacher_on_eval"):
        distilled(tmp_path, teacher_table="auto", kd={"run_teacher_on_eval": False})
    pairs = [(b.images, b.labels) for b in loaders()[0].batches(0)]
    with pytest.raises((ConfigError, TeacherError)):
        distilled(tmp_path, teacher_table="auto", loader=pairs)
