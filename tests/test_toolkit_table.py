"""The toolkit's `teacher_table`: the option of the other doors, on the same tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distillation import KnowledgeDistillationTraining
from distillation.data import TensorLoader, digits
from distillation.errors import ConfigError
from distillation.table import ImageInputs, TeacherTable

IMAGES = digits()[0].subset(64, seed=0)


class Net(nn.Module):
    calls = 0

    def __init__(self, width=16, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, x):
        type(self).calls += 1
        return self.layers(x)


class Teacher(Net):
    calls = 0


class ByContract(Net):
    """A model of the toolkit's dict contract."""

    def forward(self, x, y, temperature):
        return {"logits": self.layers(x) / temperature}


def train(root, student=None, teacher=None, *, loader=None, **options):
    Teacher.calls = 0
    training = KnowledgeDistillationTraining(
        train_data_loader=loader or TensorLoader(IMAGES, 16),
        student_model=student or Net(),
        teacher_model=teacher or Teacher(32, seed=1),
        num_gpu_used=0,
        max_epoch=2,
        temperature=4.0,
        ckpt_root_dir=root,
        silent_mode=True,
        **options,
    )
    training.start_kd_training()
    state = training.get_student_model().state_dict().values()
    return torch.cat([tensor.flatten() for tensor in state]), Teacher.calls


@pytest.mark.parametrize("how", ["auto", "folder"])
@pytest.mark.parametrize("kind", [Net, ByContract])
def test_the_second_training_finds_the_teachers_outputs(tmp_path, how, kind):
    table = "auto" if how == "auto" else str(tmp_path / "table")
    online, _ = train(tmp_path, kind())
    cold, first = train(tmp_path, kind(), teacher_table=table)
    warm, second = train(tmp_path, kind(), teacher_table=table)
    assert first > second == 1  # opening compares two entries with the teacher
    assert torch.equal(cold, warm)
    assert torch.allclose(warm, online, atol=1e-3)


def test_a_table_made_by_hand(tmp_path):
    teacher = Teacher(32, seed=1)
    inputs = ImageInputs.of(TensorLoader(IMAGES, 16))
    with TeacherTable(teacher, tmp_path / "table", inputs) as table:
        table.fill()
        _, calls = train(tmp_path, teacher=teacher, teacher_table=table)
    assert calls == 0


def test_what_has_no_table_is_told(tmp_path):
    with pytest.raises(ConfigError, match="a teacher of the dict contract returns a dict"):
        train(tmp_path, teacher=ByContract(32), teacher_table="auto")
    with pytest.raises(ConfigError, match="keys=False"):
        train(tmp_path, loader=TensorLoader(IMAGES, 16, keys=False), teacher_table="auto")
    with pytest.raises(ConfigError, match="teacher_table' is True"):
        train(tmp_path, teacher_table=True)
