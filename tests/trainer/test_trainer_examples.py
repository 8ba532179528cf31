"""SuperGradients' examples of training with knowledge distillation, as its pages have them.

Ours are the import lines, the data, the models, and the bodies that the pages leave open.
"""

import itertools

import torch
from torch import nn
from trainer_kit import loaders, make

from distillation import KDModule, KDOutput, KDTrainer, Trainer
from distillation.checkpoint import fingerprint


class Taps(nn.Module):
    """Five layers, whose outputs the example asks for; the inner ones are wider in a teacher."""

    def __init__(self, width):
        super().__init__()
        sizes = [64, width, 12, width, 12, 10]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x):
        return self.extract_intermediate_output(x, layer_ids=[-1])[0]

    def extract_intermediate_output(self, x, layer_ids):
        outputs, x = [], x.flatten(1)
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return [outputs[i] for i in layer_ids]

    extract_intermediate = extract_intermediate_output


# fmt: off
class MyKDModule(KDModule):
    ...  # noqa: PIE790
    def forward(self, x: torch.Tensor)->KDOutput:
        intermediate_output_student = self.student.extract_intermediate_output(x, layer_ids=[1, 3, -1])  # noqa: E501
        intermediate_output_teacher = self.teacher.extract_intermediate(x, layer_ids=[1, 3, -1])
        return KDOutput(student_output=intermediate_output_student, teacher_output=intermediate_output_teacher)  # noqa: E501

class MyKDLoss(torch.nn.Module):
    ...  # noqa: PIE790
    def forward(self, preds: KDOutput, target: torch.Tensor):
        # does something with the intermediate outputs
        student, teacher = preds.student_output, preds.teacher_output
        features = sum(nn.functional.mse_loss(s, t) for s, t in zip(student, teacher, strict=True))
        return features + nn.functional.cross_entropy(student[-1], target)


def test_the_customised_example_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path))
    kd_trainer = KDTrainer("my_customized_kd_experiment")
    train_dataloader, valid_dataloader = loaders()
    student_model = make(Taps, width=8)
    teacher_model = make(Taps, width=16, seed=1)
    before = fingerprint(teacher_model)
    kd_model = MyKDModule(student=student_model, teacher=teacher_model)
    train_params = {'loss': MyKDLoss(),
                    'max_epochs': 4, 'initial_lr': 0.05}

    kd_trainer.train(model=kd_model, training_params=train_params,
                     train_loader=train_dataloader, valid_loader=valid_dataloader)

    values = kd_trainer.run.curve("loss.train")[1]
    assert values[-1] < values[0]
    assert fingerprint(teacher_model) == before


def test_the_plain_example_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path))
    trainer = Trainer("my_experiment")
    train_dataloader, valid_dataloader = loaders()
    model = make()
    train_params = {'max_epochs': 2}
    trainer.train(model=model, training_params=train_params, train_loader=train_dataloader, valid_loader=valid_dataloader)  # noqa: E501
    assert trainer.run.status == "completed"


def test_the_example_with_a_teacher_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path))
    kd_trainer = KDTrainer("my_experiment")
    train_dataloader, valid_dataloader = loaders()
    student_model = make()
    teacher_model = make(width=32, seed=1)
    train_params = {'max_epochs': 2}
    kd_trainer.train(student=student_model, teacher=teacher_model, training_params=train_params, train_loader=train_dataloader, valid_loader=valid_dataloader)  # noqa: E501
    assert kd_trainer.run.status == "completed"
