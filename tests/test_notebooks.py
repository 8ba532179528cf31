"""The notebooks run from top to bottom, and what they say of their results is so.

Each is run as `notebooks/execute.py` runs it: in an empty folder, with a run store of its own. A
last cell is added that holds the claims of the text against the notebook's own values.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

from notebooks.execute import execute, notebooks, strip  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = notebooks()
LARGEST = 100_000  # bytes

CLAIMS = {
    "01_main_job.ipynb": """
        assert results["distilled"]["accuracy"] > results["alone"]["accuracy"]
        assert results["distilled"]["kl"] < results["alone"]["kl"]
        assert results["teacher"]["agreement"] == 1 and results["teacher"]["kl"] == 0
        assert results["alone"]["parameters"] < results["teacher"]["parameters"] / 9
        assert likeness["distilled"] > likeness["alone"] + 0.1
        assert entropy[chosen].min() > 1  # nats: soft targets that say something
        assert lineage == {
            "notebook_teacher": None,
            "notebook_alone": None,
            "notebook_distilled": "notebook_teacher",
        }
    """,
    "02_four_doors.ipynb": """
        assert list(identical) == ["experiment", "script", "trainer", "toolkit"]
        assert all(identical.values())
        assert all(value > 0.01 for value in moved.values())
        assert len(set(accuracy.values())) == 1
        assert len(runs.children(teacher_run)) == 3
    """,
    "03_runs.ipynb": """
        assert gain == mean(table["difference"]) > 0
        assert len(table["alone"]) == len(table["distilled"]) == 3
        assert all(stdev(values) > 0 for values in table.values())
        # What differs is the loss and the teacher
        assert {key.split(".")[-1] for key in comparison.config} == {
            "kd_architecture", "teacher", "criterion_params", "temperature",
            "distillation_loss_coeff", "loss",
        }
        # Trained longer on the labels alone, known better, and yet worse
        labels = [run.curve("loss.train")[1][-1] for run in alone]
        both = [run.curve("loss.task_loss.train")[1][-1] for run in distilled]
        assert mean(labels) < mean(both)
        assert same and hits == expected
        assert remaining.count("alone") == 3 and "alone_again" not in remaining
    """,
    "04_own_loss.ipynb": """
        assert max(differences.values()) < 1e-9
        assert checks and all(checks.values())
        assert same
        assert all(0.5 < row["accuracy"] for row in script.values())
        assert script["standardized"]["spread"] < script["usual soft targets"]["spread"]
        assert curve[-1] < curve[0] / 2
        assert (run.name, run.config["loss"]) == ("my_distill", "standardized")
        assert run.config["tau"] == 3.0
        assert run.parent.uuid == teacher_run.uuid
        assert run.summary["accuracy.test"] > 0.9
    """,
}


@pytest.fixture(scope="module", autouse=True)
def font_cache():
    """matplotlib tells whoever draws first in a new home that it looks for fonts."""
    import matplotlib.font_manager  # noqa: F401


def text_of(notebook) -> str:
    """Sources and textual outputs."""
    parts = []
    for cell in notebook.cells:
        parts.append(cell.source)
        for output in cell.get("outputs", []):
            parts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    return "\n".join(parts)


def outputs_of(notebook) -> list:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def kinds_of(notebook) -> list[list[str]]:
    """What each cell gives: streams by name, figures, values."""
    return [
        [output.get("name", output.output_type) for output in cell.get("outputs", [])]
        for cell in notebook.cells
    ]


def words_of(notebook) -> list[str]:
    """What each output says, without its figures: those differ by rounding between machines."""
    texts = [o.get("text", o.get("data", {}).get("text/plain", "")) for o in outputs_of(notebook)]
    return [" ".join(re.sub(r"[-+]?\d[\d.,]*(e[-+]\d+)?", "0", text).split()) for text in texts]


def claims(name: str):
    lines = [line.removeprefix("        ") for line in CLAIMS[name].splitlines()]
    return nbformat.v4.new_code_cell("\n".join([*lines, 'print("so it is")']))


def test_each_notebook_has_claims_to_hold():
    assert [path.name for path in NOTEBOOKS] == sorted(CLAIMS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_claims_hold(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(claims(path.name))
    execute(notebook, tmp_path)
    assert outputs_of(notebook)[-1].text == "so it is\n"
    # No error, and no warning
    assert not [output for output in outputs_of(notebook) if output.get("name") == "stderr"]
    del notebook.cells[-1]
    assert kinds_of(notebook) == kinds_of(committed), "run notebooks/execute.py"
    assert words_of(notebook) == words_of(committed), "run notebooks/execute.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_run_small_and_says_nothing_of_the_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # Run from top to bottom, once
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.get("name", output.output_type) for output in outputs_of(notebook)}
    assert kinds <= {"stdout", "display_data", "execute_result"}
    assert path.stat().st_size < LARGEST
    text = text_of(notebook)
    assert not re.findall(r"(?:^|[\s'\"=(])(?:/|~/|[A-Z]:\\)[\w.-]+/[^\s'\"]*", text)
    assert str(Path.home()) not in text
    assert not re.findall(r"\b[0-9a-f]{32}\b", text), "a run UUID"
    assert not re.findall(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d", text), "a time"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_as_execute_leaves_it(path):
    content = path.read_text(encoding="utf-8")
    stripped = strip(nbformat.reads(content, as_version=4))
    assert nbformat.writes(stripped) + "\n" == content


def test_the_links_of_the_notebooks_lead_somewhere():
    pages = [(path, text_of(nbformat.read(path, as_version=4))) for path in NOTEBOOKS]
    readme = ROOT / "notebooks" / "README.md"
    for page, text in [*pages, (readme, readme.read_text())]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    listed = re.findall(r"\]\((\w+\.ipynb)\)", readme.read_text())
    assert listed == [path.name for path in NOTEBOOKS]


def test_what_depends_on_the_machine_is_stripped():
    cell = nbformat.v4.new_code_cell("1", metadata={"execution": {"started": "2026-01-01"}})
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}}
    )
    content = json.dumps(strip(notebook))
    assert "2026" not in content and "3.11" not in content
    assert os.sep + "home" not in content
