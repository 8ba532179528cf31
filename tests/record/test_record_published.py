"""The records of this repository: what they say is what their runs say, on the front page too."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.record.check import check
from experiments.record.front import differences

PROJECT = Path(__file__).resolve().parents[2]
RECORDS = sorted((PROJECT / "records").glob("*_seed_table"))


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_every_figure_of_a_record_is_what_its_runs_say(folder):
    assert check(folder) == []


def test_the_front_page_shows_the_newest_record():
    assert differences(RECORDS[-1], PROJECT / "README.md") == []
