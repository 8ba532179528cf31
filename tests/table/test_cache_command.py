"""`distill cache`: fill a teacher's table from its recorded run, stop, go on."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from table_case import make_teacher

from distillation import Trainer, cli, models, runs
from distillation.data import CropFlip, TensorLoader, digits
from distillation.models.digits import DigitsLargeModel
from distillation.precision import resolve_precision
from distillation.references import Reference
from distillation.table import Execution, ImageInputs
from distillation.table.attach import with_table
from distillation.table.recorded import VIEWS
from distillation.table_option import table_sources


@pytest.fixture
def teacher_run(tmp_path):
    """A recorded teacher on 100 digits."""
    config = {"precision": "fp32", "channels_last": True, "subset": 100, "views_per_image": 0}
    model = Reference.of(DigitsLargeModel).to_json()
    with runs.create("digits", config=config, model=model, root=tmp_path) as recorder:
        recorder.update(evaluation={"dataset": "digits"})
        recorder.save_checkpoint(640, {"model": make_teacher().state_dict()})
    return recorder.uuid


def distill(capsys, *arguments):
    """Exit status, the JSON printed, and what went to stderr."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    status = ended.value.code or 0
    return status, json.loads(captured.out) if captured.out else None, captured.err


def students_loader(**options):
    """The loader of an experiment's student, with the images and views of the run above."""
    train = digits()[0].subset(100, seed=0)
    views = CropFlip(padding=1, size=8, flip=False)
    return TensorLoader(train, 32, views=views, seed=5, channels_last=True, **options)


def students_table(teacher_run, root, loader, **execution):
    """The table that the student asks, by `teacher_table=auto`."""
    model = runs.find(teacher_run, root).load_model().to(memory_format=torch.channels_last)
    return with_table(
        model, "auto", loader, root=root, execution=Execution(channels_last=True, **execution)
    )


def test_a_table_filled_by_the_command_is_the_one_that_auto_finds(teacher_run, tmp_path, capsys):
    command = ("cache", teacher_run[:8], "--views", 4, "--runs", tmp_path)
    status, facts, said = distill(capsys, *command)
    assert status == 0
    assert (facts["entries"], facts["computed"], facts["teacher"]) == (760, 760, teacher_run)
    train, test = facts["tables"]["train"], facts["tables"]["test"]
    assert (train["entries"], train["of"], test["entries"], test["of"]) == (400, 400, 360, 360)
    assert said.splitlines()[0] == "train: 0 of 400 entries"
    assert "\ntrain: 400 of 400 entries, " in said
    assert said.splitlines()[-1].startswith("test: 360 of 360 entries, ")
    assert "\x1b" not in said

    loader = students_loader(views_per_image=4)
    table = students_table(teacher_run, tmp_path, loader)
    for epoch in range(3):
        for batch in loader.batches(epoch):
            table(batch.images, sample=batch.sample, view=batch.view)
    assert (table.hits, table.misses) == (300, 0)
    assert str(table.folder) == train["table"]
    table.release()
    # The run store does not take the tables for an experiment.
    assert [run.uuid for run in runs.list(tmp_path)] == [teacher_run]


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        (["--split", "train"], {"train": 100}),
        (["--split", "test"], {"test": 360}),
        (["--holdout", 30], {"train": 100, "valid": 30, "test": 360}),
        (["--holdout", 30, "--split", "valid"], {"valid": 30}),
        # 1437 images less 146 of a 3 and 146 of a 5
        (["--without-classes", "3,5", "--subset", 0, "--split", "train"], {"train": 1145}),
    ],
)
def test_the_splits_and_cuts_are_those_asked_for(teacher_run, tmp_path, capsys, options, counts):
    command = ("cache", teacher_run, "--views", 1, "--runs", tmp_path, *options)
    _, facts, _ = distill(capsys, *command)
    assert {name: table["entries"] for name, table in facts["tables"].items()} == counts


@pytest.mark.parametrize("batch_size", [None, 32])
def test_the_batch_size_leads_to_no_other_table(teacher_run, tmp_path, capsys, batch_size):
    """The student takes that of the table; only asking for two sizes by name is an error."""
    command = ("cache", teacher_run, "--views", 1, "--split", "train", "--runs", tmp_path)
    sized = [] if batch_size is None else ["--batch-size", batch_size]
    _, facts, _ = distill(capsys, *command, *sized)
    loader = students_loader(views_per_image=1)
    table = students_table(teacher_run, tmp_path, loader)
    assert (str(table.folder), table.count()) == (facts["tables"]["train"]["table"], 100)
    assert table.entries.execution.batch_size == (batch_size or 64)
    table.release()
    status, _, said = distill(capsys, *command, "--batch-size", 128)
    assert status != 0
    assert f"batch size of the fills: table {batch_size or 64}, asked 128" in said


def test_it_says_with_which_options_a_student_finds_the_tables(teacher_run, tmp_path, capsys):
    command = ("cache", teacher_run, "--views", 2, "--split", "test", "--runs", tmp_path)
    _, facts, _ = distill(capsys, *command, "--precision", "bf16", "--without-classes", "3")
    assert facts["student"] == (
        f"--teacher {teacher_run} --set teacher_table=auto --precision bf16 "
        f"--set views_per_image=2 --set 'without_classes=[3]' --set subset=100 --runs {tmp_path}"
    )
    # Tables with layers are others, and no experiment asks for them.
    _, facts, said = distill(capsys, *command, "--layer", "fc")
    assert facts["student"] is None
    assert "finds them where the losses look at these very layers" in said


def test_another_device_than_the_students_is_said(teacher_run, tmp_path, capsys, monkeypatch):
    """The device is in a table's fingerprint: a student looks for the one of its own."""
    from distillation import precision
    from distillation.table import compute

    names = {"cpu": "cpu AVX512", "meta": "cuda Some Board"}
    monkeypatch.setattr(precision, "usual_device", lambda: "meta")
    monkeypatch.setattr(compute, "device_name", lambda device: names[device.type])
    command = ("cache", teacher_run, "--views", 1, "--split", "test", "--runs", tmp_path)
    _, facts, said = distill(capsys, *command, "--device", "cpu")
    assert "entries are of the device cpu AVX512; a student here runs on meta" in said
    assert "--set device=cpu" in facts["student"]


def test_experiments_find_what_the_command_filled(tmp_path, capsys):
    """Teacher, tables and student by their commands alone: nothing is left to compute."""
    pytest.importorskip("labml")
    from experiments.digits import distill as student
    from experiments.digits import large

    short = ("--epochs", "1", "--subset", "640", "--runs", str(tmp_path))
    large.main([*short])
    uuid = capsys.readouterr().out.splitlines()[-1].split()[-1]
    _, facts, _ = distill(capsys, "cache", uuid, "--views", 3, "--runs", tmp_path)
    options = shlex.split(facts["student"])
    student.main([*options, "--epochs", "1", "--allow-weak-teacher"])
    said = capsys.readouterr().out.splitlines()
    tables = facts["tables"]
    for split, count in (("train", 1920), ("test", 360)):
        folder = tables[split]["table"]
        assert (
            f"teacher table: {count:,} of {count:,} entries present ({folder}) for {split}" in said
        )
    made = {str(path) for path in (tmp_path / ".tables").iterdir()}
    assert made == {table["table"] for table in tables.values()}


def test_stopped_and_started_again_it_goes_on(teacher_run, tmp_path, capsys):
    command = ("cache", teacher_run, "--views", 2, "--runs", tmp_path)
    _, facts, _ = distill(capsys, *command, "--limit", 64)
    assert (facts["entries"], facts["computed"]) == (64, 64)
    _, facts, said = distill(capsys, *command)
    assert said.startswith("train: 64 of 200 entries")
    assert (facts["entries"], facts["computed"]) == (560, 496)
    _, facts, _ = distill(capsys, *command)
    assert facts["computed"] == 0


def test_damage_is_reported_and_repaired(teacher_run, tmp_path, capsys):
    command = ("cache", teacher_run, "--views", 1, "--folder", tmp_path / "t", "--runs", tmp_path)
    distill(capsys, *command)
    entries = tmp_path / "t" / "train" / "entries.f16"
    content = entries.read_bytes()
    entries.write_bytes(b"".join((content[:8], b"\x00" * 4000, content[4008:])))
    _, facts, _ = distill(capsys, *command, "--repair")
    assert 0 < facts["damaged"] == facts["computed"] < 100
    assert entries.read_bytes() == content


def test_layers_are_announced_with_their_size_before_the_first_entry(teacher_run, tmp_path, capsys):
    command = ("cache", teacher_run, "--views", 1, "--split", "train", "--runs", tmp_path)
    _, facts, said = distill(capsys, *command, "--layer", "fc")
    size = said.index("fc [10]: 18,000 bytes")  # 100 samples × 9 views × 10 × 2 bytes
    assert size < said.index("64 of 100 entries" if "64 of 100" in said else "100 of 100 entries")
    assert facts["entries"] == 100


def test_by_option_a_folder_of_something_else_gets_a_table_beside(teacher_run, tmp_path, capsys):
    command = ("cache", teacher_run, "--views", 1, "--folder", tmp_path / "t", "--runs", tmp_path)
    distill(capsys, *command, "--split", "test")
    other = (*command, "--split", "test", "--precision", "bf16")
    status, _, said = distill(capsys, *other)
    assert status != 0
    assert "made for other precision" in said
    status, facts, _ = distill(capsys, *other, "--on-mismatch", "new")
    assert (status, facts["computed"]) == (0, 360)
    assert facts["tables"]["test"]["table"].startswith(f"{tmp_path / 't' / 'test'}-")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "10"], "views=10: an image has 9"),
        (["--split", "tset"], "unknown split 'tset'; did you mean 'test'"),
        (["--split", "valid"], "no images are held out"),
        (["--without-classes", "three"], "--without-classes three: give numbers"),
        (["--without-classes", "12"], "unknown class"),
        (["--worker", "2/2"], "--worker 2/2: give I/N"),
        (["--precision", "bf61"], "unknown precision 'bf61'; did you mean 'bf16'"),
        (["--layer", "fcc"], "did you mean 'fc'"),
        (["--dataset", "digts"], "unknown data set 'digts'; did you mean 'digits'"),
        (["--data", "somewhere"], "--data is where CIFAR-10 lies"),
    ],
)
def test_wrong_options_are_named_before_anything_is_written(
    teacher_run, tmp_path, capsys, options, message
):
    status, _, said = distill(capsys, "cache", teacher_run, "--runs", tmp_path, *options)
    assert status == 2
    assert message in said
    assert not (tmp_path / ".tables").exists()


def test_a_run_that_does_not_say_its_data_is_refused(tmp_path, capsys):
    with runs.create("other", root=tmp_path) as recorder:
        recorder.log(1, 0, {"loss.train": 1.0})
    status, _, said = distill(capsys, "cache", recorder.uuid, "--runs", tmp_path)
    assert status == 2
    assert "does not say which images it was trained on" in said
    assert "Say it with --dataset" in said


def test_the_teacher_of_a_trainer_is_cached_once_its_data_are_named(tmp_path, capsys):
    train, test = digits()
    plain = Trainer("digits_teacher", ckpt_root_dir=tmp_path)
    plain.train(
        models.get("digits_large_model", num_classes=10),
        {"max_epochs": 1, "initial_lr": 0.05, "silent_mode": True},
        train_loader=TensorLoader(train.subset(64, seed=0), 64),
    )
    command = ("cache", plain.run.uuid, "--runs", tmp_path, "--dataset", "digits", "--views", 1)
    status, facts, _ = distill(capsys, *command, "--subset", 100, "--contiguous")
    assert (status, facts["computed"]) == (0, 460)
    loaders = {
        "train": TensorLoader(
            train.subset(100, seed=0),
            50,
            views=CropFlip(padding=1, size=8, flip=False),
            views_per_image=1,
        ),
        "valid": TensorLoader(test, 360, shuffle=False),
    }
    found = table_sources(runs.find(plain.run.uuid, tmp_path), "auto", loaders, root=tmp_path)
    assert {name: source.present() for name, source in found.items()} == {
        "train": (100, 100),
        "valid": (360, 360),
    }
    # An experiment's images, channels last, have others
    status, facts, _ = distill(capsys, *command, "--subset", 100, "--channels-last")
    assert facts["computed"] == 460


def test_the_views_are_those_the_experiments_train_with():
    """`distill cache` and the experiments each name the augmentation; they must agree."""
    pytest.importorskip("labml")
    import inspect

    from experiments import cifar10
    from experiments import digits as digits_experiment

    for module, name in ((cifar10, "cifar10"), (digits_experiment, "digits")):
        views = VIEWS[name]
        call = f"CropFlip(padding={views.padding}, size={views.size}, flip={views.flip})"
        assert call in inspect.getsource(module)


def test_the_default_is_what_the_run_recorded(teacher_run, tmp_path, capsys):
    from distillation.table.recorded import recorded_execution, recorded_inputs

    run, cpu = runs.find(teacher_run, tmp_path), torch.device("cpu")
    assert recorded_execution(run, None, None, cpu) == Execution(channels_last=True)
    # As for a student: there is no fp16 on a CPU
    assert recorded_execution(run, "fp16", 64, cpu).precision == "bf16"
    assert recorded_execution(run, "auto", 64, cpu).precision == resolve_precision("auto", cpu)
    inputs = recorded_inputs(run)
    assert isinstance(inputs["train"], ImageInputs)
    assert (inputs["train"].samples, inputs["train"].views) == (100, 9)
    assert (inputs["test"].samples, inputs["test"].views) == (360, 1)
    assert recorded_inputs(run, subset=0)["train"].samples == 1437
    held = recorded_inputs(run, subset=0, holdout=37)
    assert (held["train"].samples, held["valid"].samples) == (1400, 37)
