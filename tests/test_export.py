"""A trained student as a file for other programs."""

from __future__ import annotations

import copy
import json

import onnxruntime
import pytest
import torch
from torch import nn

from distillation import DistillationModel, KDModule, convert, models, runs
from distillation.checkpoint import fingerprint, load_tensors, read_metadata
from distillation.cli import main
from distillation.errors import CheckpointError, ConfigError
from distillation.exporting import export_model
from distillation.losses import MGDLoss
from distillation.references import Reference, build, noted

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def student():
    """A student whose batch-norm statistics are not the first ones; left in training mode."""
    torch.manual_seed(0)
    model = models.get("digits_small_model")
    for _ in range(3):
        model(torch.randn(16, *SHAPE))
    return model


def expected(student, images):
    student.eval()
    with torch.no_grad():
        output = student(images)
    student.train()
    return output


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_pt2_gives_the_students_outputs_for_any_batch(student, tmp_path, batch):
    exported = export_model(student, tmp_path / "student.pt2", SHAPE)
    images = torch.randn(batch, *SHAPE)
    program = torch.export.load(tmp_path / "student.pt2").module()
    torch.testing.assert_close(program(images), expected(student, images))
    assert exported.max_abs_difference <= 1e-5
    assert exported.bytes == (tmp_path / "student.pt2").stat().st_size


def test_onnx_gives_the_students_outputs_for_any_batch(student, tmp_path):
    exported = export_model(student, tmp_path / "student.onnx", SHAPE)
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    for batch in (1, 4):
        images = torch.randn(batch, *SHAPE)
        (output,) = session.run(None, {"input": images.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(output), expected(student, images), rtol=1e-4, atol=1e-4
        )
    assert 0 < exported.max_abs_difference <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["student.onnx"]


def test_safetensors_hold_the_weights_and_how_the_model_is_made(student, tmp_path):
    path = tmp_path / "student.safetensors"
    assert export_model(student, path, SHAPE).max_abs_difference == 0
    made = build(Reference.from_json(json.loads(read_metadata(path)["model"])))
    made.load_state_dict(load_tensors(path))
    images = torch.randn(3, *SHAPE)
    assert torch.equal(expected(made, images), expected(student, images))


def test_the_student_is_not_changed(student, tmp_path):
    student.train()
    before = {name: t.clone() for name, t in student.state_dict().items()}
    export_model(student, tmp_path / "student.pt2", SHAPE)
    assert student.training
    assert noted(student) is not None
    assert all(torch.equal(before[name], t) for name, t in student.state_dict().items())


def test_of_a_converted_model_the_student_is_exported(student, tmp_path):
    converted, path = copy.deepcopy(student), tmp_path / "student.safetensors"
    teacher = models.get("digits_large_model").double()
    before = fingerprint(teacher)
    convert(converted, teacher_model=teacher, criterion={("layers", "layers"): MGDLoss(32, 128)})
    export_model(converted, path, SHAPE)
    assert load_tensors(path).keys() == student.state_dict().keys()
    assert isinstance(converted, DistillationModel)
    assert fingerprint(teacher) == before and teacher.fc.weight.dtype == torch.float64


def test_a_pair_is_not_exported(student, tmp_path):
    net = KDModule(student=copy.deepcopy(student), teacher=models.get("digits_large_model"))
    with pytest.raises(ConfigError, match=r"give its student, net\.student"):
        export_model(net, tmp_path / "student.pt2", SHAPE)


def test_half_precision_weights_are_exported_in_float32(tmp_path):
    model = models.get("digits_small_model").half()
    export_model(model, tmp_path / "student.pt2", SHAPE)
    assert model.fc.weight.dtype == torch.float16


def test_outputs_that_differ_too_much_are_an_error_and_nothing_is_kept(student, tmp_path):
    path = tmp_path / "student.onnx"
    path.write_text("older")
    with pytest.raises(CheckpointError, match=r"differs from the model by .* more than 1e-12"):
        export_model(student, path, SHAPE, tolerance=1e-12)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_are_not_numbers_are_an_error(tmp_path):
    model = models.get("digits_small_model")
    nn.init.constant_(model.fc.bias, float("nan"))
    with pytest.raises(CheckpointError, match="differs from the model by nan"):
        export_model(model, tmp_path / "student.safetensors", SHAPE)


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("student.onx", SHAPE, "format to export to '.onx'; did you mean '.onnx'"),
        ("student.pt2", (3, 8, 8), r"cannot be run on inputs of shape \(3, 8, 8\)"),
        ("nowhere/student.pt2", SHAPE, "there is no folder"),
    ],
)
def test_what_does_not_fit_is_named(student, tmp_path, name, shape, match):
    with pytest.raises(ConfigError, match=match):
        export_model(student, tmp_path / name, shape)


class Branching(nn.Module):
    """Its path depends on its inputs, which no export can follow."""

    def forward(self, x):
        return x + 1 if x.sum().item() > 0 else x - 1


def test_a_model_that_cannot_be_traced_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="Branching cannot be exported to pt2"):
        export_model(Branching(), tmp_path / "model.pt2", (2,))


# distill export


@pytest.fixture
def run(student, tmp_path):
    with runs.create("digits", root=tmp_path, model=noted(student).to_json()) as recorder:
        recorder.update(facts={"input_shape": list(SHAPE)})
        recorder.save_checkpoint(64, {"model": student.state_dict()}, {})
    return recorder.uuid


def distill(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    told = capsys.readouterr()
    assert (end.value.code or 0) == code, told
    return told


@pytest.mark.parametrize("ending", ["pt2", "safetensors"])
def test_the_command_exports_a_run_and_prints_the_difference(run, tmp_path, capsys, ending):
    path = tmp_path / f"student.{ending}"
    told = distill(capsys, "export", run[:8], "--to", str(path), "--runs", str(tmp_path))
    facts = dict(line.split("  ", 1) for line in told.out.splitlines())
    assert path.exists()
    assert float(facts["max abs difference"]) <= 1e-5
    assert facts["run"].strip() == run
    assert facts["step"].strip() == "64"


def test_the_command_gives_facts_as_json(run, tmp_path, capsys):
    path = tmp_path / "student.safetensors"
    line = ["export", f"{run}@64", "--to", str(path), "--runs", str(tmp_path), "--json"]
    facts = json.loads(distill(capsys, *line).out)
    assert facts["max_abs_difference"] == 0
    assert facts["format"] == "safetensors"
    assert facts["input_shape"] == [1, 8, 8]


def test_the_command_fails_above_the_tolerance(run, tmp_path, capsys):
    path = tmp_path / "student.onnx"
    line = ["export", run, "--to", str(path), "--runs", str(tmp_path), "--tolerance", "0"]
    told = distill(capsys, *line, code=2)
    assert "differs from the model" in told.err
    assert not path.exists()


def test_a_run_without_a_shape_asks_for_it(student, tmp_path, capsys):
    with runs.create("digits", root=tmp_path, model=noted(student).to_json()) as recorder:
        recorder.save_checkpoint(64, {"model": student.state_dict()}, {})
    line = ["export", recorder.uuid, "--runs", str(tmp_path), "--to", str(tmp_path / "a.pt2")]
    assert "give --shape C,H,W" in distill(capsys, *line, code=2).err
    assert "--shape takes numbers" in distill(capsys, *line, "--shape", "1x8", code=2).err
    assert "pt2" in distill(capsys, *line, "--shape", "1,8,8").out
