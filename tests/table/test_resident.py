"""A filled table as one tensor: the same values, one gather, never another entry's."""

from __future__ import annotations

import pytest
import torch
from table_case import make_teacher, make_views

from distillation.data import TensorLoader
from distillation.errors import ConfigError, TeacherError
from distillation.table import ImageInputs, ResidentTable, Sampled, TeacherTable


@pytest.fixture
def filled(images, tmp_path):
    loader = TensorLoader(images, 64, views=make_views().restrict(2), seed=1)
    table = TeacherTable(make_teacher(), tmp_path, ImageInputs.of(loader))
    table.fill()
    yield table, loader
    table.release()


def test_it_gives_what_the_table_gives(filled):
    table, loader = filled
    resident = ResidentTable(table, "cpu")
    for batch in loader.batches(0):
        keys = {"sample": batch.sample, "view": batch.view}
        assert torch.equal(resident(batch.images, **keys), table(batch.images, **keys))
    assert resident.fingerprint == table.fingerprint


def test_a_look_up_needs_no_value_on_the_host(filled):
    """Keys without data can be looked up: nothing in a call depends on what they are."""
    table, _ = filled
    resident = ResidentTable(table, "cpu")
    resident.values = resident.values.to("meta")
    keys = torch.zeros(5, dtype=torch.int64, device="meta")
    logits = resident(sample=keys, view=keys)
    assert (logits.shape, logits.dtype, logits.device.type) == ((5, 10), torch.float32, "meta")


def test_keys_without_an_entry_give_nan_and_not_another_view(filled, images):
    table, loader = filled
    shown = set(loader.views.choices(torch.tensor([0]))[0].tolist())
    hidden = next(view for view in range(9) if view not in shown)
    logits = ResidentTable(table, "cpu")(sample=torch.tensor([0]), view=torch.tensor([hidden]))
    assert logits.isnan().all()


def test_a_table_with_gaps_is_refused(images, tmp_path):
    inputs = ImageInputs(images, make_views())
    with TeacherTable(make_teacher(), tmp_path / "a", inputs) as table:
        table.fill(limit=64)
        with pytest.raises(TeacherError, match=r"2,816 of 2,880 entries are missing"):
            ResidentTable(table, "cpu")
    with (
        TeacherTable(make_teacher(), tmp_path / "b", inputs, codec=Sampled(3)) as table,
        pytest.raises(ConfigError, match="whole outputs"),
    ):
        ResidentTable(table, "cpu")
