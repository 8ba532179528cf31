"""Weights for a new model: `models.get(…, checkpoint_path=…)`."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distillation import models, runs
from distillation.checkpoint import write_checkpoint
from distillation.errors import CheckpointError, RunError
from distillation.models.weights import load_into
from distillation.references import noted


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return models.get("digits_small_model")


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(n == m and torch.equal(a, b) for (n, a), (m, b) in pairs)


def test_a_plain_state_dict_is_loaded_by_name(trained, tmp_path):
    torch.save(dict(reversed(trained.state_dict().items())), tmp_path / "weights.pt")
    assert same(models.get("digits_small_model", checkpoint_path=tmp_path / "weights.pt"), trained)


def test_tensors_that_fit_by_order_alone_are_refused(trained, tmp_path):
    state = {f"block{i}": tensor for i, tensor in enumerate(trained.state_dict().values())}
    torch.save(state, tmp_path / "weights.pt")
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"does not fit|nothing that fits"):
            models.get(
                "digits_small_model", checkpoint_path=tmp_path / "weights.pt", strict_load=strict
            )


@pytest.mark.parametrize("key", ["net", "state_dict", "model_state_dict", "model"])
def test_a_state_dict_under_a_usual_key_is_found(trained, tmp_path, key):
    torch.save({key: trained.state_dict(), "epoch": 3}, tmp_path / "ckpt_best.pth")
    path = tmp_path / "ckpt_best.pth"
    assert same(models.get("digits_small_model", checkpoint_path=path), trained)


def test_the_student_is_taken_from_the_file_of_a_pair(trained, tmp_path):
    state = {f"student.{n}": t for n, t in trained.state_dict().items()}
    state |= {f"teacher.{n}": t for n, t in models.get("digits_large_model").state_dict().items()}
    torch.save({"net": state}, tmp_path / "ckpt_latest.pth")
    path = tmp_path / "ckpt_latest.pth"
    assert same(models.get("digits_small_model", checkpoint_path=path), trained)


def test_safetensors_are_loaded(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    path = tmp_path / "weights.safetensors"
    assert same(models.get("digits_small_model", checkpoint_path=str(path)), trained)


def test_a_prefix_of_distributed_training_is_taken_off(trained, tmp_path):
    torch.save({f"module.{n}": t for n, t in trained.state_dict().items()}, tmp_path / "ddp.pt")
    assert same(models.get("digits_small_model", checkpoint_path=tmp_path / "ddp.pt"), trained)


def test_the_average_of_a_checkpoint_folder_is_taken(trained, tmp_path):
    last = copy.deepcopy(trained)
    torch.nn.init.zeros_(last.fc.weight)
    weights = {"model": last.state_dict(), "ema": trained.state_dict()}
    write_checkpoint(tmp_path / "100", weights, {}, {})
    assert same(models.get("digits_small_model", checkpoint_path=tmp_path / "100"), trained)


def test_a_run_is_a_checkpoint(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path))
    with runs.create("digits", model=noted(trained).to_json()) as recorder:
        recorder.save_checkpoint(64, {"model": trained.state_dict()}, {})
    by_uuid = models.get("digits_small_model", checkpoint_path=recorder.uuid)
    by_step = models.get("digits_small_model", checkpoint_path=f"{recorder.uuid[:8]}@64")
    by_folder = models.get("digits_small_model", checkpoint_path=recorder.path)
    assert same(by_uuid, trained)
    assert same(by_step, trained)
    assert same(by_folder, trained)


def test_an_unknown_run_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path))
    with pytest.raises(RunError, match="unknown run 'abcdef12'"):
        models.get("digits_small_model", checkpoint_path="abcdef12")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere\.pth"):
        models.get("digits_small_model", checkpoint_path=tmp_path / "nowhere.pth")


def test_another_number_of_classes_is_named(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="It is of 10 classes, the model has 4: give num_cl"):
        models.get("digits_small_model", num_classes=4, checkpoint_path=tmp_path / "weights.pt")


def test_another_architecture_lists_the_names(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="does not fit DigitsLargeModel: missing layers"):
        models.get("digits_large_model", checkpoint_path=tmp_path / "weights.pt")


def test_not_strict_loads_what_fits_and_names_the_rest(trained, tmp_path):
    torch.save({**trained.state_dict(), "extra": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.warns(UserWarning) as caught:
        model = models.get(
            "digits_small_model",
            num_classes=4,
            checkpoint_path=tmp_path / "weights.pt",
            strict_load=False,
        )
    told = " ".join(str(w.message) for w in caught)
    assert "fc.weight, fc.bias keep their first values" in told
    assert "extra are not used" in told
    assert torch.equal(model.layers[0].weight, trained.layers[0].weight)


def test_not_strict_still_refuses_what_has_nothing_in_common(tmp_path):
    torch.save({"other": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="nothing that fits"):
        models.get("resnet20", checkpoint_path=tmp_path / "weights.pt", strict_load=False)


class Payload:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"net": Payload()}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="refused"):
        models.get("resnet20", checkpoint_path=tmp_path / "weights.pt")
    assert capsys.readouterr().out == ""


def test_a_file_without_weights_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"holds no state dict but a dict with \['epoch'\]"):
        models.get("resnet20", checkpoint_path=tmp_path / "weights.pt")


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.head = nn.Linear(2, 2), nn.Linear(2, 1)


def test_a_model_with_a_part_called_student_loads_its_own_file(tmp_path):
    one, other = Pair(), Pair()
    torch.save(one.state_dict(), tmp_path / "weights.pt")
    assert same(load_into(other, tmp_path / "weights.pt"), one)
