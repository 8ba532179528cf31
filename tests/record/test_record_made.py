"""The whole protocol, rehearsed on real images; then what a check of its record notices."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distillation.errors import ConfigError
from experiments.record.check import check
from experiments.record.front import differences, publish
from experiments.record.page import page
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


def test_a_search_leaves_nothing_of_the_test_images(made):
    for key, facts in read(made).items():
        searches = facts["group"].startswith("search")
        columns = (made / "curves" / f"{key}.csv").read_text().splitlines()[0]
        assert ("predictions" in facts, "accuracy.test" in columns) == (not searches, not searches)


def test_what_is_made_passes_its_check(made):
    assert check(made) == []


def test_its_page_links_to_files_that_are_there(made):
    links = set(re.findall(r"\]\(([^)]+)\)", (made / "README.md").read_text()))
    assert {"runs/small_0.json", "curves/distilled_1.csv", "figures/curves.png"} <= links
    files = [link for link in links if not link.startswith(("#", "https:"))]
    assert [file for file in files if not (made / file).exists()] == []


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


def test_check_notices_a_trial_that_is_said_to_have_tried_something_else(copy):
    _edit(copy, "search_small_1", tried={"optimizer.learning_rate": 7.0})
    _write_page(copy)
    assert any(line.startswith("search_small_1: tried") for line in check(copy))


def test_check_notices_a_student_of_another_teacher(copy):
    _edit(copy, "distilled_0", teacher="0" * 32)
    assert any(line.startswith("distilled_0: its teacher is 000") for line in check(copy))


def test_check_notices_a_control_that_was_trained_for_other_epochs(copy):
    facts = json.loads((copy / "runs" / "longer.json").read_text())
    _edit(copy, "longer", config=facts["config"] | {"epochs": 1})
    assert any(line.startswith("longer: epochs=1, and the protocol says") for line in check(copy))


def _write_page(folder: Path) -> None:
    protocol = json.loads((folder / "record.json").read_text())
    (folder / "README.md").write_text(page(protocol, read(folder)))


@pytest.mark.parametrize("key", ["small_1", "search_small_2", "untrained"])
def test_the_page_says_that_a_run_was_left_out(copy, key):
    title = GROUPS[read(copy)[key]["group"]]
    (copy / "runs" / f"{key}.json").unlink()
    _write_page(copy)
    said = (copy / "README.md").read_text().partition("have not been run yet")[2].splitlines()[0]
    assert title in said


def test_check_notices_students_whose_search_has_not_ended(copy):
    (copy / "runs" / "search_distilled_2.json").unlink()
    _write_page(copy)
    assert "distilled_0: the protocol has no such part, or its search has not ended" in check(copy)


def test_a_student_that_was_not_compared_with_its_teacher_yet_passes(copy):
    _edit(copy, "labml", agreement=None, kl=None)
    _write_page(copy)
    assert check(copy) == []


def _flipped(predictions: str) -> str:
    return predictions.translate(str.maketrans("0123456789", "1234567890"))


def _again(folder: Path, archive, *more: str) -> subprocess.CompletedProcess:
    """The rehearsal goes on, on a machine that has no runs."""
    return record("--smoke", "--data", archive, "--out", folder, *more)


def test_another_machine_makes_the_untrained_teacher_again(copy, cifar_archive):
    """Weights do not outlive the machine, and another processor adds in another order."""
    before = read(copy)["untrained"]
    _edit(copy, "untrained", predictions=_flipped(before["predictions"]))
    (copy / "runs" / "from_untrained.json").unlink()
    done = _again(copy, cifar_archive, "--only", "from_untrained")
    assert done.returncode == 0, done.stderr + done.stdout
    found = read(copy)
    assert found["from_untrained"]["teacher"] == found["untrained"]["run"] != before["run"]
    assert found["untrained"]["predictions"] == before["predictions"]
    assert check(copy) == []


def test_a_record_goes_on_in_another_precision_which_is_marked(copy, cifar_archive):
    (copy / "runs" / "smoothing.json").unlink()
    done = _again(copy, cifar_archive, "--only", "smoothing", "--precision", "bf16")
    assert done.returncode == 0, done.stderr + done.stdout
    used = {key: facts["precision"] for key, facts in read(copy).items()}
    assert {key for key in used if used[key] != "fp32"} == {"smoothing"}
    page = (copy / "README.md").read_text()
    assert page.count(f"| {GROUPS['smoothing']} (bf16) |") == 3
    assert "Computed in fp32, but for what is marked" in page
    assert check(copy) == []


def test_a_large_model_that_is_made_again_and_differs_is_refused(copy, cifar_archive):
    large = read(copy)["large"]
    _edit(copy, "large", predictions=_flipped(large["predictions"]))
    (copy / "runs" / "labml.json").unlink()
    done = _again(copy, cifar_archive, "--only", "labml")
    assert done.returncode == 2
    assert f"in the place of {large['run']}" in done.stderr
    assert "Students of two teachers do not belong in one record" in done.stderr
    assert "labml" not in read(copy)


def test_check_fails_as_a_command(copy):
    assert record("--check", copy).returncode == 0
    _edit(copy, "large", ece=0.5)
    done = record("--check", copy)
    assert done.returncode == 1
    assert "large: calibration error says 0.5" in done.stdout


@pytest.fixture
def front(tmp_path) -> Path:
    page = tmp_path / "front.md"
    page.write_text("# A\n\n<!-- record: begin -->\n<!-- record: end -->\n\nB\n")
    return page


def test_table_and_figure_go_between_the_marks_of_the_front_page(made, front):
    publish(made, front)
    publish(made, front)
    written = front.read_text()
    assert written.startswith("# A\n\n<!-- record: begin -->\n## What it gives on CIFAR-10\n")
    assert written.endswith("<!-- record: end -->\n\nB\n")
    assert written.count("| Small, distilled |") == 1
    assert f"]({made.parent.name}/made/figures/curves.png)" in written
    assert differences(made, front) == []


def test_the_front_page_tells_the_margin_over_the_plain_students(made, front):
    found = read(made)
    over = [found[f"distilled_{s}"]["accuracy"] - found[f"small_{s}"]["accuracy"] for s in (0, 1)]
    publish(made, front)
    mean, error = 50 * sum(over), 50 * abs(over[0] - over[1])
    text = front.read_text()
    # Equal differences have no test, and are not told here
    told = f"**{mean:+.2f} ± {error:.2f}** points over “Small, alone” (2 seeds, p = " in text
    assert told == (error > 0)


def test_a_figure_of_the_front_page_that_differs_is_noticed(made, front):
    publish(made, front)
    front.write_text(front.read_text().replace("| Small, alone | 437,034", "| Small, alone | 4"))
    lines = differences(made, front)
    assert any(line.startswith("-| Small, alone | 4 ") for line in lines)
    assert any(line.startswith("+| Small, alone | 437,034") for line in lines)


def test_a_front_page_without_the_marks_says_what_to_add(made, tmp_path):
    (tmp_path / "front.md").write_text("# A\n")
    with pytest.raises(ConfigError, match="record: begin"):
        publish(made, tmp_path / "front.md")


def test_an_unknown_group_is_named(tmp_path):
    done = record("--only", "destilled", "--out", tmp_path / "record")
    assert done.returncode == 2
    assert "distilled" in done.stderr
    assert not (tmp_path / "record").exists()


def test_a_part_that_waits_for_a_search_says_so(tmp_path, cifar_archive):
    out = tmp_path / "record"
    done = record("--smoke", "--only", "distilled", "--data", cifar_archive, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "distilled was not run: the search that chooses its values has not ended" in done.stdout


def test_a_folder_without_a_record_is_refused(tmp_path):
    done = record("--check", tmp_path)
    assert done.returncode == 2
    assert "no record.json" in done.stderr
