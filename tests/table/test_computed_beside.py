"""A batch of the teacher has a fixed size; its spare rows compute what will be asked for later."""

from __future__ import annotations

from distillation.table import TeacherTable


def test_rows_that_a_batch_has_left_take_other_views_of_its_samples(table, teacher, loader):
    batch, calls = loader.batch(0, 0), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    sample, view = batch.sample[:40], batch.view[:40]
    table(sample=sample, view=view)
    filled = table.entries.storage.filled_map()
    assert (filled.sum(), table.misses) == (64, 40)
    assert filled[sample, view].all() and filled[sample].sum() == 64
    assert len(calls) == 2  # the batch, and once more beside other neighbours


def test_what_was_computed_beside_a_batch_has_the_bits_of_a_fill(
    table, teacher, loader, inputs, tmp_path
):
    for epoch in range(6):
        for batch in loader.batches(epoch):
            table(sample=batch.sample[:50], view=batch.view[:50])
    with TeacherTable(teacher, tmp_path / "filled", inputs) as filled:
        filled.fill()
        keys = table.entries.storage.filled_map().nonzero()
        assert len(keys[0]) == table.count() > table.misses
        one, other = (t.entries.storage.read(*keys) for t in (table, filled))
    assert (one == other).all()


def test_filling_as_one_trains_runs_the_teacher_hardly_more_often_than_filling_ahead(
    table, teacher, loader
):
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    for epoch in range(30):
        for batch in loader.batches(epoch):
            table(sample=batch.sample, view=batch.view)
    assert table.count() > 0.99 * 320 * 9
    assert len(calls) < 1.3 * 320 * 9 / 64
