"""Small models, real digits and short trainings for the trainer's tests."""

from __future__ import annotations

import functools

import torch
from torch import nn

from distillation.data import TensorLoader, digits
from distillation.trainer import Callback, KDTrainer, Trainer


def effect_of(*names):
    """Marks a test that shows the observable effect of these training parameters."""

    def mark(test):
        test.effects = names
        return test

    return mark


@functools.cache
def images():
    """128 training and 64 test images of the digits."""
    train, test = digits()
    return train.subset(128, seed=0), test.subset(64, seed=0)


def loaders(batch_size=32, **options):
    """Two batches… of the default size: four batches an epoch, one validation batch of 64."""
    train, test = images()
    return (
        TensorLoader(train, batch_size, **options),
        TensorLoader(test, 64, shuffle=False),
    )


class Net(nn.Module):
    """Two layers over the 64 pixels."""

    def __init__(self, width=16, classes=10):
        super().__init__()
        self.features = nn.Linear(64, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        return self.classifier(torch.relu(self.features(x.flatten(1))))


class NormNet(nn.Module):
    """A convolution, batch norm and dropout."""

    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.classifier = nn.Linear(width * 64, 10)

    def forward(self, x):
        return self.classifier(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


def make(kind=Net, seed=0, **options):
    """A model with weights of its own seed."""
    torch.manual_seed(seed)
    return kind(**options)


def trained(root, net=None, *, valid=True, loader=None, **params):
    """A Trainer after a short training."""
    train, test = loaders()
    trainer = Trainer("plain", root)
    params = {"max_epochs": 1, "initial_lr": 0.1, "silent_mode": True, **params}
    trainer.train(net or make(), params, loader or train, test if valid else None)
    return trainer


def distilled(root, student=None, teacher=None, *, kd=None, loader=None, **params):
    """A KDTrainer after a short training."""
    train, test = loaders()
    trainer = KDTrainer("kd", root)
    params = {"max_epochs": 1, "initial_lr": 0.1, "silent_mode": True, **params}
    trainer.train(
        student=student or make(),
        teacher=teacher or make(width=32, seed=1),
        training_params=params,
        train_loader=loader or train,
        valid_loader=test,
        **(kd or {}),
    )
    return trainer


class Recorder(Callback):
    """Remembers the phases, and the learning rates of the batches."""

    def __init__(self):
        self.phases, self.rates, self.losses, self.results = [], [], [], []

    def on_training_start(self, context):
        self.phases.append("training_start")

    def on_train_batch_start(self, context):
        self.rates.append(context.optimizer.param_groups[0]["lr"])

    def on_train_batch_loss_end(self, context):
        self.losses.append(float(context.loss))

    def on_validation_loader_end(self, context):
        self.results.append((context.epoch, dict(context.metrics_dict)))

    def on_training_end(self, context):
        self.phases.append("training_end")


def weights(net):
    """All tensors of a model, as one vector."""
    return torch.cat([t.detach().flatten().double() for t in net.state_dict().values()])


def rows(trainer, name):
    """Values of a metric, as the run store has them."""
    return trainer.run.curve(name)[1]
