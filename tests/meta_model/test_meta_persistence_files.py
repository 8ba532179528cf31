"""Files that `restore` refuses: made by others, damaged, or asking for more than they may."""

from __future__ import annotations

import sys

import pytest
import torch
from meta_cases import Net, trained

from distillation import LogitsDistillationLoss, StaticLossBalancer, restore, save
from distillation.errors import CheckpointError, DistillationError, TrustError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def rewritten(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    "target",
    ["os:system", "builtins:exec", "subprocess:Popen", "torch:save", "shutil:rmtree", "x.y:z"],
)
def test_a_file_cannot_have_anything_else_called(path, target, tmp_path):
    save(trained(), path)
    crime = str(tmp_path / "crime")
    call = {"target": target, "args": [f"touch {crime}"], "kwargs": {}}

    def teacher(state):
        state["distillation"]["teacher"]["description"] = {"kind": "reference", **call}

    def loss(state):
        state["distillation"]["criterion"]["losses"][0]["reference"] = call

    for change in (teacher, loss):
        save(trained(), path)
        rewritten(path, change)
        with pytest.raises(TrustError):
            restore(Net(), path)
    assert not (tmp_path / "crime").exists()


def test_a_module_is_not_imported_because_a_file_names_it(path, tmp_path, monkeypatch):
    (tmp_path / "unknown_teachers.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    save(trained(), path)

    def change(state):
        about = state["distillation"]["teacher"]["description"]
        about["target"] = "unknown_teachers:make"

    rewritten(path, change)
    with pytest.raises(TrustError, match="unknown_teachers"):
        restore(Net(), path)
    assert "unknown_teachers" not in sys.modules


def test_trust_lets_a_function_of_another_module_in(path, tmp_path, monkeypatch):
    (tmp_path / "meta_other_teachers.py").write_text(
        "from meta_cases import make_teacher\n\ndef wide():\n    return make_teacher(12)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import meta_other_teachers

    save(
        trained(
            teacher=meta_other_teachers.wide,
            criterion=LogitsDistillationLoss(),
            loss_balancer=StaticLossBalancer(0.5),
        ),
        path,
    )
    with pytest.raises(TrustError, match="trust="):
        restore(Net(), path)
    for trust in (("meta_other_teachers:wide",), "meta_other_teachers", meta_other_teachers.wide):
        assert restore(Net(), path, trust=trust).teacher_model.width == 12
    with pytest.raises(TrustError, match="trust takes module names"):
        restore(Net(), path, trust=5)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("format"),
        lambda s: s.update(version=99),
        lambda s: s.pop("student"),
        lambda s: s["distillation"].pop("teacher"),
        lambda s: s["distillation"].update(criterion=None),
        lambda s: s["distillation"]["criterion"]["pairs"].append("head"),
        lambda s: s["distillation"]["criterion"]["losses"].pop(),
        lambda s: s["distillation"]["criterion"]["first"].reverse(),
        lambda s: s["distillation"].update(mode="export_student"),
        lambda s: s["distillation"]["criterion"]["losses"][0]["parts"].update({"9": {}}),
        lambda s: s["distillation"]["criterion"]["losses"][0].update(parts=[1]),
        lambda s: s["distillation"]["criterion"]["losses"][0]["reference"]["kwargs"].update(x=1),
    ],
)
def test_a_file_of_another_making_is_refused(path, change):
    save(trained(), path)
    rewritten(path, change)
    with pytest.raises(DistillationError):
        restore(Net(), path)


def test_a_broken_file_is_named(path):
    path.write_bytes(b"not a file of ours")
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        restore(Net(), path)
