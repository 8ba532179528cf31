"""A teacher that changed although its fingerprint did not, and one trained while its table is open.

What a module keeps without printing or saving it is in no fingerprint; it shows in its outputs.
"""

from __future__ import annotations

import pytest
import torch
from table_case import make_teacher, make_views
from torch import nn

from distillation.data import TensorLoader
from distillation.errors import TeacherError
from distillation.table import GivenInputs, TeacherTable, TopK, with_table
from distillation.table.entries import WATCHED
from distillation.teacher import EnsembleTeacher


class Scaled(nn.Module):
    """Keeps a number that is neither printed nor saved."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.model, self.scale = make_teacher(), scale

    def forward(self, x):
        return self.model(x) * self.scale


class Shifted(Scaled):
    """Keeps a tensor that is not saved."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("shift", torch.full((10,), scale), persistent=False)

    def forward(self, x):
        return self.model(x) + self.shift


KEY = {"sample": torch.tensor([3, 200]), "view": torch.tensor([1, 8])}


@pytest.mark.parametrize("teacher_class", [Scaled, Shifted])
def test_what_is_in_no_fingerprint_is_noticed_when_the_table_is_opened(
    teacher_class, inputs, tmp_path
):
    with TeacherTable(teacher_class(1.0), tmp_path / "table", inputs) as table:
        one = table(**KEY)
    with pytest.raises(TeacherError, match="sample 3, view 0 has other bits than the stored one"):
        TeacherTable(teacher_class(2.0), tmp_path / "table", inputs)
    with TeacherTable(teacher_class(1.0), tmp_path / "table", inputs) as again:
        assert torch.equal(again(**KEY), one)
        assert again.misses == 0


def test_by_option_it_gets_a_table_beside_and_finds_it_again(inputs, tmp_path):
    outputs = {}
    for scale in (1.0, 2.0, 3.0, 1.0, 2.0, 3.0):
        folder = tmp_path / "table"
        with TeacherTable(Scaled(scale), folder, inputs, on_mismatch="new") as table:
            output = table(**KEY)
            assert table.misses == (0 if scale in outputs else 2)
            assert torch.equal(output, outputs.setdefault(scale, output))
    assert not torch.equal(outputs[1.0], outputs[2.0])
    assert len(list(tmp_path.iterdir())) == 3


def test_auto_refuses_such_a_teacher_too(images, tmp_path):
    loader = TensorLoader(images, 64, views=make_views())
    with with_table(Scaled(1.0), "auto", loader, root=tmp_path) as table:
        table(**KEY)
    with pytest.raises(TeacherError, match="neither prints nor saves"):
        with_table(Scaled(2.0), "auto", loader, root=tmp_path)


def test_another_storage_form_is_compared_as_it_is_stored(inputs, tmp_path):
    with TeacherTable(Scaled(1.0), tmp_path, inputs, codec=TopK(3)) as table:
        table(**KEY)
    with TeacherTable(Scaled(1.0), tmp_path, inputs, codec=TopK(3)) as again:
        assert again.count() == 18  # 9 views of each
    with pytest.raises(TeacherError, match="other bits"):
        TeacherTable(Scaled(1.5), tmp_path, inputs, codec=TopK(3))


def test_the_comparison_costs_one_batch_when_the_table_is_opened(inputs, tmp_path):
    with TeacherTable(Scaled(), tmp_path, inputs) as table:
        table.fill(range(20))
    teacher, calls = Scaled(), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    with TeacherTable(teacher, tmp_path, inputs) as again:
        assert len(calls) == 1
        again(**{name: torch.zeros_like(key) for name, key in KEY.items()})
    assert len(calls) == 1


def test_inputs_that_only_the_caller_has_are_compared_at_the_first_call(tmp_path):
    given, images = GivenInputs(6, data="six"), torch.randn(6, 1, 8, 8)
    first, index = slice(0, 4), torch.arange(6)
    with TeacherTable(Scaled(1.0), tmp_path / "t", given) as table:
        one = table(images[first], sample=index[first])
    with (
        TeacherTable(Scaled(2.0), tmp_path / "t", given) as changed,
        pytest.raises(TeacherError, match="sample 0, view 0 has other bits"),
    ):
        changed(images, sample=index)
    with TeacherTable(Scaled(1.0), tmp_path / "t", given) as same:
        assert torch.equal(same(images, sample=index)[first], one)
        assert same.misses == 2
    with TeacherTable(Scaled(2.0), tmp_path / "t", given, on_mismatch="new") as new:
        assert torch.allclose(new(images, sample=index)[first], 2 * one, rtol=1e-2)
        assert (new.misses, new.folder.name[:2]) == (6, "t-")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("step", "model.fc.bias"),
        ("load", "model.* and .* more"),
        ("buffer", "model.layers.1.running_mean"),
        ("replace", "model.fc.bias"),
        ("unsaved", r"shift \(not saved\)"),
    ],
)
def test_weights_changed_while_the_table_is_open_are_refused_before_the_next_entry(
    inputs, tmp_path, change, named
):
    teacher = Shifted()
    table = TeacherTable(teacher, tmp_path, inputs)
    kept = table(**KEY)
    bias = teacher.model.fc.bias
    if change == "step":
        bias.requires_grad_(True).grad = torch.ones(10)
        torch.optim.SGD([bias], lr=0.1).step()
    elif change == "load":
        teacher.model.load_state_dict(make_teacher(seed=1).state_dict())
    elif change == "buffer":
        next(b for b in teacher.model.buffers() if b.is_floating_point()).add_(1.0)
    elif change == "replace":
        teacher.model.fc.bias = nn.Parameter(torch.zeros(10))
    else:
        teacher.shift.add_(1.0)
    with pytest.raises(TeacherError, match=rf"changed since its table was opened .*: {named}\."):
        table(sample=torch.tensor([5]), view=torch.tensor([2]))
    with pytest.raises(TeacherError, match="weights changed"):
        table.fill()
    assert table.count() == 18
    # What was stored before is the old weights' entries still.
    assert torch.equal(table(**KEY), kept)


def test_a_change_is_noticed_soon_though_nothing_is_missing(inputs, tmp_path):
    teacher = Scaled()
    with TeacherTable(teacher, tmp_path, inputs) as table:
        table(**KEY)
        with torch.no_grad():
            teacher.model.fc.bias.add_(1.0)
        with pytest.raises(TeacherError, match="weights changed"):
            for _ in range(WATCHED):
                table(**KEY)


def test_the_same_weights_loaded_again_are_no_change(inputs, tmp_path):
    teacher = Scaled()
    with TeacherTable(teacher, tmp_path, inputs) as table:
        table(**KEY)
        teacher.model.load_state_dict(make_teacher().state_dict())
        table(sample=torch.tensor([5]), view=torch.tensor([2]))
        assert table.count() == 27


def test_a_member_of_an_ensemble_that_changed_is_noticed(inputs, tmp_path):
    members = [make_teacher(0), make_teacher(1)]
    table = TeacherTable(members, tmp_path, inputs)
    table(**KEY)
    with torch.no_grad():
        members[1].fc.bias.add_(1.0)
    with pytest.raises(TeacherError, match=r"weights changed .*: 1\.fc\.bias\."):
        table(sample=torch.tensor([5]), view=torch.tensor([2]))


class Two(nn.Module):
    """Gives two outputs."""

    def __init__(self):
        super().__init__()
        self.model = make_teacher()

    def forward(self, x):
        return {"main": self.model(x), "side": -self.model(x)}


def side(output):
    return output["side"]


@pytest.mark.parametrize(
    "options",
    [
        {"select": "side"},
        {"select": side},
        {"weights": [1, 3]},
        {"average": "logits"},
        {"temperature": 4.0},
    ],
)
def test_how_an_ensemble_combines_is_part_of_its_tables_identity(inputs, tmp_path, options):
    members = [Two(), Two()]
    usual = {"select": "main"}
    with TeacherTable(EnsembleTeacher(members, **usual), tmp_path, inputs) as table:
        table(**KEY)
    with pytest.raises(TeacherError, match="made for other teacher weights"):
        TeacherTable(EnsembleTeacher(members, **usual | options), tmp_path, inputs)
