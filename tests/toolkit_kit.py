"""Small models, real digits and short trainings for the toolkit's tests."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distillation import KnowledgeDistillationTraining
from distillation.data import digits


@functools.cache
def datasets():
    """64 training and 40 test images of the digits, as vectors of 64 grey levels in 0 … 1."""
    return tuple(
        TensorDataset(part.images.flatten(1).float() / 255, part.labels)
        for part in (digits()[0].subset(64, seed=0), digits()[1].subset(40, seed=0))
    )


def train_loader(batch_size=16, **options):
    return DataLoader(datasets()[0], batch_size=batch_size, shuffle=True, **options)


def valid_loader():
    return DataLoader(datasets()[1], batch_size=20)


def net(width=16, seed=0):
    """Two layers, with dropout between them."""
    torch.manual_seed(seed)
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10)]
    return nn.Sequential(*layers)


class Accuracy:
    """An inference pipeline that remembers how it was called."""

    def __init__(self):
        self.calls = []

    def run_inference_pipeline(self, model, data_loader):
        self.calls.append((model.training, torch.is_grad_enabled(), len(data_loader.dataset)))
        hits = sum((model(x).argmax(1) == y).sum().item() for x, y in data_loader)
        return {"inference_result": hits / len(data_loader.dataset)}


def training(root, student=None, teacher=None, **options):
    """A training of two epochs, not yet started."""
    given = {
        "train_data_loader": train_loader(),
        "student_model": student or net(),
        "teacher_model": teacher or net(32, seed=1),
        "num_gpu_used": 0,
        "max_epoch": 2,
        "learning_rate": 0.01,
        "ckpt_root_dir": root,
        "silent_mode": True,
    }
    return KnowledgeDistillationTraining(**{**given, **options})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def after(root, **options):
    """The student's weights after a training."""
    started = training(root, **options)
    started.start_kd_training()
    return weights(started.get_student_model())


def rates(root, steps_per_epoch=4, **options):
    """The learning rate of each epoch's last row in the record."""
    started = training(root, **options)
    started.start_kd_training()
    return started.run.curve("learning_rate")[1]
