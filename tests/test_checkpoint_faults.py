"""Full disks, and kills while saving: the older checkpoint survives."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from checkpoint_cases import listing, value_of, write
from kills import die_at

from distillation.checkpoint import load_state, load_tensors, save_state, save_tensors
from distillation.errors import CheckpointError

FORK = multiprocessing.get_context("fork")


def _save_with_a_file_size_limit(folder: Path, pipe) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    messages = []
    for attempt in (
        lambda: write(folder / "100", 2.0, size=200_000),
        lambda: save_tensors(folder / "x", {"w": torch.rand(200_000)}),
        lambda: save_state(folder / "s", {"w": torch.rand(200_000)}),
    ):
        try:
            attempt()
            messages.append("saved")
        except CheckpointError as error:
            messages.append(str(error))
    pipe.send(messages)


def test_when_a_file_cannot_be_written_whole_the_older_checkpoint_survives(tmp_path):
    write(tmp_path / "100", 1.0)
    save_tensors(tmp_path / "x", {"w": torch.zeros(2)})
    save_state(tmp_path / "s", "older")
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_save_with_a_file_size_limit, args=(tmp_path, theirs))
    process.start()
    messages = ours.recv()
    process.join()

    for message, name in zip(messages, ("100/model.safetensors", "x", "s"), strict=True):
        assert message == (
            f"cannot save {tmp_path}/{name}: File too large; what was there before is unchanged. "
            "Free some space and save again."
        )
    assert value_of(tmp_path / "100") == 1.0
    assert torch.equal(load_tensors(tmp_path / "x")["w"], torch.zeros(2))
    assert load_state(tmp_path / "s") == "older"
    assert listing(tmp_path) == ["100", "s", "x"]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"may not mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_when_the_disk_is_full_the_older_checkpoint_survives(small_disk):
    write(small_disk / "100", 1.0, size=100_000)
    for name in ("100", "200"):
        with pytest.raises(CheckpointError, match=r"No space left on device.*Free some space"):
            write(small_disk / name, 2.0, size=200_000)
    assert value_of(small_disk / "100") == 1.0
    assert listing(small_disk) == ["100"]

    write(small_disk / "200", 2.0, size=100_000)  # there is room for this
    assert value_of(small_disk / "200") == 2.0


def _save_for_ever(folder: Path, first: int, pipe) -> None:
    value = first
    while True:
        write(folder, float(value), size=20_000)
        pipe.send(value)
        value += 1


def test_a_kill_while_saving_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    folder = tmp_path / "100"
    chance = random.Random(0)
    write(folder, 0.0, size=20_000)
    saved = 0
    for _ in range(12):
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_save_for_ever, args=(folder, saved + 1, theirs))
        process.start()
        theirs.close()
        saved = ours.recv()  # it is at work
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            while True:
                saved = ours.recv()
        except EOFError:
            pass
        assert value_of(folder) in (saved, saved + 1)
        saved = int(value_of(folder))
    write(folder, -1.0)
    assert listing(tmp_path) == ["100"]


def _save_and_die(folder: Path, operation: int) -> None:
    die_at(operation)
    write(folder, 2.0)


def test_a_kill_before_any_one_file_operation_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    folder = tmp_path / "100"
    write(folder, 1.0)
    seen = []
    for operation in itertools.count(1):
        process = FORK.Process(target=_save_and_die, args=(folder, operation))
        process.start()
        process.join()
        seen.append(value_of(folder))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        write(folder, 1.0)
        assert listing(tmp_path) == ["100"]
    assert seen[0] == 1.0
    assert seen[-1] == 2.0
    assert seen == sorted(seen)
    assert len(seen) > 20
