"""A training with everything on that resume must bring back; as a program, it kills itself.

python killable.py ROOT LOADER BATCH    # SIGKILL at this batch of the second epoch
"""

import os
import signal
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset
from trainer_kit import NormNet, images, loaders, make

from distillation import KDTrainer
from distillation.trainer import Callback


class Kill(Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, context):
        if context.epoch == 1 and context.batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def ordinary_loader():
    """A shuffled DataLoader, whose order comes from torch's global generator."""
    train, _ = images()
    return DataLoader(
        TensorDataset(train.images.float() / 255, train.labels), batch_size=16, shuffle=True
    )


def train(root, loader, **params):
    """The trainer after three epochs; the same for everybody who calls it."""
    student = make(NormNet)
    trainer = KDTrainer("killable", root)
    train_loader = ordinary_loader() if loader == "DataLoader" else loaders(16)[0]
    trainer.train(
        student=student,
        teacher=make(NormNet, width=16, seed=1),
        training_params={
            "max_epochs": 3,
            "initial_lr": 0.05,
            "optimizer_params": {"momentum": 0.9},
            "lr_mode": "Cosine",
            "lr_warmup_steps": 2,
            "batch_accumulate": 3,
            "ema": True,
            "ema_params": {"decay": 0.9, "decay_type": "threshold"},
            "train_metrics_list": ["Accuracy"],
            "valid_metrics_list": ["Accuracy"],
            "save_seconds": 0.0,
            "log_every": 2,
            "silent_mode": True,
            **params,
        },
        train_loader=train_loader,
        valid_loader=loaders()[1],
    )
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], sys.argv[2], phase_callbacks=[Kill(int(sys.argv[3]))])
