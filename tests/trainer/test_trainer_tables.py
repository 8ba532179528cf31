"""KDTrainer with a table of the teacher's outputs in the teacher's place."""

import pytest
import torch
from torch import nn
from trainer_kit import Net, NormNet, distilled, effect_of, images, loaders, make, trained, weights

from distillation import (
    KDTrainer,
    LogitsDistillationLoss,
    NormalizationAdapter,
    StaticLossBalancer,
)
from distillation.data import ReplayableLoader
from distillation.errors import ConfigError, TeacherError
from distillation.table import Execution, ImageInputs, TeacherTable, with_table
from distillation.table.manifest import Manifest


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
    # Opening a table that is there computes two of its entries again; here one for each split
    assert calls[1] == 2 < calls[0] < calls[2]
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


def test_a_table_given_as_the_option_answers_for_the_training_images(tmp_path):
    teacher = make(Counting, width=32, seed=1)
    students = []
    with TeacherTable(teacher, tmp_path / "table", ImageInputs(images()[0])) as table:
        for _ in range(2):
            student, stored = make(), table.count()
            Counting.calls = 0
            distilled(tmp_path, student, teacher, teacher_table=table, max_epochs=2)
            students.append(weights(student))
        assert (stored, Counting.calls) == (128, 2)  # two validations, online
        assert torch.equal(*students)
        with pytest.raises(TeacherError, match="given beside it has"):
            distilled(tmp_path, make(), make(width=32, seed=2), teacher_table=table)


def test_the_table_is_that_of_the_trainings_precision_and_memory_format(tmp_path):
    """What another door, or `distill cache`, has filled for this training is found again."""
    train, _ = loaders(channels_last=True)
    teacher = make(NormNet, seed=1).eval()
    how = Execution(precision="bf16", channels_last=True)
    with with_table(teacher, "auto", train, root=tmp_path, execution=how) as table:
        assert table.fill() == 128
        folder = table.folder
    params = {"max_epochs": 1, "silent_mode": True, "teacher_table": "auto"}
    for precision, known in (("bf16", True), (False, False)):
        KDTrainer("kd", tmp_path).train(
            student=make(),
            teacher=teacher,
            training_params={**params, "mixed_precision": precision},
            train_loader=train,
        )
        assert (list((tmp_path / ".tables").iterdir()) == [folder]) == known


def test_a_folder_that_is_a_table_is_that_of_the_training_images(tmp_path):
    train, _ = loaders()
    teacher = make(Counting, width=32, seed=1)
    folder = tmp_path / "table"
    with with_table(teacher, folder, train) as table:
        table.fill()
    Counting.calls = 0
    distilled(tmp_path, make(), teacher, teacher_table=folder)
    assert Counting.calls == 1 + 2  # the comparison; the validation's probe of a new table
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"valid"}


def test_the_layers_of_a_criterion_are_stored(tmp_path):
    criterion = {("", ""): LogitsDistillationLoss(), ("features", "features"): nn.MSELoss()}
    options = {"criterion": criterion, "loss_balancer": StaticLossBalancer([0.5, 0.25])}
    students = []
    for table in ("auto", None):
        student = make()
        kd = {"kd_arch_params": options}
        distilled(tmp_path, student, make(seed=1), kd=kd, teacher_table=table, max_epochs=2)
        students.append(weights(student))
    assert torch.allclose(*students, atol=1e-3)
    tables = [Manifest.read(path) for path in (tmp_path / ".tables").iterdir()]
    assert [table.identity["layers"] for table in tables] == [["features"]] * 2


def test_random_augmentation_is_found_again_by_sample_and_epoch(tmp_path):
    """The next student of the same stream: every picture of both epochs is in the table."""

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            image = images()[0].images[i].float() / 255
            return image + 0.1 * torch.rand_like(image), int(images()[0].labels[i])

    students, calls = [], []
    for _ in range(2):
        Counting.calls = 0
        student, teacher = make(), make(Counting, width=32, seed=1)
        loader = ReplayableLoader(Noisy(), 16, seed=2)
        distilled(tmp_path, student, teacher, loader=loader, max_epochs=2, teacher_table="auto")
        students.append(weights(student))
        calls.append(Counting.calls)
    assert calls[1] == 2 < calls[0]
    assert torch.equal(*students)


def test_off_is_no_table(tmp_path):
    student, plain = make(), make()
    distilled(tmp_path, student, teacher_table="off")
    distilled(tmp_path, plain)
    trained(tmp_path, teacher_table="off")
    assert torch.equal(weights(student), weights(plain))
    assert not (tmp_path / ".tables").exists()


def test_an_adapter_of_the_teachers_inputs_is_refused(tmp_path):
    kd = {"kd_arch_params": {"teacher_input_adapter": NormalizationAdapter([0], [1], [0], [2])}}
    with pytest.raises(ConfigError, match="teacher_input_adapter would have no effect"):
        distilled(tmp_path, kd=kd, teacher_table="auto")


def test_what_has_no_table_is_told(tmp_path):
    with pytest.raises(ConfigError, match="needs a teacher"):
        trained(tmp_path, teacher_table="auto")
    with pytest.raises(ConfigError, match="run_teacher_on_eval"):
        distilled(tmp_path, teacher_table="auto", kd={"run_teacher_on_eval": False})
    with pytest.raises(ConfigError, match="train loader was made with keys=False"):
        distilled(tmp_path, teacher_table="auto", loader=loaders(keys=False)[0])
    pairs = [(b.images, b.labels) for b in loaders()[0].batches(0)]
    with pytest.raises((ConfigError, TeacherError)):
        distilled(tmp_path, teacher_table="auto", loader=pairs)
