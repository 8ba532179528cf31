"""The harness of the benchmarks and the check of their committed figures."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import pytest

from benchmarks import check
from benchmarks.check import Target
from benchmarks.common import Result, Spread, Timing, measure, ratio

TARGETS = (Target("door", "step_ratio", "≤", 1.05), Target("door", "speedup", "≥", 4))
README = f"# Benchmarks\n\n{check.BEGIN}\n{check.END}\n"


def result(step_ratio=1.01, speedup=5.0):
    made = Result("door", "What does a door cost?")
    made.timings = {"plain": Timing([0.1, 0.2], [0.1, 0.2])}
    made.figure("step_ratio", Spread.of([step_ratio, 1.2, 0.9]), what="over a bare loop")
    made.figure("speedup", speedup)
    return made


def test_variants_alternate_and_every_round_turns_the_order_around():
    calls = []
    timings = measure(
        {name: lambda name=name: calls.append(name) for name in "AB"}, rounds=3, calls=2, warmup=1
    )
    assert "".join(calls) == "BBAA" + "AABB" + "BBAA" + "AABB"
    assert len(timings["A"].cpu) == len(timings["A"].wall) == 3


def test_a_ratio_is_taken_within_each_round():
    timings = {"ours": Timing([1.0, 3.0, 8.0]), "theirs": Timing([2.0, 3.0, 4.0])}
    spread = ratio(timings, "ours", "theirs")
    assert (spread.low, spread.median, spread.high) == (0.5, 1.0, 2.0)


def test_a_written_result_says_what_it_was_measured_with(tmp_path, capsys):
    path = result().write(tmp_path)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["figures"]["step_ratio"]["median"] == 1.01
    assert written["machine"]["cores"] >= 1
    assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?|unknown", written["commit"])
    assert written["versions"]["python"]
    assert "step_ratio" in capsys.readouterr().out
    # Facts about the machine, nothing about whose it is: no path, no user, no host.
    text = path.read_text(encoding="utf-8")
    assert f"{Path.home()}/" not in text
    assert str(tmp_path) not in text
    assert platform.node() not in text


def test_met_targets_have_no_problems(tmp_path):
    result().write(tmp_path)
    assert check.problems(check.load(tmp_path), TARGETS) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"step_ratio": 1.06}, "door/step_ratio: 1.06 misses the target ≤ 1.05"),
        ({"speedup": 3.9}, "door/speedup: 3.9 misses the target ≥ 4"),
    ],
)
def test_a_missed_target_is_named(tmp_path, changed, problem):
    result(**changed).write(tmp_path)
    assert check.problems(check.load(tmp_path), TARGETS) == [problem]


def test_missing_results_and_figures_are_problems(tmp_path):
    assert "run `python -m benchmarks.door` first" in check.problems({}, TARGETS)[0]
    made = result()
    del made.figures["speedup"]
    made.write(tmp_path)
    assert check.problems(check.load(tmp_path), TARGETS) == [
        "door/speedup: not among the figures ['step_ratio']"
    ]


def test_the_tables_are_written_from_the_files_and_an_old_one_fails(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(README, encoding="utf-8")
    arguments = ["--results", str(tmp_path), "--readme", str(readme)]
    result().write(tmp_path)
    assert check.main(arguments, TARGETS) == 1
    assert "run with --table" in capsys.readouterr().out
    assert check.main([*arguments, "--table"], TARGETS) == 0
    assert check.main(arguments, TARGETS) == 0
    assert "| `step_ratio` | 1.01 × | 0.9 … 1.2 |" in readme.read_text(encoding="utf-8")
    result(speedup=4.5).write(tmp_path)
    assert check.main(arguments, TARGETS) == 1


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is not the result of benchmark 'other'"):
        check.load(tmp_path)


def test_every_target_belongs_to_a_benchmark_that_is_there():
    for target in check.TARGETS:
        assert (check.HERE / f"{target.benchmark}.py").exists()
