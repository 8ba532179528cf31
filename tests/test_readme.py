"""The README is held to: its commands are CI's, its examples run, its figures are the measured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOORS = README.split("\n## Four doors")[1].split("\n## ")[0]
EXAMPLES = re.findall(r"### ([^\n]+)\n.*?```python\n(.*?)```", DOORS, flags=re.S)


def commands(text: str) -> list[str]:
    return re.findall(r"pip install -r requirements\.txt && python -m [\w.]+", text)


def test_ci_runs_the_two_commands_of_the_readme_to_the_letter_and_first():
    mine = commands(README)
    assert mine == [
        "pip install -r requirements.txt && python -m experiments.digits",
        "pip install -r requirements.txt && python -m pytest",
    ]
    script = (ROOT / ".ci" / "run").read_text()
    calls = re.findall(r"^run ['\"](.*)['\"]$", script, flags=re.M)
    assert calls[:2] == mine


def test_requirements_are_pinned_and_within_the_ranges_of_the_package():
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(r.specifier)) for r in pinned)
    versions = {r.name.lower(): str(r.specifier)[2:] for r in pinned}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        ranges += extra
    for text in ranges:
        wanted = Requirement(text)
        if wanted.name == "distillation":
            continue
        assert wanted.name.lower() in versions, f"{wanted.name} is not in requirements.txt"
        assert wanted.specifier.contains(versions[wanted.name.lower()]), text


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_of_a_door_runs_as_it_stands(title, code, tmp_path):
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DISTILLATION_RUNS": str(tmp_path / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_local_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
