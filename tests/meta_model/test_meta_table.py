"""`convert(…, teacher_table=…)`: the teacher's outputs from a table, by the keys of the loss."""

from __future__ import annotations

import copy

import pytest
import torch
from meta_cases import Net, make_teacher
from torch import nn
from torch.nn import functional as F

from distillation import (
    KDLossConfig,
    LogitsDistillationLoss,
    StaticLossBalancer,
    convert,
    export,
    restore,
    save,
)
from distillation.data import CropFlip, TensorLoader, digits
from distillation.errors import ConfigError, TeacherError
from distillation.table import GivenInputs, ImageInputs, TeacherTable

IMAGES = digits()[0].subset(96, seed=0)


def make_loader(**options):
    views = CropFlip(padding=1, size=8, flip=False)
    return TensorLoader(IMAGES, 32, views=views, views_per_image=2, **options)


def converted(teacher=None, criterion=None, **config):
    torch.manual_seed(0)
    criterion = criterion or LogitsDistillationLoss(4.0)
    balancer = StaticLossBalancer(
        [0.5] if len(getattr(criterion, "keys", list)()) < 2 else [0.4] * 2
    )
    return convert(
        Net(), teacher_model=teacher, criterion=criterion, loss_balancer=balancer, **config
    )


def fit(model, loader, epochs=2):
    """Plain training, and one line for the loss; the weights of the student."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in range(epochs):
        for batch in loader.batches(epoch):
            own = F.cross_entropy(model(batch.images), batch.labels)
            model.compute_kd_loss(own, sample=batch.sample, view=batch.view).backward()
            optimizer.step()
            optimizer.zero_grad()
    with model.hide_loss_modules():
        return torch.cat([v.double().flatten() for v in model.state_dict().values()])


def counted(teacher):
    """How often the teacher runs from now on."""
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("how", ["auto", "folder"])
def test_the_second_student_needs_no_teacher(tmp_path, how):
    table = "auto" if how == "auto" else tmp_path / "table"
    options = {"root": tmp_path} if how == "auto" else None
    students, calls = [], []
    for _ in range(2):
        teacher = make_teacher()
        model = converted(
            teacher, teacher_table=table, table_data=make_loader(), table_options=options
        )
        calls.append(counted(teacher))
        students.append(fit(model, make_loader()))
        assert type(export(model)) is Net
        assert teacher.training  # as it came
    assert len(calls[0]) > 0 == len(calls[1])
    assert torch.equal(*students)
    assert torch.allclose(students[0], fit(converted(make_teacher()), make_loader()), atol=1e-3)


def test_a_table_made_by_hand_needs_no_teacher_beside_it(tmp_path):
    inputs = GivenInputs(len(IMAGES), data=IMAGES.fingerprint, views=9)
    with TeacherTable(make_teacher(), tmp_path, inputs) as table:
        fit(converted(teacher_table=table), make_loader())
        assert table.count() > 0
        with pytest.raises(TeacherError, match="given beside it has"):
            converted(make_teacher(seed=8), teacher_table=table)


def test_hidden_layers_come_from_the_table_too(tmp_path):
    criterion = {("", ""): LogitsDistillationLoss(), ("body", "stem"): Norm()}
    options = {"root": tmp_path, "announce": [].append}
    losses = []
    for table in ({"teacher_table": "auto", "table_data": make_loader()}, {}):
        model = converted(
            make_teacher().eval(),
            criterion,
            **table,
            **({"table_options": options} if table else {}),
        )
        batch = make_loader().batch(0, 0)
        model(batch.images)
        keys = {"sample": batch.sample, "view": batch.view}
        losses.append(model.compute_kd_loss(skip_balancer=True, **keys)["Norm_1"].item())
        export(model)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2) and losses[0] > 0


class Norm(nn.Module):
    """Looks at the teacher's side alone."""

    def forward(self, student_output, teacher_output):
        return teacher_output.square().mean() + 0.0 * student_output.sum()


def test_the_loss_without_keys_says_what_to_do(tmp_path):
    model = converted(make_teacher(), teacher_table=tmp_path, table_data=make_loader())
    model(make_loader().batch(0, 0).images)
    with pytest.raises(TeacherError, match=r"compute_kd_loss\(…, sample=…, view=…\)"):
        model.compute_kd_loss(torch.tensor(0.0))


def test_validation_and_the_teacher_alone_need_no_keys(tmp_path):
    teacher = make_teacher()
    model = converted(teacher, teacher_table=tmp_path, table_data=make_loader()).eval()
    images = make_loader().batch(0, 0).images
    with torch.no_grad():
        assert model(images).shape == (32, 10)
        with model.only_teacher_forward():
            assert torch.equal(model(images), teacher(images))


def test_a_copy_shares_the_table(tmp_path):
    model = converted(make_teacher(), teacher_table=tmp_path, table_data=make_loader())
    twin = copy.deepcopy(model)
    fit(model, make_loader(), epochs=1)
    export(model)
    fit(twin, make_loader(), epochs=1)
    assert twin.teacher_model.misses == 0


def test_saved_with_a_table_and_restored_online_or_with_one(tmp_path):
    """The file says who the teacher is; where its outputs come from is told anew."""
    path, place = tmp_path / "student.pt", {"table_data": make_loader()}
    place["teacher_table"] = tmp_path / "table"
    model = converted((make_teacher, (10,), {"seed": 7}), **place)
    fit(model, make_loader())
    save(model, path)
    expected = fit(model, make_loader())

    online = restore(Net(), path)
    assert isinstance(online.teacher_model, Net)
    again = restore(Net(), path, **place)
    assert again.teacher_model.count() > 0
    assert torch.equal(fit(again, make_loader()), expected)
    assert torch.allclose(fit(online, make_loader()), expected, atol=1e-3)
    inputs = ImageInputs.of(make_loader())
    with TeacherTable(make_teacher(), tmp_path / "table", inputs) as table:
        given = restore(Net(), path, teacher_table=table)
        assert torch.equal(fit(given, make_loader()), expected)
    other = TeacherTable(make_teacher(seed=9), tmp_path / "other", inputs)
    with other, pytest.raises(TeacherError, match="the teacher has changed"):
        restore(Net(), path, teacher_table=other)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"teacher_table": "auto"}, "needs table_data"),
        ({"table_data": make_loader()}, "table_data has no use: there is no teacher_table"),
        ({"table_options": {}, "teacher_table": "off"}, "table_options has no use"),
        (
            {"teacher_table": "auto", "table_data": 0, "table_options": {"presicion": "bf16"}},
            "did you mean 'precision'",
        ),
        ({"teacher_table": "auto", "table_data": make_loader(), "teacher_mode": "follow"}, "eval"),
        ({"teacher_table": True, "table_data": make_loader()}, "take 'auto'"),
        ({"teacher_table": "auto", "table_data": [1]}, "batches carry keys"),
    ],
)
def test_what_does_not_fit_is_told_and_the_model_stays_plain(config, said):
    student, teacher = Net(), make_teacher()
    given = {"teacher_model": teacher, "criterion": LogitsDistillationLoss(), **config}
    with pytest.raises((ConfigError, TeacherError), match=said):
        convert(student, mode={"kd_loss": given})
    assert type(student) is Net
    assert all(p.requires_grad for p in teacher.parameters())


def test_layerwise_runs_the_teacher(tmp_path):
    config = KDLossConfig(
        teacher_model=make_teacher(6),
        criterion={("body", "body"): nn.MSELoss()},
        teacher_table=tmp_path,
        table_data=make_loader(),
    )
    with pytest.raises(ConfigError, match="layerwise_kd runs"):
        convert(Net(), mode=[("layerwise_kd", config)])
