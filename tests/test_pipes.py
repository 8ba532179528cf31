"""Nobody reads on: `distill … | head -1` ends quietly."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distillation.pipes import READER_GONE, ends_with_its_reader

PRINTS = "from distillation.pipes import ends_with_its_reader\nwith ends_with_its_reader():\n    "


def run_unread(*command):
    """Exit code and stderr of a program whose stdout is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, *command], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(write)
    return done.returncode, done.stderr


@pytest.mark.parametrize("how", ["print('short')", "print('long' * 100_000)"])
def test_a_program_ends_with_its_reader_and_says_nothing(how):
    assert run_unread("-c", PRINTS + how) == (READER_GONE, "")


def test_without_it_there_is_a_message():
    code, said = run_unread("-c", "print('short')")
    assert code and "BrokenPipeError" in said


def test_the_command_line_ends_quietly(tmp_path):
    code, said = run_unread("-m", "distillation.cli", "runs", "--json", "--runs", str(tmp_path))
    assert code and said == ""


def test_an_experiment_ends_quietly(tmp_path):
    code, said = run_unread(
        "-c",
        "from experiments.command_line import run_main\nrun_main(lambda _: print('run: 1'))",
    )
    assert (code, said) == (READER_GONE, "")


def test_another_broken_pipe_is_an_error():
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError), ends_with_its_reader():
        os.write(write, b"a worker's")
    os.close(write)
