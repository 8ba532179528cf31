"""A filled table as one tensor on the device: the same values, one gather, never another's."""

from __future__ import annotations

import pytest
import torch
from table_case import make_teacher, make_views

from distillation.data import TensorLoader
from distillation.errors import ConfigError, ShapeError, TeacherError
from distillation.losses import LogitsDistillationLoss
from distillation.models.digits import DigitsSmallModel
from distillation.table import ImageInputs, ResidentTable, Sampled, TeacherTable, with_table


@pytest.fixture
def loader(images):
    return TensorLoader(images, 64, views=make_views().restrict(2), seed=1)


@pytest.fixture
def filled(loader, tmp_path):
    table = TeacherTable(make_teacher(), tmp_path, ImageInputs.of(loader))
    table.fill()
    yield table
    table.release()


def keys_of(batch):
    return {"sample": batch.sample, "view": batch.view}


def looked_up(table, batch):
    """A resident table that has answered once, and so holds the entries itself."""
    resident = ResidentTable(table.share(), "cpu")
    resident(batch.images, **keys_of(batch))
    return resident


def test_it_gives_what_the_table_gives(filled, loader):
    resident = ResidentTable(filled.share(), "cpu")
    for batch in loader.batches(0):
        got = resident(batch.images, **keys_of(batch))
        assert torch.equal(got, filled(batch.images, **keys_of(batch)))
    assert resident.table.hits == 64  # the first batch; the others never reached the files
    assert resident.fingerprint == filled.fingerprint
    resident.release()


def test_a_look_up_needs_no_value_on_the_host(filled, loader):
    """Keys without data can be looked up: nothing in a call depends on what they are."""
    resident = looked_up(filled, loader.batch(0, 0))
    resident.values, resident.device = resident.values.to("meta"), torch.device("meta")
    keys = torch.zeros(5, dtype=torch.int64, device="meta")
    logits = resident(sample=keys, view=keys)
    assert (logits.shape, logits.dtype, logits.device.type) == ((5, 10), torch.float32, "meta")
    resident.release()


def test_a_look_up_can_be_compiled_into_the_step(filled, loader):
    """As a whole, without a break for the host: what a CUDA graph asks for, too."""
    batch = loader.batch(0, 0)
    resident, keys = looked_up(filled, batch), keys_of(batch)
    step = torch.compile(lambda x: resident(x, **keys) * 2, backend="eager", fullgraph=True)
    assert torch.equal(step(batch.images), filled(**keys) * 2)
    resident.release()


def test_while_entries_are_missing_the_table_answers_and_fills(loader, tmp_path):
    teacher = make_teacher()
    table = TeacherTable(teacher, tmp_path, ImageInputs.of(loader))
    expected = {}
    with torch.no_grad():
        for batch in loader.batches(0):
            expected[tuple(batch.sample.tolist())] = teacher(batch.images).half().float()
    resident = ResidentTable(table, "cpu")
    for batch in loader.batches(0):
        got = resident(batch.images, **keys_of(batch))
        assert torch.equal(got, expected[tuple(batch.sample.tolist())])
    assert (table.misses, resident.values) == (320, None)
    # What is still missing comes from elsewhere (another process); seen within one epoch.
    table.fill()
    for batch in loader.batches(1):
        resident(batch.images, **keys_of(batch))
    assert resident.values is not None
    resident.release()


def test_keys_without_an_entry_give_nan_and_not_another_view(filled, loader):
    shown = set(loader.views.choices(torch.tensor([0]))[0].tolist())
    hidden = next(view for view in range(9) if view not in shown)
    resident = looked_up(filled, loader.batch(0, 0))
    assert resident(sample=torch.tensor([0]), view=torch.tensor([hidden])).isnan().all()
    resident.release()


OUTSIDE = [(0, 9), (0, -1), (-1, 0), (320, 0)]  # of 320 samples in 9 views


@pytest.mark.parametrize(("sample", "view"), OUTSIDE)
def test_keys_outside_the_table_give_nan_and_not_a_neighbours_entry(filled, loader, sample, view):
    """As keys on a GPU do, whose values the host never sees: in a compiled step it sees none."""
    resident = looked_up(filled, loader.batch(0, 0))
    look_up = torch.compile(resident.__call__, backend="eager", fullgraph=True)
    assert look_up(sample=torch.tensor([sample]), view=torch.tensor([view])).isnan().all()
    resident.release()


@pytest.mark.parametrize(("sample", "view"), OUTSIDE)
def test_keys_on_the_host_outside_the_table_are_named(filled, loader, sample, view):
    resident = looked_up(filled, loader.batch(0, 0))
    with pytest.raises(ShapeError, match="is outside the table"):
        resident(sample=torch.tensor([sample]), view=torch.tensor([view]))
    resident.release()


def test_the_first_batch_is_compared_with_its_keys(filled, loader):
    resident = ResidentTable(filled.share(), "cpu")
    batch = loader.batch(0, 0)
    with pytest.raises(TeacherError, match="not what its keys stand for"):
        resident(-batch.images, **keys_of(batch))
    resident.release()


def test_without_keys_it_says_how_they_travel(filled, loader):
    resident, batch = looked_up(filled, loader.batch(0, 0)), loader.batch(0, 0)
    with pytest.raises(TeacherError, match=r"told which \(sample, view\)"):
        resident(batch.images)
    resident.release()


def test_each_hold_is_released_for_itself(filled, loader):
    batch = loader.batch(0, 0)
    resident = looked_up(filled, batch)
    other = resident.share()
    resident.release()
    assert torch.equal(other(**keys_of(batch)), filled(**keys_of(batch)))
    other.release()
    with pytest.raises(TeacherError, match="was released"):
        other(**keys_of(batch))


@pytest.mark.parametrize("resident", [True, False])
def test_the_option_puts_a_students_look_ups_on_the_device(images, loader, tmp_path, resident):
    """On another device than the CPU it is the default; the student is the same either way."""
    from distillation.distiller import Distiller

    options = {"root": tmp_path, "device": "cpu", "resident": resident}
    losses = []
    for _ in range(2):  # cold, warm
        source = with_table(make_teacher(), "auto", loader, **options)
        assert isinstance(source, ResidentTable) == resident
        torch.manual_seed(0)
        distiller = Distiller(DigitsSmallModel(), source, LogitsDistillationLoss())
        for batch in loader.batches(0):
            distiller.forward(batch.images, **keys_of(batch))
            losses.append(distiller.compute_kd_loss(skip_balancer=True))
        distiller.release()
        source.release()
    (first, *_), *rest = [list(loss.values()) for loss in losses]
    assert len(rest) == 9
    assert first.isfinite()
    assert torch.equal(first, next(iter(losses[5].values())))


def test_the_default_is_the_table_on_a_cpu_and_the_device_elsewhere(loader, tmp_path):
    source = with_table(make_teacher(), "auto", loader, root=tmp_path)
    assert isinstance(source, TeacherTable)
    source.release()
    source = with_table(make_teacher(), "auto", loader, root=tmp_path, device="meta")
    assert isinstance(source, ResidentTable)
    source.release()


def test_what_cannot_live_on_a_device_stays_a_table_or_is_refused(images, tmp_path):
    loader = TensorLoader(images, 64, views=make_views())
    for folder, options in (("a", {"codec": Sampled(3)}), ("b", {"layers": ["fc"]})):
        source = with_table(make_teacher(), tmp_path / folder, loader, device="meta", **options)
        assert isinstance(source, TeacherTable)
        source.release()
        with pytest.raises(ConfigError, match="whole outputs"):
            with_table(make_teacher(), tmp_path / folder, loader, resident=True, **options)
