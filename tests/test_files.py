"""Atomic writes and strict JSON."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation import files
from distillation.errors import CheckpointError, ConfigError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
@settings(deadline=None)
def test_json_values_survive_a_round_trip(value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        files.atomic_json(path, value)
        assert json.loads(path.read_bytes()) == value


def test_what_json_cannot_say_becomes_null_or_its_name():
    written = {
        "nan": math.nan,
        "infinity": -math.inf,
        "path": Path("a/b"),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "class": torch.nn.Linear,
        "numpy": np.float32(0.5),
        "tensor": torch.tensor(3),
        "tuple": (1, 2),
        "set": {3, 1, 2},
        "ordered": OrderedDict(b=1),
        1: "number as key",
    }
    assert json.loads(files.dumps(written)) == {
        "nan": None,
        "infinity": None,
        "path": "a/b",
        "dtype": "torch.bfloat16",
        "device": "cpu",
        "class": "torch.nn.modules.linear:Linear",
        "numpy": 0.5,
        "tensor": 3,
        "tuple": [1, 2],
        "set": [1, 2, 3],
        "ordered": {"b": 1},
        "1": "number as key",
    }


def test_an_object_that_is_no_json_is_named_by_its_place():
    with pytest.raises(ConfigError, match=r"a object at 'optimizer.groups\[1\]' cannot be written"):
        files.dumps({"optimizer": {"groups": [1, object()]}})


def test_two_keys_that_json_would_mix_up_are_refused():
    with pytest.raises(ConfigError, match=r"two keys .* are '1'"):
        files.dumps({1: "a", "1": "b"})


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "file"
    files.atomic_write(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half of the new one")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file"]


def _write_in_turn(path: Path, letters: str) -> None:
    for letter in letters:
        files.atomic_write(path, letter * 3_000_000)


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "file"
    _write_in_turn(path, "a")
    writer = multiprocessing.get_context("fork").Process(
        target=_write_in_turn, args=(path, "bcd" * 10)
    )
    writer.start()
    seen = set()
    while writer.is_alive():
        text = path.read_text()
        assert text == text[0] * 3_000_000
        seen.add(text[0])
    assert writer.exitcode == 0
    assert len(seen) > 1


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot save .*inner"):
        files.atomic_write(tmp_path / "file" / "inner", "text")


def test_the_next_write_removes_what_a_killed_process_left(tmp_path):
    pid = int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))
    mine = files.temporary_name(tmp_path / "mine")
    dead_file = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{pid}-")
    dead_folder = tmp_path / dead_file.name.replace(".mine.", ".1000.")
    foreign = tmp_path / ".swap.tmp"
    for file in (mine, dead_file, foreign):
        file.write_text("")
    dead_folder.mkdir()
    (dead_folder / "model.safetensors").write_text("")

    files.atomic_write(tmp_path / "other", "text")

    assert listing(tmp_path) == sorted([mine.name, foreign.name, "other"])


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folder_with(content: str):
    def fill(folder: Path) -> None:
        (folder / "content").write_text(content)
        (folder / files.MANIFEST).write_text("{}")

    return fill


def test_a_replacement_that_was_cut_short_still_shows_the_old_folder(tmp_path):
    folder = tmp_path / "100"
    files.replace_folder(folder, folder_with("old"))
    folder.rename(tmp_path / ".100.previous.tmp")  # killed between the two renames

    assert (files.locate(folder) / "content").read_text() == "old"
    assert files.folders(tmp_path) == ["100"]

    files.tidy(tmp_path)
    assert (folder / "content").read_text() == "old"


def test_a_replacement_that_was_not_tidied_up_shows_the_new_folder(tmp_path):
    folder = tmp_path / "100"
    files.replace_folder(folder, folder_with("new"))
    files.replace_folder(tmp_path / ".100.previous.tmp", folder_with("old"))

    assert (files.locate(folder) / "content").read_text() == "new"
    files.tidy(tmp_path)
    assert listing(tmp_path) == ["100"]
    assert (folder / "content").read_text() == "new"


def test_a_folder_without_a_manifest_is_not_complete(tmp_path):
    (tmp_path / "100").mkdir()
    assert files.locate(tmp_path / "100") is None
    assert files.folders(tmp_path) == []
