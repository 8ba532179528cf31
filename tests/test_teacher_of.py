"""`as_teacher` and `rebuild`: every way to name a teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distillation import runs
from distillation.errors import ConfigError, RunError, TeacherError, TrustError
from distillation.references import Reference, note
from distillation.teacher import FrozenTeacher, TeacherSource, as_teacher, rebuild

HERE = __name__


class Net(nn.Module):
    """Batch norm and dropout: everything that behaves otherwise in training."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.body(x))


def make(width=4):
    return Net(width)


def makes_a_number():
    return 3


@pytest.fixture
def x():
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


# as_teacher -----------------------------------------------------------------------------------


def test_a_model_keeps_the_note_of_how_it_was_made():
    model = note(Net(), Reference.of(make))
    assert as_teacher(model).reference == Reference.of(make)
    assert as_teacher(Net()).reference is None
    assert as_teacher(model).run_uuid is None


@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        (make, Reference(f"{HERE}:make")),
        (Net, Reference(f"{HERE}:Net")),
        ((make,), Reference(f"{HERE}:make")),
        ((make, (5,)), Reference(f"{HERE}:make", (5,))),
        ((make, (), {"width": 5}), Reference(f"{HERE}:make", (), {"width": 5})),
        (Reference(f"{HERE}:Net", (5,)), Reference(f"{HERE}:Net", (5,))),
        (lambda: Net(), None),
    ],
)
def test_callables_are_called_and_written_down(spec, reference):
    teacher = as_teacher(spec)
    assert isinstance(teacher.module, Net)
    assert teacher.reference == reference


def test_a_source_is_shared():
    teacher = FrozenTeacher(Net())
    again = as_teacher(teacher)
    assert again is not teacher and again.module is teacher.module


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (3, ConfigError, "got int: 3"),
        ((), ConfigError, "callable, args"),
        ((Net(),), ConfigError, r"a tuple of \(Net\)\. An ensemble is given as a list"),
        ((make, 5), ConfigError, "tuple of args"),
        ((make, (), {}, 1), ConfigError, "tuple of args"),
        ((make, (), 3), ConfigError, "tuple of args"),
        ([], ConfigError, "at least one teacher"),
        (makes_a_number, TeacherError, "makes_a_number made a int"),
        (Reference(f"{HERE}:make"), TrustError, "trust="),
        ({"teacher": Net}, ConfigError, "got dict"),
    ],
)
def test_what_is_no_teacher_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        as_teacher(spec)


def test_mode_reaches_every_kind_of_teacher():
    for spec in (Net(), Net, (make, (5,)), Reference(f"{HERE}:Net")):
        assert as_teacher(spec, mode="follow").mode == "follow"
    ensemble = as_teacher([Net(), Net], mode="train")
    assert [source.mode for source in ensemble.sources] == ["train", "train"]
    with pytest.raises(ConfigError, match="teacher mode 'trian'"):
        as_teacher(Net(), mode="trian")
    with pytest.raises(ConfigError, match=r"takes an nn\.Module"):
        FrozenTeacher(Net)


def test_a_failing_member_gives_the_other_members_back():
    model = Net()
    with pytest.raises(TeacherError) as caught:
        as_teacher([model, makes_a_number])
    assert model.training, "while the error, and so its frames, are still held"
    assert caught.tb is not None


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run with two checkpoints of a model of this module."""
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path))
    model = Net()
    with runs.create("teachers", model=Reference.of(Net), keep=2) as recorder:
        for step in (10, 20):
            with torch.no_grad():
                model.head.bias.fill_(step)
            recorder.save_checkpoint(step, {"model": model.state_dict()}, {})
    return runs.find(recorder.uuid)


def test_a_run_is_found_by_uuid_prefix_and_step(run, x):
    for spec in (run.uuid, run.uuid[:8], run, f"{run.uuid}@20"):
        teacher = as_teacher(spec)
        assert teacher.module.head.bias[0] == 20
        assert (teacher.run_uuid, teacher.run_step) == (run.uuid, 20)
    assert as_teacher(f"{run.uuid[:8]}@10").module.head.bias[0] == 10
    assert as_teacher(run).describe() == {"kind": "run", "uuid": run.uuid, "step": 20}
    with pytest.raises(RunError):
        as_teacher("f" * 32)


def test_every_described_teacher_is_rebuilt_the_same(run, x):
    teacher = as_teacher([run, f"{run.uuid}@10", run], mode="follow")
    again = rebuild(teacher.describe(), mode="follow")
    assert again.fingerprint == teacher.fingerprint
    assert torch.equal(again(x), teacher(x))
    single = as_teacher((Net, (5,)))
    assert rebuild(single.describe()).module.head.in_features == 5
    assert FrozenTeacher(Net()).describe() is None
    assert as_teacher([Net(), Net]).describe() is None


def test_a_rebuilt_reference_obeys_the_rules_of_trust():
    description = as_teacher(make).describe()
    with pytest.raises(TrustError):
        rebuild(description)
    assert isinstance(rebuild(description, home_module=HERE).module, Net)
    assert isinstance(rebuild(description, trust=[HERE]).module, Net)


@pytest.mark.parametrize(
    "description",
    [
        *(None, {}, {"kind": "pickle"}, {"kind": "run"}, {"kind": "ensemble", "members": []}),
        {"kind": "ensemble", "members": [], "select": None, "colour": 1},
    ],
    ids=str,
)
def test_what_describes_no_teacher_is_refused(description):
    with pytest.raises(TeacherError, match="does not describe a teacher"):
        rebuild(description)


def test_other_sources_need_only_an_output_and_a_fingerprint(x):
    class Constant(TeacherSource):
        fingerprint = "0" * 64

        def __call__(self, *args, sample=None, view=None, **kwargs):
            return torch.zeros(len(sample), 2)

    source = as_teacher(Constant())
    assert source(sample=torch.arange(3)).shape == (3, 2)
    assert source.half() is source.to("cpu") is source.train_with() is copy.deepcopy(source)
    source.refuse_student(Net())
    source.release()
    assert source.module is None and source.describe() is None


def test_a_damaged_description_is_told_in_words():
    ensemble = as_teacher([make, make]).describe() | {"weights": ["abc", "def"]}
    for description in ({"kind": "run", "uuid": 5, "step": None}, ensemble):
        with pytest.raises(TeacherError, match="does not describe a teacher"):
            rebuild(description, trust=[make])
