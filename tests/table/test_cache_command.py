"""`distill cache`: fill a teacher's table from its recorded run, stop, go on."""

from __future__ import annotations

import json

import pytest
import torch
from table_case import make_teacher

from distillation import cli, runs
from distillation.data import CropFlip, TensorLoader, digits
from distillation.models.digits import DigitsLargeModel
from distillation.references import Reference
from distillation.table import Execution, ImageInputs
from distillation.table.attach import with_table
from distillation.table.recorded import VIEWS


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


def test_a_table_filled_by_the_command_is_the_one_that_auto_finds(teacher_run, tmp_path, capsys):
    status, facts, said = distill(
        capsys, "cache", teacher_run[:8], "--views", 4, "--runs", tmp_path
    )
    assert status == 0
    assert (facts["entries"], facts["computed"], facts["teacher"]) == (400, 400, teacher_run)
    assert said.splitlines()[0] == "0 of 400 entries"
    assert said.splitlines()[-1].startswith("400 of 400 entries, ")
    assert "\x1b" not in said

    # The student of an experiment: the same images, views and execution.
    train = digits()[0].subset(100, seed=0)
    loader = TensorLoader(
        train,
        32,
        views=CropFlip(padding=1, size=8, flip=False),
        views_per_image=4,
        seed=5,
        channels_last=True,
    )
    model = runs.find(teacher_run, tmp_path).load_model().to(memory_format=torch.channels_last)
    execution = Execution(channels_last=True)
    table = with_table(model, "auto", loader, root=tmp_path, execution=execution)
    for epoch in range(3):
        for batch in loader.batches(epoch):
            table(batch.images, sample=batch.sample, view=batch.view)
    assert (table.hits, table.misses) == (300, 0)
    assert str(table.folder) == facts["table"]
    table.release()
    # The run store does not take the tables for an experiment.
    assert [run.uuid for run in runs.list(tmp_path)] == [teacher_run]


def test_stopped_and_started_again_it_goes_on(teacher_run, tmp_path, capsys):
    command = ("cache", teacher_run, "--views", 2, "--runs", tmp_path)
    _, facts, _ = distill(capsys, *command, "--limit", 64)
    assert (facts["entries"], facts["computed"]) == (64, 64)
    _, facts, said = distill(capsys, *command)
    assert said.startswith("64 of 200 entries")
    assert (facts["entries"], facts["computed"]) == (200, 136)
    _, facts, _ = distill(capsys, *command)
    assert facts["computed"] == 0


def test_damage_is_reported_and_repaired(teacher_run, tmp_path, capsys):
    command = ("cache", teacher_run, "--views", 1, "--folder", tmp_path / "t", "--runs", tmp_path)
    distill(capsys, *command)
    entries = tmp_path / "t" / "entries.f16"
    content = entries.read_bytes()
    entries.write_bytes(b"".join((content[:8], b"\x00" * 4000, content[4008:])))
    _, facts, _ = distill(capsys, *command, "--repair")
    assert 0 < facts["damaged"] == facts["computed"] < 100
    assert entries.read_bytes() == content


def test_layers_are_announced_with_their_size_before_the_first_entry(teacher_run, tmp_path, capsys):
    _, facts, said = distill(
        capsys, "cache", teacher_run, "--views", 1, "--layer", "fc", "--runs", tmp_path
    )
    size = said.index("fc [10]: 18,000 bytes")  # 100 samples × 9 views × 10 × 2 bytes
    assert size < said.index("64 of 100 entries" if "64 of 100" in said else "100 of 100 entries")
    assert facts["entries"] == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "10"], "views=10: an image has 9"),
        (["--worker", "2/2"], "--worker 2/2: give I/N"),
        (["--precision", "bf61"], "unknown precision 'bf61'; did you mean 'bf16'"),
        (["--layer", "fcc"], "did you mean 'fc'"),
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

    run = runs.find(teacher_run, tmp_path)
    assert recorded_execution(run, None, 64) == Execution(channels_last=True)
    inputs = recorded_inputs(run)
    assert isinstance(inputs, ImageInputs)
    assert (inputs.samples, inputs.views) == (100, 9)
    assert recorded_inputs(run, subset=0).samples == 1437
    assert recorded_inputs(run, subset=0, holdout=37).samples == 1400
