"""`distill` on a store with damage in it, and what it asks before it removes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from distillation import cli, runs


@pytest.fixture
def distill(tmp_path, capsys):
    """Calls `distill … --runs ROOT`; gives exit code, stdout and stderr."""

    def call(*arguments: str, root=tmp_path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([*arguments, "--runs", str(root)])
        return exit_.value.code or 0, *capsys.readouterr()

    return call


def record(root, experiment="digits", **options) -> runs.Run:
    with runs.create(experiment, root=root, **options) as recorder:
        for step in (10, 20, 30):
            recorder.log(step, 0, {"loss.test": 0.5})
    return runs.find(recorder.uuid, root)


def test_a_teacher_that_cannot_be_read_is_said_to_be_there(distill, tmp_path):
    teacher = record(tmp_path, "large")
    student = record(tmp_path, parent=teacher)
    (teacher.path / "run.json").write_text('{"uuid')
    code, out, _ = distill("show", student.uuid)
    assert code == 0
    (told,) = (line for line in out.splitlines() if line.startswith("teacher"))
    assert f"{teacher.uuid} (in this store, but {teacher.path / 'run.json'} cannot be read" in told


def test_a_run_that_cannot_be_read_is_removed_by_force(distill, tmp_path):
    run = record(tmp_path)
    (run.path / "run.json").write_text('{"uuid')
    for command in ("show", "rm"):
        code, _, err = distill(command, run.uuid)
        assert code == 2
        advice = f"distill rm {run.uuid[:8]} --force --runs {tmp_path}"
        assert err.rstrip().endswith(f"or remove the run: {advice}")
    assert distill("rm", run.uuid, "--force") == (0, f"removed {run.uuid} (digits)\n", "")
    assert not run.path.exists()


def test_lines_of_the_metrics_that_cannot_be_read_are_counted(distill, tmp_path):
    run = record(tmp_path)
    metrics = run.path / "metrics.jsonl"
    first, *others = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(first + "garbage\n" + "".join(others) + '{"step": 40, "loss.test": "x"}\n')
    code, out, err = distill("show", run.uuid)
    assert (code, err) == (0, "left out 2 lines of metrics.jsonl that cannot be read: 2, 5\n")
    assert "loss.test  0.5000" in out


def test_a_file_in_the_place_of_the_root_is_refused_by_all(distill, tmp_path):
    (tmp_path / "file").touch()
    for command in (["runs"], ["show", "ab"], ["rm", "ab"], ["evaluate", "ab"]):
        code, _, err = distill(*command, root=tmp_path / "file")
        assert (code, "file: a file, where a folder of runs is wanted" in err) == (2, True), err


def test_a_root_that_is_not_there_is_said_not_to_be(distill, tmp_path):
    code, out, err = distill("runs", root=tmp_path / "logs")
    assert (code, out) == (0, f"no runs in {tmp_path / 'logs'}\n")
    assert err == f"there is no folder {tmp_path / 'logs'}\n"
    code, _, err = distill("show", "ab", root=tmp_path / "logs")
    assert (code, err.rstrip().endswith("logs: there is no such folder")) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs", "--experimnt", "x"], "unknown option '--experimnt'; did you mean '--experiment'"),
        (["runs", "--limit", "0"], "invalid value for '--limit'"),
        (["show"], "missing argument 'RUN'; `distill show --help` says what it takes"),
    ],
)
def test_a_wrong_argument_is_one_line_as_other_errors_are(distill, arguments, says):
    code, out, err = distill(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("distill: " + says)


@pytest.mark.parametrize(
    ("typed", "options", "removed"),
    [("n\n", [], False), ("y\n", [], True), ("", ["--yes"], True)],
)
def test_a_terminal_is_asked_before_a_run_is_removed(tmp_path, typed, options, removed):
    run = record(tmp_path)
    ours, terminal = pty.openpty()
    os.write(ours, typed.encode())
    command = [sys.executable, "-m", "distillation.cli", "rm", run.uuid[:4], *options]
    done = subprocess.run(
        [*command, "--runs", str(tmp_path)], stdin=terminal, capture_output=True, text=True
    )
    os.close(ours)
    os.close(terminal)
    asked = f"remove {run.uuid} (digits, completed, started {run.started[:10]}"
    assert (asked in done.stdout) == (not options)
    assert run.path.exists() is not removed
    assert f"{'removed' if removed else 'kept'} {run.uuid} (digits)" in done.stdout
