"""The whole protocol, rehearsed on real images; then what a check of its record notices."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.record.check import check
from experiments.record.protocol import GROUPS, SMOKE
from experiments.record.results import read

# A dozen trainings, each a process
pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).resolve().parents[2]


def record(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.record", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory, cifar_archive) -> Path:
    """A record of the rehearsal, made by its own command."""
    folder = tmp_path_factory.mktemp("record") / "made"
    done = record("--smoke", "--data", cifar_archive, "--out", folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "record"))


def test_every_group_is_recorded(made):
    found = read(made)
    assert {facts["group"] for facts in found.values()} == set(GROUPS)
    assert len([f for f in found.values() if f["group"] == "distilled"]) == SMOKE.seeds
    assert "not run yet" not in (made / "README.md").read_text()


def test_a_record_holds_neither_weights_nor_images(made):
    files = [file for file in made.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".csv", ".md", ".png", ".npy"}
    assert sum(file.stat().st_size for file in files) < 1e6


def test_searches_do_not_look_at_test_images(made):
    for facts in read(made).values():
        assert ("predictions" in facts) != facts["group"].startswith("search"), facts["key"]


def test_what_is_made_passes_its_check(made):
    assert check(made) == []


def _edit(folder: Path, key: str, **changes) -> None:
    file = folder / "runs" / f"{key}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_check_notices_a_figure_of_the_page(copy):
    page = copy / "README.md"
    page.write_text(
        page.read_text().replace("Small, distilled | 437,034", "Small, distilled | 1", 1)
    )
    assert any("437,034" in line for line in check(copy))


def test_check_notices_an_accuracy_that_its_predictions_do_not_have(copy):
    _edit(copy, "small_0", accuracy=0.99)
    assert any(line.startswith("small_0: accuracy says 0.99") for line in check(copy))


def test_check_notices_predictions_that_were_touched_up(copy):
    labels = json.loads((copy / "record.json").read_text())["labels"]
    _edit(copy, "distilled_1", predictions=labels, accuracy=1.0)
    wrong = check(copy)
    assert any(line.startswith("distilled_1: accuracy of the curve") for line in wrong)
    assert any(line.startswith("distilled_1: agreement") for line in wrong)


def test_check_notices_a_student_that_was_not_trained_as_its_search_chose(copy):
    facts = json.loads((copy / "runs" / "small_1.json").read_text())
    _edit(copy, "small_1", config=facts["config"] | {"optimizer.weight_decay": 0.25})
    assert any("small_1: optimizer.weight_decay=0.25" in line for line in check(copy))


def test_check_fails_as_a_command(copy):
    assert record("--check", copy).returncode == 0
    _edit(copy, "large", ece=0.5)
    done = record("--check", copy)
    assert done.returncode == 1
    assert "large: calibration error says 0.5" in done.stdout


def test_an_unknown_group_is_named(tmp_path):
    done = record("--only", "destilled", "--out", tmp_path / "record")
    assert done.returncode == 2
    assert "distilled" in done.stderr
    assert not (tmp_path / "record").exists()


def test_a_folder_without_a_record_is_refused(tmp_path):
    done = record("--check", tmp_path)
    assert done.returncode == 2
    assert "no record.json" in done.stderr
