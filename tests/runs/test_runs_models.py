"""From a run back to its model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distillation import runs
from distillation.errors import CheckpointError, RunError, TrustError
from distillation.models.digits import DigitsSmallModel
from distillation.references import Reference


def test_a_model_is_rebuilt_from_its_run(tmp_path):
    model = DigitsSmallModel()
    with runs.create("digits", root=tmp_path, model=Reference.of(DigitsSmallModel)) as recorder:
        recorder.save_checkpoint(10, {"model": model.state_dict()})
    loaded = runs.find(f"{recorder.uuid}@10", tmp_path).load_model()
    assert not loaded.training
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded(images), model.eval()(images))


def test_the_moving_average_is_taken_where_there_is_one(tmp_path):
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    weights = {"model": model.state_dict(), "ema": average.state_dict()}
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.save_checkpoint(10, weights)
    run = runs.find(recorder.uuid, tmp_path)
    assert torch.equal(run.load_model(model=nn.Linear(2, 2)).weight, average.weight)
    plain = run.load_model(model=nn.Linear(2, 2), weights="model")
    assert torch.equal(plain.weight, model.weight)
    with pytest.raises(RunError, match=r"unknown weights 'swa'. Valid: 'ema', 'model'"):
        run.load_model(model=nn.Linear(2, 2), weights="swa")


def test_a_model_whose_making_is_not_recorded_must_be_given(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.save_checkpoint(10, {"model": nn.Linear(2, 2).state_dict()})
    run = runs.find(recorder.uuid, tmp_path)
    with pytest.raises(RunError, match="did not record how its model is made"):
        run.load_model()
    with pytest.raises(CheckpointError, match=r"weight \(shape \(2, 2\), the model has \(3, 2\)\)"):
        run.load_model(model=nn.Linear(2, 3))


def test_a_run_file_cannot_make_anything_run(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.save_checkpoint(10, {"model": {}})
        recorder.update(model={"target": "os:mkdir", "args": [str(tmp_path / "x")], "kwargs": {}})
    with pytest.raises(TrustError, match="os:mkdir"):
        runs.find(recorder.uuid, tmp_path).load_model()
    assert not (tmp_path / "x").exists()
