"""The `distill` command, as its users type it."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from distillation import cli, runs
from distillation.commands import output
from distillation.data import digits
from distillation.models.digits import DigitsSmallModel
from distillation.references import Reference


@pytest.fixture
def distill(tmp_path, capsys):
    """Calls `distill … --runs ROOT`; gives exit code, stdout and stderr."""

    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([*arguments, "--runs", str(tmp_path)])
        told = capsys.readouterr()
        assert (exit_.value.code or 0) == code, told
        return told.out, told.err

    return call


def record(root: Path, experiment: str, accuracy: float, **options) -> runs.Run:
    with runs.create(experiment, root=root, **options) as recorder:
        recorder.log(10, 0, {"accuracy.test": accuracy, "loss.test": 0.5, "param.w.norm": 1.0})
        recorder.log(20, 1, {"accuracy.test": accuracy - 0.1, "loss.test": 0.4})
        recorder.update(facts={"parameters": 1198, "macs": 20_736})
    return runs.find(recorder.uuid, root)


@pytest.fixture
def teacher(tmp_path) -> runs.Run:
    return record(tmp_path, "digits_large", 0.9, name="large", config={"lr": 0.1}, seed=1)


@pytest.fixture
def student(tmp_path, teacher) -> runs.Run:
    config = {"lr": 0.1, "kd": {"temperature": 4.0}}
    return record(tmp_path, "digits_distill", 0.8, config=config, parent=teacher)


# distill runs


def test_runs_lists_the_newest_first(distill, teacher, student):
    out, err = distill("runs")
    heading, first, second = out.splitlines()
    assert heading.split("  ")[0] == "run"
    for column in ("experiment", "name", "status", "started (UTC)", "metrics", "parent"):
        assert column in heading
    assert first.split()[:4] == [student.uuid[:8], "digits_distill", "-", "completed"]
    assert "accuracy.test 0.7000, loss.test 0.4000" in first
    assert first.endswith(teacher.uuid[:8])
    assert second.split()[:4] == [teacher.uuid[:8], "digits_large", "large", "completed"]
    assert err == ""


def test_runs_as_json(distill, teacher, student):
    told = json.loads(distill("runs", "--json")[0])
    assert [run["uuid"] for run in told] == [student.uuid, teacher.uuid]
    assert told[0]["parent"] == teacher.uuid
    assert told[0]["summary"]["loss.test"] == 0.4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--experiment", "digits_large"], ["large"]),
        (["--status", "crashed"], []),
        (["--limit", "1"], ["distill"]),
        (["--sort", "accuracy.test"], ["large", "distill"]),
        (["--sort", "accuracy.test", "--reverse"], ["distill", "large"]),
        (["--sort", "experiment"], ["distill", "large"]),
        (["--sort", "started", "--reverse", "--limit", "1"], ["large"]),
    ],
)
def test_runs_are_filtered_and_sorted(distill, teacher, student, options, expected):
    told = json.loads(distill("runs", "--json", *options)[0])
    assert [run["experiment"].removeprefix("digits_") for run in told] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--experiment", "digit_large"], "unknown experiment 'digit_large'; did you mean"),
        (["--status", "done"], "unknown status 'done'"),
        (["--sort", "acuracy.test"], "unknown sort key 'acuracy.test'; did you mean"),
        (["--limit", "0"], "--limit"),
        (["--stauts", "crashed"], "--stauts"),
    ],
)
def test_a_wrong_option_names_what_is_wrong(distill, teacher, student, options, message):
    out, err = distill("runs", *options, code=2)
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_an_empty_store_is_no_error(distill, tmp_path):
    assert distill("runs")[0] == f"no runs in {tmp_path}\n"
    assert distill("runs", "--json")[0] == "[]\n"


def test_an_unreadable_run_is_mentioned(distill, tmp_path, teacher):
    broken = tmp_path / "digits_large" / uuid4().hex
    broken.mkdir()
    out, err = distill("runs")
    assert len(out.splitlines()) == 2
    assert err.startswith("left out 1 unreadable: ")
    assert broken.name in err


# distill show, compare, rm


def test_show_tells_everything_of_a_run(distill, teacher, student):
    out, _ = distill("show", student.uuid[:8])
    told = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    told = {name: value.strip() for name, value in told.items()}
    assert told["run"] == student.uuid
    assert told["status"] == "completed"
    assert told["teacher"] == f"{teacher.uuid} (digits_large)"
    assert told["parameters"] == "1198"
    assert told["macs"] == "20,736"
    assert told["kd.temperature"] == "4.0"
    assert told["accuracy.test"].split() == ["0.7000", "0.8000", "10"]
    assert told["checkpoints"] == "none"
    assert "param.w.norm" not in out
    assert "param.w.norm" in distill("show", student.uuid, "--all")[0]
    assert student.uuid in distill("show", teacher.uuid)[0]


def test_show_as_json(distill, teacher, student):
    told = json.loads(distill("show", teacher.uuid, "--json")[0])
    assert told["config"] == {"lr": 0.1}
    assert told["seed"] == 1
    assert told["children"] == [student.uuid]
    assert told["best"]["accuracy.test"] == {"value": 0.9, "step": 10}


def test_compare_puts_runs_side_by_side(distill, teacher, student):
    out, _ = distill("compare", teacher.uuid[:6], student.uuid[:6])
    rows = [line.split() for line in out.splitlines()]
    assert ["kd.temperature", "-", "4.0"] in rows
    assert ["parameters", "1198", "1198"] in rows
    assert ["accuracy.test", "0.8000", "0.7000"] in rows
    assert ["loss.test", "(lowest)", "0.4000", "at", "20", "0.4000", "at", "20"] in rows
    assert not any(row and row[0] == "lr" for row in rows)


def test_compare_as_json(distill, teacher, student):
    told = json.loads(distill("compare", teacher.uuid, student.uuid, "--json")[0])
    assert told["config"] == {"kd.temperature": {student.uuid: 4.0}}
    assert told["facts"]["macs"] == {teacher.uuid: 20_736, student.uuid: 20_736}


def test_rm_removes_a_run_but_a_teacher_only_by_force(distill, tmp_path, teacher, student):
    _, err = distill("rm", teacher.uuid, code=2)
    assert "is the teacher of 1" in err
    assert student.uuid in err
    distill("rm", teacher.uuid, "--force")
    out, _ = distill("rm", student.uuid[:8])
    assert out == f"removed {student.uuid} (digits_distill)\n"
    assert runs.list(tmp_path) == []


def test_rm_takes_students_with_their_teacher_in_any_order_and_all_or_none(
    distill, tmp_path, teacher, student
):
    alone = record(tmp_path, "digits", 0.5)
    _, err = distill("rm", alone.uuid, teacher.uuid, code=2)
    assert "is the teacher of 1" in err
    assert len(runs.list(tmp_path)) == 3
    distill("rm", teacher.uuid, student.uuid)
    assert [run.uuid for run in runs.list(tmp_path)] == [alone.uuid]


def test_the_members_of_an_ensemble_are_teachers_too(distill, tmp_path, teacher):
    other = record(tmp_path, "digits_large", 0.7)
    with runs.create("digits_distill", root=tmp_path) as recorder:
        members = [
            {"kind": "run", "uuid": teacher.uuid, "step": 10},
            {"kind": "run", "uuid": other.uuid, "step": None},
        ]
        recorder.update(teacher={"made_by": {"kind": "ensemble", "members": members}})
    shown, _ = distill("show", recorder.uuid)
    assert f"{teacher.uuid}@10 (digits_large), {other.uuid} (digits_large)" in shown
    assert recorder.uuid in distill("show", teacher.uuid)[0]
    compared, _ = distill("compare", recorder.uuid, other.uuid)
    assert f"{teacher.uuid[:8]}@10, {other.uuid[:8]}" in compared
    _, err = distill("rm", teacher.uuid, code=2)
    assert "is the teacher of 1" in err


def test_runs_without_the_metric_come_last_in_either_direction(distill, tmp_path, teacher, student):
    with runs.create("digits", root=tmp_path):
        pass
    for options in ([], ["--reverse"]):
        told = json.loads(distill("runs", "--json", "--sort", "accuracy.test", *options)[0])
        assert told[-1]["experiment"] == "digits"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_a_model_that_diverged_has_numbers_to_show(value):
    assert output.number(value) == str(float("nan") if value is None else value)


@pytest.mark.parametrize("command", ["show", "rm", "evaluate", "compare"])
def test_an_unknown_run_is_one_message_and_exit_code_two(distill, teacher, command):
    out, err = distill(command, "zzz", code=2)
    assert out == ""
    assert err.startswith("distill: unknown run 'zzz' in ")
    assert f"{teacher.uuid}  digits_large  started {teacher.started[:19]}" in err


@pytest.mark.parametrize("command", ["show", "rm", "compare"])
def test_a_step_where_it_says_nothing_is_refused(distill, teacher, command):
    _, err = distill(command, f"{teacher.uuid}@10", code=2)
    assert "this is about the whole run" in err


# distill evaluate


@pytest.fixture
def evaluated(tmp_path) -> tuple[runs.Run, DigitsSmallModel]:
    torch.manual_seed(0)
    model = DigitsSmallModel().eval()
    reference = Reference.of(DigitsSmallModel)
    with runs.create("digits", root=tmp_path, model=reference, keep=2) as recorder:
        recorder.update(evaluation={"dataset": "digits"})
        recorder.save_checkpoint(10, {"model": DigitsSmallModel().state_dict()})
        recorder.save_checkpoint(20, {"model": model.state_dict()})
    return runs.find(recorder.uuid, tmp_path), model


def test_evaluate_measures_the_model_on_the_test_set(distill, evaluated):
    run, model = evaluated
    _, test = digits()
    images = (test.images / 255 - torch.tensor(test.mean)) / torch.tensor(test.std)
    with torch.no_grad():
        logits = model(images)
    told = json.loads(distill("evaluate", run.uuid[:8], "--batch-size", "100", "--json")[0])
    assert (told["run"], told["step"], told["weights"]) == (run.uuid, 20, "model")
    assert told["images"] == 360
    assert told["accuracy"] == pytest.approx((logits.argmax(1) == test.labels).double().mean())
    loss = torch.nn.functional.cross_entropy(logits, test.labels)
    assert told["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert 0 < told["ece"] < 1


def test_evaluate_takes_a_step(distill, evaluated):
    run, _ = evaluated
    assert json.loads(distill("evaluate", f"{run.uuid}@10", "--json")[0])["step"] == 10
    assert json.loads(distill("evaluate", run.uuid, "--step", "10", "--json")[0])["step"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "15"], "no checkpoint at step 15; there are: 10, 20"),
        (["--step", "x"], "'x' in"),
        (["--weights", "ema"], "unknown weights 'ema'"),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
        (["--data", "somewhere"], "--data is where CIFAR-10 lies; this run is evaluated on"),
    ],
)
def test_a_wrong_wish_for_an_evaluation_is_refused(distill, evaluated, options, message):
    assert message in distill("evaluate", evaluated[0].uuid, *options, code=2)[1]


def test_evaluate_refuses_a_run_that_names_no_data_set(distill, teacher):
    assert "does not say which data set" in distill("evaluate", teacher.uuid, code=2)[1]


# The command itself


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_every_command_has_help_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert not exit_.value.code
    out = capsys.readouterr().out
    assert "Example: distill " in out
    assert "\x1b" not in out


def test_a_misspelt_command_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["comapre"])
    assert exit_.value.code == 2
    assert "unknown command 'comapre'; did you mean 'compare'" in capsys.readouterr().err


def thousand_runs(root: Path) -> None:
    """A store such as a year leaves, every other run killed, with a summary of 300 values."""
    summary = {f"param.{i}.norm": i / 7 for i in range(300)} | {"accuracy.test": 0.9}
    for number in range(1000):
        uuid = uuid4().hex
        folder = root / f"experiment_{number % 5}" / uuid
        folder.mkdir(parents=True)
        (folder / "run.lock").touch()
        info = {
            "uuid": uuid,
            "status": "running" if number % 2 else "completed",
            "started": f"2026-01-01T00:00:{number % 60:02}+00:00",
            "summary": summary,
        }
        (folder / "run.json").write_text(json.dumps(info))


def test_a_thousand_runs_are_listed_in_less_than_two_seconds(tmp_path):
    thousand_runs(tmp_path)
    command = [sys.executable, "-m", "distillation.cli", "runs", "--runs", str(tmp_path)]
    took = []
    for _ in range(3):  # in the processor's time: other processes share these cores
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert len(out.splitlines()) == 1001
        assert out.count("interrupted") == 500
    assert min(took) < 2, took


def test_listing_runs_does_not_import_torch(tmp_path, teacher):
    code = (
        "import sys; from distillation import cli\n"
        "try: cli.main(['runs', '--runs', sys.argv[1]])\n"
        "finally: print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("no_color", [False, True])
def test_colours_are_for_terminals_that_want_them(tmp_path, teacher, no_color):
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"}
    if not no_color:
        del environment["NO_COLOR"]
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "distillation.cli", "runs", "--runs", str(tmp_path)]
    process = subprocess.Popen(command, stdout=terminal, env=environment)
    process.wait(timeout=60)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(terminal)
    assert teacher.uuid[:8] in shown
    assert ("\x1b[" in shown) is not no_color
