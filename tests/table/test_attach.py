"""One option in every door, and what it changes: nothing but the time a step takes."""

from __future__ import annotations

import copy

import pytest
import torch
from table_case import make_teacher, make_views
from torch.nn import functional as F

from distillation import convert
from distillation.data import TensorLoader, digits
from distillation.distiller import Distiller
from distillation.errors import ConfigError, TeacherError
from distillation.losses import LogitsDistillationLoss, StaticLossBalancer
from distillation.models.digits import DigitsSmallModel
from distillation.table import ImageInputs, TeacherTable, with_table, with_tables
from distillation.table_option import table_source, table_sources
from distillation.teacher import FrozenTeacher, TeacherSource


class RoundedOnline(TeacherSource):
    """The teacher run in every step, its logits rounded to fp16: what a table must equal."""

    def __init__(self, teacher):
        self.teacher = FrozenTeacher(teacher)

    fingerprint = property(lambda self: self.teacher.fingerprint)

    def __call__(self, *args, sample=None, view=None, **kwargs):
        return self.teacher(*args, **kwargs).half().float()


def train(teacher, loader, *, keys_with_loss=False, epochs=2):
    """A student's weights after some epochs of plain distillation, fp32 on the CPU."""
    torch.manual_seed(1)
    student = DigitsSmallModel().train()
    distiller = Distiller(
        student, teacher, LogitsDistillationLoss(temperature=4.0), StaticLossBalancer(0.9)
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        for batch in loader.batches(epoch):
            keys = {"sample": batch.sample, "view": batch.view}
            output = distiller.forward(batch.images, **({} if keys_with_loss else keys))
            label_loss = F.cross_entropy(output, batch.labels)
            loss = distiller.compute_kd_loss(label_loss, **(keys if keys_with_loss else {}))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    distiller.release()
    return torch.cat([p.detach().flatten() for p in student.state_dict().values()])


@pytest.mark.parametrize("keys_with_loss", [False, True])
def test_a_student_trained_from_the_table_equals_one_trained_online_bit_for_bit(
    teacher, loader, tmp_path, keys_with_loss
):
    online = train(RoundedOnline(make_teacher()), loader)
    table = TeacherTable(teacher, tmp_path / "table", ImageInputs.of(loader))
    cold = train(table, loader, keys_with_loss=keys_with_loss)
    assert table.count() > 0
    assert torch.equal(cold, online)
    warm = train(table, loader, keys_with_loss=keys_with_loss)
    assert torch.equal(warm, online)
    table.release()


def test_stored_layers_teach_as_captured_ones_do(teacher, loader, tmp_path):
    """A criterion between layers takes the teacher's from the table, rounded to fp16."""
    layer = "layers.20"  # the last activation: 128 planes of 2×2 pixels
    batch = loader.batch(0, 0)
    keys = {"sample": batch.sample, "view": batch.view}

    def losses(source):
        torch.manual_seed(1)
        student = DigitsSmallModel().train()
        criterion = {("", ""): LogitsDistillationLoss(), ("fc", layer): Norm()}
        distiller = Distiller(student, source, criterion)
        distiller.forward(batch.images, **keys)
        found = distiller.compute_kd_loss(skip_balancer=True)
        distiller.release()
        return {name: loss.item() for name, loss in found.items()}

    online = losses(teacher)
    options = {"layers": [layer], "announce": [].append}
    with TeacherTable(teacher, tmp_path, ImageInputs.of(loader), **options) as table:
        stored = losses(table)
        assert stored == pytest.approx(online, rel=1e-3)
        assert stored["Norm_1"] > 0
        with pytest.raises(ConfigError, match="stored layer"):
            Distiller(DigitsSmallModel(), table, {("fc", "layers.0"): Norm()})


def test_the_student_around_a_look_up_can_be_compiled(teacher, loader, tmp_path):
    batch = loader.batch(0, 0)
    keys = {"sample": batch.sample, "view": batch.view}
    with TeacherTable(teacher, tmp_path, ImageInputs.of(loader)) as table:
        model = DigitsSmallModel().train()
        convert(model, teacher_model=table, criterion=LogitsDistillationLoss())
        expected = model.eval()(batch.images)
        loss = model.compute_kd_loss(**keys)
        compiled = torch.compile(model, backend="eager")
        assert torch.equal(compiled(batch.images), expected)
        assert torch.equal(model.compute_kd_loss(**keys), loss)
        # The teacher's call inside the compiled region, as in a step compiled as a whole.
        logits = torch.compile(lambda x: table(x, **keys) * 2, backend="eager")(batch.images)
        assert torch.equal(logits, table(**keys) * 2)


class Norm(torch.nn.Module):
    """Looks at the teacher's side alone."""

    def forward(self, student_output, teacher_output):
        return teacher_output.square().mean() + 0.0 * student_output.sum()


def test_the_student_would_notice_another_view(teacher, loader, tmp_path):
    """The comparison above can fail: soft targets of one fixed view give another student."""

    class OneView(RoundedOnline):
        def __call__(self, images, sample=None, view=None):
            return super().__call__(loader.images(sample, torch.zeros_like(view)))

    assert not torch.equal(train(OneView(teacher), loader), train(RoundedOnline(teacher), loader))


def test_off_leaves_the_teacher_online(teacher, loader):
    for value in (None, False, "", "none", "off"):
        assert isinstance(with_table(teacher, value, loader), FrozenTeacher)


def test_auto_finds_the_table_by_everything_it_depends_on(teacher, loader, images, tmp_path):
    batch = loader.batch(0, 0)
    first = with_table(teacher, "auto", loader, root=tmp_path)
    logits = first(batch.images, sample=batch.sample, view=batch.view)
    again = with_table(copy.deepcopy(teacher), "auto", loader, root=tmp_path)
    assert torch.equal(again(batch.images, sample=batch.sample, view=batch.view), logits)
    assert (again.misses, again.folder) == (0, first.folder)
    for other in (
        with_table(make_teacher(seed=1), "auto", loader, root=tmp_path),
        with_table(teacher, "auto", TensorLoader(images, 64), root=tmp_path),
        with_table(teacher, "auto", TensorLoader(images, 64, mean=(0.0,)), root=tmp_path),
    ):
        assert other.folder != first.folder
        assert other.count() == 0


def test_a_folder_and_a_table_of_ones_own(teacher, loader, tmp_path):
    table = with_table(teacher, str(tmp_path / "mine"), loader)
    assert table.folder == tmp_path / "mine"
    shared = with_table(teacher, table, loader)
    shared.release()
    key = {"sample": torch.tensor([0]), "view": torch.tensor([0])}
    assert table(**key).shape == (1, 10)


def test_a_table_of_another_teacher_does_not_answer_for_this_one(teacher, loader, tmp_path):
    with (
        with_table(teacher, tmp_path / "mine", loader) as table,
        pytest.raises(TeacherError, match="given beside it has"),
    ):
        with_table(make_teacher(seed=1), table, loader)


@pytest.mark.parametrize("value", ["off", "table", "folder"])
def test_unknown_options_are_named_whatever_the_table_is(teacher, loader, tmp_path, value):
    with with_table(teacher, tmp_path / "mine", loader) as table:
        given = {"off": None, "table": table, "folder": tmp_path / "mine"}[value]
        for opened in (with_table, table_source):
            with pytest.raises(ConfigError, match=r"unknown .*'codek'; did you mean 'codec'"):
                opened(teacher, given, loader, codek=None)


@pytest.mark.parametrize("value", ["off", "table"])
def test_options_of_a_new_table_are_refused_where_none_is_opened(teacher, loader, tmp_path, value):
    with with_table(teacher, tmp_path / "mine", loader) as table:
        given, why = {
            "off": (None, "there is no teacher_table"),
            "table": (table, "a TeacherTable has its own"),
        }[value]
        with pytest.raises(ConfigError, match=f"layers: of no use here, {why}"):
            with_table(teacher, given, loader, layers=["fc"])


def test_training_and_test_images_have_a_table_each(teacher, loader, images, tmp_path):
    test = TensorLoader(
        digits()[1], 120, shuffle=False, mean=images.mean, std=images.std, channels_last=True
    )
    loaders = {"train": loader, "test": test}
    for value in ("auto", str(tmp_path / "both")):
        sources = with_tables(teacher, value, loaders, root=tmp_path)
        for name, own in loaders.items():
            batch = own.batch(0, 0)
            got = sources[name](batch.images, sample=batch.sample, view=batch.view)
            expected = FrozenTeacher(teacher)(batch.images.contiguous()).half().float()
            assert torch.allclose(got, expected, atol=2e-2)
        assert sources["train"].folder != sources["test"].folder


def test_in_a_folder_of_several_a_table_is_found_by_its_images(teacher, loader, tmp_path):
    test = TensorLoader(digits()[1], 120, shuffle=False)
    with_tables(teacher, tmp_path / "T", {"train": loader, "test": test})
    for name, own in (("train", loader), ("test", test)):
        with TeacherTable(teacher, tmp_path / "T" / name, ImageInputs.of(own)) as table:
            table.fill(samples=[0])
    # KDTrainer calls its test images "valid"
    sources = table_sources(teacher, tmp_path / "T", {"train": loader, "valid": test})
    assert sources["valid"].folder == tmp_path / "T" / "test"
    assert sources["valid"].count() == 1
    # Held out images under that name are others: they do not stand in the way
    held_out = TensorLoader(digits()[0].subset(50, seed=0), 50, shuffle=False)
    with TeacherTable(teacher, tmp_path / "T" / "valid", ImageInputs.of(held_out)) as table:
        table.fill(samples=[0])
    sources = table_sources(teacher, tmp_path / "T", {"train": loader, "valid": test})
    assert sources["valid"].folder == tmp_path / "T" / "test"
    # Nor is the name needed where only one loader asks
    assert table_source(teacher, tmp_path / "T", test).folder == tmp_path / "T" / "test"


def test_a_folder_that_is_a_table_is_that_of_the_training_images(teacher, loader, tmp_path):
    test = TensorLoader(digits()[1], 120, shuffle=False)
    with TeacherTable(teacher, tmp_path / "T", ImageInputs.of(loader)) as table:
        table.fill(samples=[0])
    for tables in (with_tables, table_sources):
        sources = tables(teacher, tmp_path / "T", {"train": loader, "test": test})
        assert sources["train"].folder == tmp_path / "T"
        assert sources["test"].folder == tmp_path / "T" / "test"


@pytest.mark.parametrize("slip", ["atuo", "Auto", "True", "none "])
def test_a_slip_begins_no_table(teacher, loader, tmp_path, monkeypatch, slip):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"teacher_table='{slip}': take 'auto', a folder, or"):
        table_source(teacher, slip, loader)
    with pytest.raises(ConfigError, match=f"asked for with './{slip}'"):
        with_tables(teacher, slip, {"train": loader})
    assert table_source(teacher, f"./{slip}", loader).folder.name == slip
    (tmp_path / slip).mkdir()
    assert table_source(teacher, slip, loader).folder.name == slip


def test_a_loader_without_keys_is_told_what_to_do(teacher, images):
    pairs = torch.utils.data.DataLoader([(torch.zeros(1, 8, 8), 0)])
    with pytest.raises(ConfigError, match=r"not DataLoader: data\.ReplayableLoader"):
        with_table(teacher, "auto", pairs)
    with pytest.raises(ConfigError, match="teacher_table=True: take 'auto'"):
        with_table(teacher, True, TensorLoader(images, 64, views=make_views()))
    table = object.__new__(TeacherTable)
    with pytest.raises(ConfigError, match="one table cannot answer for train, test"):
        with_tables(teacher, table, {"train": None, "test": None})


def test_loaders_without_keys_are_refused_by_name(teacher, loader, images, tmp_path):
    loaders = {"train": loader, "test": TensorLoader(images, 64, keys=False)}
    for opened in (with_tables, table_sources):
        with pytest.raises(ConfigError, match="the test loader was made with keys=False"):
            opened(teacher, tmp_path / "T", loaders)
    assert len(with_tables(teacher, "off", loaders)) == 2
