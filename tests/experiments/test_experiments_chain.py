"""The main job on digits: killed in its middle, resumed, and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from experiment_case import CHECKOUT, command, wait_for

from distillation import runs
from distillation.precision import resolve_precision
from experiments.chain import ChainError
from experiments.chain import _noted as chain_notes
from experiments.config_check import resolve
from experiments.digits import distill, large, small

KEYS = ["large", "small", "distill", "small_no_3", "distill_no_3"]
CONFIGS = {
    "large": large.Configs,
    "small": small.Configs,
    "distill": distill.Configs,
    "small_no_3": small.Configs,
    "distill_no_3": distill.Configs,
}


def noted(root):
    """What the one chain of a store has trained, by key."""
    files = list((root / "digits" / "report" / "chains").glob("*.json"))
    return json.loads(files[0].read_text())["runs"] if files else {}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A store in which the chain was killed during its second run and then resumed.

    The root has a colon in its name, as folders may.
    """
    root = tmp_path_factory.mktemp("chain") / "a: b"
    line = ["--epochs", "2", "--set", "save_seconds=0.1", "--runs", str(root)]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.digits", *line],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: "small" in noted(root), 120)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = noted(root)
    # In this process, but for the runs
    done = command("digits.__main__", "--resume", root=root)
    assert done.code == 0, done.err
    after = noted(root)
    return root, before, after, done


@pytest.fixture(scope="module")
def report(chain):
    root = chain[0]
    return json.loads((root / "digits" / "report" / "report.json").read_text())


def test_what_was_trained_before_the_kill_is_kept(chain):
    root, before, after, _ = chain
    assert list(before) == ["large", "small"]
    assert list(after) == KEYS
    assert {k: after[k] for k in before} == before
    found = runs.list(root)
    assert sorted(run.uuid for run in found) == sorted(after.values())
    assert {run.status for run in found} == {"completed"}


def test_the_values_of_the_first_command_line_hold_for_every_run(chain):
    root, _, after, _ = chain
    for uuid in after.values():
        config = runs.find(uuid, root=root).config
        assert (config["epochs"], config["save_seconds"]) == (2, 0.1)


def test_every_configuration_is_fully_resolved(chain):
    root, _, after, _ = chain
    for key, uuid in after.items():
        config = runs.find(uuid, root=root).config
        assert set(config) == set(resolve(CONFIGS[key], {}))
        assert None not in config.values()
    config = runs.find(after["distill_no_3"], root=root).config
    named = [config[k] for k in ("temperature", "soft_targets_weight", "label_loss_weight")]
    assert (config["without_classes"], named) == ([3], [20.0, 1.0, 0.0])


def test_students_know_their_teacher(chain):
    root, _, after, _ = chain
    parents = {k: runs.find(uuid, root=root).parent_uuid for k, uuid in after.items()}
    teacher = after["large"]
    assert parents == {
        "large": None,
        "small": None,
        "distill": teacher,
        "small_no_3": None,
        "distill_no_3": teacher,
    }


def test_the_report_has_a_row_for_each_run_with_its_figures(chain, report):
    root, _, after, _ = chain
    assert [row["key"] for row in report["rows"]] == KEYS
    for row in report["rows"]:
        run = runs.find(after[row["key"]], root=root)
        assert row["run"] == run.uuid
        assert row["teacher"] == run.parent_uuid
        assert row["accuracy"] == pytest.approx(run.summary["accuracy.test"], abs=1e-6)
        assert (row["parameters"], row["macs"]) == (run.facts["parameters"], run.facts["macs"])
        assert row["latency_ms"] > 0
        weights = run.path / "checkpoints" / str(run.checkpoints[-1]) / "model.safetensors"
        assert row["file_bytes"] == weights.stat().st_size
    of = {row["key"]: row for row in report["rows"]}
    assert of["large"]["agreement"] == 1.0
    agreement = runs.find(after["distill"], root=root).summary["agreement.test"]
    assert of["distill"]["agreement"] == pytest.approx(agreement, abs=1e-6)
    assert of["large"]["parameters"] > 8 * of["small"]["parameters"]


def test_whoever_was_taught_by_labels_alone_knows_no_3(report):
    of = {row["key"]: row for row in report["rows"]}
    assert of["small_no_3"]["accuracy_per_class"]["3"] == 0.0
    assert of["small_no_3"]["without_classes"] == [3]


def test_the_table_is_printed_and_written(chain):
    root, _, after, done = chain
    folder = root / "digits" / "report"
    text = (folder / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0].replace(" ", "").startswith("|model|accuracy|parameters|MACs|")
    assert len(lines) == 2 + 5 + 2 + 5
    for line in lines[:7]:
        assert line in done.out
    assert all(uuid in text for uuid in after.values())
    assert "3s" in text
    assert done.out.splitlines()[-1] == f"report: {folder / 'report.md'}"


@pytest.mark.parametrize("name", ["curves.png", "bars.png"])
def test_the_pictures_are_pictures(chain, name):
    from PIL import Image

    path = chain[0] / "digits" / "report" / name
    assert f"({name})" in path.with_name("report.md").read_text()
    with Image.open(path) as picture:
        width, height = picture.size
        grey = picture.convert("L").getextrema()
    assert width > 600
    assert height > 300
    assert grey[0] < 128 < grey[1]


def test_a_chain_that_has_ended_is_only_reported_again(chain):
    root = chain[0]
    done = command("digits.__main__", "--resume", root=root)
    assert done.code == 0
    assert "python -m" not in done.out
    assert len(runs.list(root)) == 5


def test_a_value_that_comes_too_late_for_a_run_is_refused(chain):
    root = chain[0]
    (notes,) = (root / "digits" / "report" / "chains").iterdir()
    before = notes.read_text()
    done = command("digits.__main__", "--resume", "--epochs", "3", root=root)
    assert done.code == 2
    assert "'Large' has ended with epochs=2" in done.err
    assert "cannot go on with epochs=3; begin a new one, without --resume" in done.err
    assert notes.read_text() == before
    # What it had already, and where it runs, may be said
    same = ["--resume", "--epochs", "2", "--device", "cpu"]
    if resolve_precision("auto", "cpu") == "fp32":
        same += ["--precision", "auto"]
    assert command("digits.__main__", *same, root=root).code == 0


def test_a_request_to_end_reaches_the_run_which_saves(tmp_path):
    root = tmp_path / "with space"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.digits", "--epochs", "900", "--runs", str(root)],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "epoch" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    (run,) = runs.list(root)
    assert run.status == "interrupted"
    assert run.checkpoints
    assert f"python -m experiments.digits --runs '{root}' --resume {run.uuid}\n" in errors


def test_each_chain_is_found_again_by_a_run_of_it(tmp_path):
    chains = tmp_path / "chains"
    chains.mkdir()
    for name, uuid, seconds in (("a", "1a", 20), ("b", "2b", 10)):
        (chains / f"{name}.json").write_text(json.dumps({"runs": {"large": uuid * 16}}))
        os.utime(chains / f"{name}.json", (seconds, seconds))
    assert chain_notes(chains, "").stem == "a"
    assert chain_notes(chains, "2b2b").stem == "b"
    with pytest.raises(ChainError, match="no chain has a run '3c'"):
        chain_notes(chains, "3c")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--data x", "'data' cannot be set here: the digits come with scikit-learn"),
        ("--resume", "there is no chain to go on with"),
        ("--resume 3c", "there is no chain to go on with"),
        ("--set without_classes=[5]", "'Small, alone, no 3 seen' is about without_classes=[3]"),
        ("--foo", "unknown command-line option '--foo'"),
        ("--set temprature=3", "did you mean 'temperature'"),
        ("--set loss=kll", "'kll'; did you mean 'kl'"),
        ("--set optimizer.learning_rate=-1", "out of range"),
        ("--epochs 1.5", "must be int"),
        ("--set epochs", "KEY=VALUE"),
    ],
)
def test_wrong_input_is_refused_before_the_first_run(tmp_path, line, says):
    done = command("digits.__main__", *line.split(), root=tmp_path / "runs")
    assert done.code == 2
    assert says in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_help_says_what_to_type_and_explains_every_option():
    line = [sys.executable, "-m", "experiments.digits", "--help"]
    done = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m experiments.digits [-h]")
    assert "--data" not in done.stdout
    options = done.stdout.split("options:\n")[1].split("\n\n")[0]
    # An option without help has nothing beside it or indented below it
    for entry in options.split("\n  -"):
        assert len(entry.replace("\n", "  ").split("  ")) > 1, entry
    assert "python -m experiments.digits.large --help" in done.stdout
