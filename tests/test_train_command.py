"""`distill train` and `python -m distillation.train_from_kd_recipe`."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys

import pytest
import yaml
from recipe_kit import SHORT

from distillation import cli, runs, train_from_kd_recipe


@pytest.fixture
def distill(tmp_path, capsys):
    """Calls `distill … --runs ROOT`; gives stdout and stderr."""

    def call(*arguments, code=0):
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, "--runs", str(tmp_path / "runs")])
        told = capsys.readouterr()
        assert (end.value.code or 0) == code, told
        return told

    return call


def test_a_recipe_is_trained_and_compared_with_plain_training(distill, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = SHORT[:2]
    distilled = distill("train", "digits", *SHORT).out.splitlines()[-1].split()[-1]
    plain = distill("train", "digits_small", *short).out.splitlines()[-1].split()[-1]
    run = runs.find(distilled, tmp_path / "runs")
    assert run.status == "completed"
    assert run.parent.experiment == "digits_kd_teacher"
    compared = distill("compare", plain, distilled).out
    assert "accuracy.test" in compared
    assert "digits_small" in compared
    assert "macs" in compared
    evaluated = json.loads(distill("evaluate", distilled, "--json").out)
    assert evaluated["accuracy"] == pytest.approx(run.summary["accuracy.test"])
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_json_prints_nothing_else(distill):
    facts = json.loads(distill("train", "digits_small", *SHORT[:2], "--json").out)
    assert 0 <= facts["metrics"]["accuracy.test"] <= 1
    assert facts["teacher"] is None


def test_show_prints_the_composed_recipe_and_trains_nothing(distill, tmp_path):
    told = distill("train", "digits", "training_hyperparams.max_epochs=3", "--show").out
    shown = yaml.safe_load(told)
    assert shown["training_hyperparams"]["max_epochs"] == 3
    assert shown["ckpt_root_dir"] == str(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "unknown recipe 'digit'; did you mean 'digits'"),
        (["digits", "training_hyperparams.max_epoch=3"], "'max_epoch'; did you mean 'max_epochs'"),
        (["digits", "datasett.name=digits"], "'datasett'; did you mean 'dataset'"),
        (["digits", "student_architecture=digits_smal"], "did you mean 'digits_small"),
        (["digits", "ckpt_root_dir=x"], "two names of one thing"),
        (["digits", "arch_params.criterion._target_=os.getcwd"], "+trust=os"),
    ],
)
def test_what_does_not_fit_is_one_line(distill, tmp_path, arguments, message):
    told = distill("train", *arguments, code=2)
    assert message in told.err
    assert "Traceback" not in told.err
    assert not (tmp_path / "runs").exists()


def test_trust_opens_the_way_to_code_of_your_own(distill, tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "import torch\n"
        "class Mine(torch.nn.Module):\n"
        "    component_names = ['Loss', 'Gap']\n"
        "    def forward(self, output, target):\n"
        "        gap = (output.student_output - output.teacher_output).square().mean()\n"
        "        return gap, torch.stack([gap, gap]).detach()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    line = ["train", "digits", *SHORT, "training_hyperparams.loss={_target_: my_losses.Mine}"]
    line += ["~training_hyperparams.criterion_params"]
    distill(*line, code=2)
    for way in (["+trust=my_losses"], ["--trust", "my_losses.Mine"]):
        uuid = distill(*line, *way).out.split()[-1]
        assert "loss.gap.train" in runs.find(uuid, tmp_path / "runs").summary


def test_help_has_an_example(distill):
    told = distill("train", "--help").out
    assert "Example: distill train digits" in told


def test_an_interrupted_training_says_how_to_go_on(tmp_path):
    root = tmp_path / "runs"
    line = ["train", "digits", *SHORT, "training_hyperparams.max_epochs=20", "--runs", str(root)]
    start = [sys.executable, "-u", "-m", "distillation.cli"]
    with subprocess.Popen(
        [*start, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for printed in process.stdout:
            if printed.startswith("epoch  2/20"):
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    command = shlex.split(err.strip().splitlines()[-1])
    assert command == ["distill", *line, "resume=true"]
    (student,) = runs.list(root, experiment="digits_kd")
    assert student.status == "interrupted"
    assert student.checkpoints

    done = subprocess.run([*start, *command[1:]], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == student.uuid
    assert len(runs.find(student.uuid, root).curve("accuracy.valid")[0]) == 20


# python -m distillation.train_from_kd_recipe


def test_the_module_trains_the_named_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["--config-name=digits", *SHORT, f"ckpt_root_dir={tmp_path / 'runs'}"]
    assert train_from_kd_recipe.main(line) == 0
    uuid = capsys.readouterr().out.split()[-1]
    assert runs.find(uuid, tmp_path / "runs").status == "completed"
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_the_module_prints_a_recipe_of_yours(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("defaults: [digits, _self_]\nexperiment_name: mine\n")
    line = ["--config-dir", str(tmp_path), "--config-name", "mine", "--cfg", "job", "comment=x"]
    assert train_from_kd_recipe.main(line) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["experiment_name"], shown["comment"]) == ("mine", "x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "give the recipe's name: --config-name=NAME, of cifar100"),
        (["--config-name=cifar10_resne"], "did you mean 'cifar10_resnet'"),
        (["--config-name=digits_small"], "train this one with Trainer"),
        (["--config-name=digits", "--config-dir=nowhere"], "there is no folder"),
    ],
)
def test_the_module_says_what_is_wrong(line, message, capsys):
    assert train_from_kd_recipe.main(line) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_cifar10_is_trained_resumed_and_compared(cifar_archive, distill, tmp_path):
    small = [
        f"dataset.data_dir={cifar_archive}",
        "dataset.subset=256",
        "teacher_architecture=resnet8",
        "teacher_arch_params=null",
        *SHORT[1:],
    ]
    plain = [v for v in small if not v.startswith("teacher")]
    one = distill("train", "cifar10_large_small", *small).out.split()[-1]
    longer = [v.replace("max_epochs=1", "max_epochs=2") for v in small]
    again = distill("train", "cifar10_large_small", *longer, "resume=true").out.split()[-1]
    assert again == one
    assert len(runs.find(one, tmp_path / "runs").curve("accuracy.test")[0]) == 2
    alone = distill("train", "cifar10_small", *plain).out.split()[-1]
    assert "accuracy.test" in distill("compare", alone, one).out


def test_two_processes_train_one_run(tmp_path):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    line += ["-m", "distillation.train_from_kd_recipe", "--config-name=digits", *SHORT]
    line += ["device=cpu", f"ckpt_root_dir={tmp_path}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    (student,) = runs.list(tmp_path, experiment="digits_kd")
    (teacher,) = runs.list(tmp_path, experiment="digits_kd_teacher")
    assert done.stdout.count("run: ") == 1
    assert student.status == teacher.status == "completed"
    assert student.parent_uuid == teacher.uuid
