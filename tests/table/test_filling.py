"""Filling ahead: what is filled, going on after a kill, several workers, repair."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from table_case import make_teacher, make_views

from distillation.data import TensorLoader
from distillation.errors import ConfigError
from distillation.table import GivenInputs, ImageInputs, TeacherTable

HERE = Path(__file__).resolve().parent


def content(table):
    storage = table.entries.storage
    keys = np.argwhere(storage.filled_map())
    return keys.tolist(), storage.read(*keys.T).tobytes()


def test_k_views_filled_ahead_are_all_that_a_student_ever_asks_for(teacher, images, tmp_path):
    views = make_views().restrict(3, seed=0)
    loader = TensorLoader(images, 64, views=views, seed=8)
    with TeacherTable(teacher, tmp_path, ImageInputs.of(loader)) as table:
        seen = []
        assert table.fill(progress=lambda done, total: seen.append((done, total))) == 960
        assert (seen[0], seen[-1]) == ((0, 960), (960, 960))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        for epoch in range(4):
            for batch in loader.batches(epoch):
                table(batch.images, sample=batch.sample, view=batch.view)
        assert (table.misses, table.count()) == (0, 960)


def test_a_table_filled_ahead_equals_one_filled_by_a_student(teacher, images, inputs, tmp_path):
    part = range(16)
    with TeacherTable(teacher, tmp_path / "ahead", inputs) as ahead:
        ahead.fill(part)
        with TeacherTable(teacher, tmp_path / "lazy", inputs) as lazy:
            for view in np.random.default_rng(0).permutation(9):
                sample = torch.randperm(16)
                lazy(sample=sample, view=torch.full_like(sample, int(view)))
            assert content(ahead) == content(lazy)


def test_filling_goes_on_where_it_stopped(table):
    assert table.fill(range(40), limit=100) == 100
    assert table.count() == 100
    calls = []
    table.teacher.module.register_forward_hook(lambda *_: calls.append(1))
    assert table.fill(range(40)) == 260
    assert len(calls) == 5  # 260 entries in batches of 64
    assert table.fill(range(40)) == 0


def test_workers_start_at_their_own_share_and_finish_together(teacher, inputs, tmp_path):
    first = TeacherTable(teacher, tmp_path / "table", inputs)
    first.fill(range(40), limit=64, worker=(0, 2))
    second = TeacherTable(make_teacher(), tmp_path / "table", inputs)
    second.fill(range(40), limit=64, worker=(1, 2))
    assert second.misses == 0
    assert second.count() == 128  # not the same 64
    assert first.fill(range(40)) == 360 - 128
    first.release()
    second.release()
    with pytest.raises(ConfigError, match=r"worker=\(2, 2\)"):
        first.fill(worker=(2, 2))


def test_damaged_entries_are_forgotten_and_filled_again(table):
    table.fill(range(20))
    before = content(table)
    table.release()
    path = table.folder / "entries.f16"
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # sample 0, view 5
    path.write_bytes(data)
    with TeacherTable(make_teacher(), table.folder, table.inputs) as again:
        assert again.repair() == 1
        assert again.fill(range(20)) == 1
        assert content(again) == before


def test_only_the_caller_can_fill_data_that_only_the_caller_knows(tmp_path):
    with (
        TeacherTable(make_teacher(), tmp_path, GivenInputs(10, data="ten")) as table,
        pytest.raises(ConfigError, match="GivenInputs cannot be filled ahead"),
    ):
        table.fill()


FILLER = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, {here!r})
    from table_case import make_teacher, make_views
    from distillation.data import digits
    from distillation.table import ImageInputs, TeacherTable
    inputs = ImageInputs(digits()[0].subset(320, seed=0), make_views())
    table = TeacherTable(make_teacher(), {folder!r}, inputs)
    table.fill(progress=lambda done, total: (print(done, flush=True), time.sleep(0.02)))
""")


def start_filler(folder):
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", FILLER.format(here=str(HERE), folder=str(folder))],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def test_killed_twice_while_filling_then_finished_equals_filled_in_peace(teacher, inputs, tmp_path):
    folder, stored = tmp_path / "killed", 0
    for _ in range(2):
        process = start_filler(folder)
        told = int(process.stdout.readline())
        assert told == stored  # goes on where the killed one was
        while told < stored + 500:
            told = int(process.stdout.readline())
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with TeacherTable(None, folder, inputs) as killed:
            stored = killed.count()
        assert told <= stored < 2880  # nothing that was reported is lost

    with (
        TeacherTable(teacher, folder, inputs) as table,
        TeacherTable(make_teacher(), tmp_path / "peace", inputs) as peace,
    ):
        assert table.fill() == 2880 - stored
        assert peace.fill() == 2880
        assert content(table) == content(peace)
