"""The harness of the benchmarks and the check of their committed figures."""

from __future__ import annotations

import importlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import check, compiling, doors, sources, views_cost
from benchmarks.check import Target
from benchmarks.common import Result, Spread, Timing, measure, ratio

TURNS = ((0, 10), (10, 20), (20, 25))  # of 25 steps
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


def test_the_median_of_enough_measurements_has_an_interval():
    """Six values: all lie on one side of the median with probability 2/64, so the extremes do."""
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]).lower is None
    six = Spread.of([6.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert (six.lower, six.upper) == (1.0, 6.0)
    # of 31 values the 10th smallest and the 10th largest, as in tables of the sign test
    many = Spread.of([float(i) for i in range(1, 32)])
    assert (many.lower, many.upper) == (10.0, 22.0)


def test_the_machine_is_the_same_when_torch_was_not_imported():
    """A benchmark that trains in processes of its own does not import torch itself."""
    program = (
        "import sys, json; from benchmarks.common import Result; assert 'torch' not in sys.modules;"
        "print(json.dumps(Result('door', '?', elsewhere=True).to_json()))"
    )
    elsewhere = json.loads(subprocess.check_output([sys.executable, "-c", program]))
    here = result().to_json()
    assert elsewhere["machine"]["bf16"] == here["machine"]["bf16"]
    assert elsewhere["versions"]["torch"] == here["versions"]["torch"]
    assert here["machine"]["threads"] == torch.get_num_threads()
    assert (
        "threads" not in elsewhere["machine"]
    )  # of the collecting process, which measured nothing


def test_doors_take_turns_and_one_finishes_before_another_goes_on():
    """Not even its last checkpoint disturbs the others' steps."""
    seen = []

    def variant(name):
        def run(clock):
            seen.append(f"{name} begins")
            for step in clock.over(range(25)):
                seen.append((name, step))
            seen.append(f"{name} ends")
            return torch.nn.Linear(1, 1)

        return run

    torch.manual_seed(0)
    seconds, _ = doors.side_by_side({"A": variant("A"), "B": variant("B")}, threads=1, steps=25)
    turns = [[(name, step) for step in range(*part)] for part in TURNS for name in "AB"]
    assert [s for s in seen if isinstance(s, tuple)] == [step for turn in turns for step in turn]
    assert seen.index("A ends") < seen.index(("B", 20))
    assert all(wall > 0 for _, wall in seconds.values())


def test_a_door_that_fails_is_heard_of():
    def fails(clock):
        raise RuntimeError("no teacher")

    def works(clock):
        for _ in clock.over(range(25)):
            pass
        return torch.nn.Linear(1, 1)

    with pytest.raises(RuntimeError, match="no teacher"):
        doors.side_by_side({"A": fails, "B": works}, threads=1, steps=25)


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


def test_what_is_not_measured_is_remarked_and_fails_the_strict_check(tmp_path, capsys):
    assert check.problems({}, TARGETS) == []
    assert "door: not measured; run `python -m benchmarks.door`" in check.remarks({}, TARGETS)
    made = result()
    del made.figures["speedup"]
    made.write(tmp_path)
    remark = "door/speedup: not measured; the figures are ['step_ratio']"
    assert remark in check.remarks(check.load(tmp_path), TARGETS)
    readme = tmp_path / "README.md"
    readme.write_text(README, encoding="utf-8")
    arguments = ["--results", str(tmp_path), "--readme", str(readme)]
    check.main([*arguments, "--table"], TARGETS)
    capsys.readouterr()
    assert check.main(arguments, TARGETS) == 0
    assert f"remark: {remark}" in capsys.readouterr().out
    assert check.main([*arguments, "--strict"], TARGETS) == 1


def test_every_benchmark_without_a_result_is_named():
    assert {"compiling", "toolkit_door", "experiment_door", "loader"} <= check.benchmarks()
    missing = [f"{n}: not measured; run `python -m benchmarks.{n}`" for n in check.benchmarks()]
    assert set(missing) <= set(check.remarks({}, ()))


def test_a_target_met_by_less_than_the_figure_is_sure_of_is_remarked(tmp_path):
    made = result()
    made.figure("step_ratio", Spread.of([1.0, 1.01, 1.02, 1.03, 1.06, 1.07, 1.08]))
    made.write(tmp_path)
    (remark,) = (r for r in check.remarks(check.load(tmp_path), TARGETS) if "only known" in r)
    assert remark == (
        "door/step_ratio: 1.03 meets the target ≤ 1.05, but the median is only known to lie in "
        "1 … 1.08"
    )
    made.figure("step_ratio", Spread.of([1.0, 1.01, 1.01, 1.02, 1.02, 1.03, 1.04]))
    made.write(tmp_path)
    assert not any("only known" in r for r in check.remarks(check.load(tmp_path), TARGETS))


def test_figures_of_another_state_of_their_files_are_remarked(tmp_path, monkeypatch):
    """In a repository of its own: one file is changed after the figures, another beside them."""
    for folder, files in {
        "benchmarks": {"door.py": "def main():\n    from distillation import convert\n"},
        "distillation": {
            "__init__.py": '_PUBLIC = {"convert": "meta"}\n',
            "meta.py": "from distillation import core\n",
            "core.py": "A = 1\n",
            "other.py": "",
        },
    }.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    sources._table.cache_clear()

    def git(*arguments):
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        command = ["git", *identity, *arguments]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "First")
    measured = {"door": {**result().to_json(), "commit": git("rev-parse", "--short=12", "HEAD")}}

    def remarks():
        return [r for r in check.remarks(measured, TARGETS) if "measured at" in r]

    assert remarks() == []
    (tmp_path / "distillation" / "other.py").write_text("B = 2\n")
    assert remarks() == []
    (tmp_path / "distillation" / "core.py").write_text("A = 2\n")
    git("commit", "-qam", "Second")
    (remark,) = remarks()
    assert remark.endswith("1 of its files have changed since: distillation/core.py")
    measured["door"]["commit"] += "+changes"
    assert "with which git cannot compare" in remarks()[0]
    sources._table.cache_clear()


def test_the_files_of_a_benchmark_are_found_through_names_that_are_imported_lazily():
    files = sources.files_of("trainer_door")
    assert files >= {"benchmarks/doors.py", "distillation/engine.py"}
    assert "distillation/trainer/kd_trainer.py" in files
    assert "experiments/session.py" not in files
    assert "distillation/trainer/kd_trainer.py" not in sources.files_of("loader")
    assert "experiments/cifar10/distill.py" in sources.files_of("views_cost")


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


@pytest.mark.parametrize("door", ["toolkit_door", "experiment_door", "trainer_door"])
def test_a_door_trains_what_the_loop_by_hand_trains(door, tmp_path):
    """One round of the benchmark itself, a few steps long: what is compared is the same job."""
    threads = torch.get_num_threads()
    try:
        main = importlib.import_module(f"benchmarks.{door}").main
        main(["--rounds", "1", "--steps", "21", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    written = check.load(tmp_path)[door]
    assert written["figures"]["same_bits"]["median"] == 1
    for target in check.TARGETS:
        if target.benchmark == door:
            assert target.figure in written["figures"]


@pytest.mark.parametrize(
    ("compiled", "words"),
    [
        ([0.8] * 7, "compiling is earned back after 50 steps"),
        ([1.3] * 7, "a compiled step is slower"),
        ([0.8, 0.9, 1.0, 1.1, 1.2, 1.0, 0.9], "a difference cannot be told from noise"),
        ([0.8] * 3, "a difference cannot be told from noise"),
    ],
)
def test_whether_compiling_pays_is_said_only_where_it_is_known(compiled, words):
    eager = [1.0] * len(compiled)
    timings = {"eager": Timing(eager, eager), "compiled": Timing(compiled, compiled)}
    assert compiling.verdict(10.0, timings, "eager", "compiled") == words


def test_the_cost_of_views_is_reported_as_mean_and_deviation_over_seeds():
    made = Result("views_cost", "?")
    views_cost.report({4: [0.80, 0.82], 162: [0.83, 0.83]}, 162, made)
    assert made.figures["accuracy_4_views"]["what"] == (
        "test accuracy, mean 0.8100 ± 0.0141 (2 seeds)"
    )
    assert made.figures["cost_4_views"]["median"] == pytest.approx(2.0)
    assert "mean 2.00 ± 1.41 (2 seeds)" in made.figures["cost_4_views"]["what"]
    assert "cost_162_views" not in made.figures


def test_finished_students_are_read_and_others_are_not_mistaken_for_them(tmp_path):
    """Runs of the store: the one asked for, and a newer one with another temperature."""
    from distillation import runs
    from experiments.config_check import resolve
    from experiments.digits.distill import Configs
    from experiments.digits.large import Configs as LargeConfigs

    def made(configs, name, parent=None, **changed):
        config = {**resolve(configs, {}), **changed}
        recorder = runs.create("digits", name=name, config=config, parent=parent, root=tmp_path)
        with recorder:
            recorder.log(1, 0, {"accuracy.test": 0.5})
        return recorder.uuid

    teacher = runs.find(made(LargeConfigs, "large"), tmp_path)
    config = {"views_per_image": 3, "seed": 1, "epochs": 2, "teacher_table": "auto"}
    wanted = made(Configs, "distill", teacher.uuid, **config, threads=2)
    made(Configs, "distill", teacher.uuid, **config, temperature=3.0)
    found = views_cost.student(teacher, "digits", config, str(tmp_path))
    assert found.uuid == wanted
