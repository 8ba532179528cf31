"""What two gloo processes do in `test_trainer_processes.py`; also run alone, as the reference.

python processes.py ROOT OUT        # with RANK, WORLD_SIZE, … in the environment
"""

import json
import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trainer_kit import Net, NormNet, images, loaders, make, weights

from distillation import KDTrainer
from distillation.data import TensorLoader
from distillation.losses import StaticLossBalancer
from distillation.trainer import Callback, Trainer

PARAMS = {
    "max_epochs": 10,  # of two batches: 20 steps
    "initial_lr": 0.1,
    "optimizer_params": {"momentum": 0.9},
    "valid_metrics_list": ["Accuracy"],
    "train_metrics_list": ["Accuracy"],
    "ema": True,
    "silent_mode": True,
    "max_train_batches": 2,
}


class Stop(Callback):
    """Raises at a batch of an epoch, on every process."""

    def __init__(self, epoch, batch=0):
        self.place = (epoch, batch)

    def on_train_batch_start(self, context):
        if (context.epoch, context.batch_idx) == self.place:
            raise RuntimeError("stopped")


class Wrapped(Callback):
    """Looks for the teacher in what DDP holds."""

    def __init__(self):
        self.held = None

    def on_training_start(self, context):
        self.held = len(list(context.net.parameters()))


def kd(root, name, student=None, teacher=None, loader=None, kd_arch_params=None, **params):
    trainer = KDTrainer(name, root)
    trainer.train(
        student=student or make(),
        teacher=teacher or make(Net, width=32, seed=1),
        kd_arch_params=kd_arch_params,
        training_params={**PARAMS, **params},
        train_loader=loader or loaders(32)[0],
        valid_loader=loaders()[1],
    )
    return trainer


def ordinary(batch_size):
    train, _ = images()
    data = TensorDataset(train.images.float() / 255, train.labels)
    return DataLoader(data, batch_size=batch_size, shuffle=False)


class Normed(NormNet):
    """Batch norm without dropout."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Identity()


def norm_net(root, name, sync):
    net = make(Normed)
    trainer = Trainer(name, root)
    params = {"max_epochs": 1, "max_train_batches": 4, "silent_mode": True, "sync_bn": sync}
    trainer.train(net, params, loaders(32)[0])
    assert type(net.norm) is nn.BatchNorm2d
    return net


def judged(root, name, **params):
    """A loss over the test images by all processes, and by this one alone with its model."""
    valid = loaders()[1]
    trainer = Trainer(name, root)
    params = {"max_epochs": 1, "silent_mode": True, **params}
    tested = name == "tested"
    trainer.train(make(Normed), params, loaders(32)[0], None if tested else valid)
    if tested:
        loss = trainer.test(test_loader=valid)["CrossEntropyLoss/Loss"]
    else:
        loss = trainer.results["loss.valid"]
    model = (trainer.ema_model or trainer.net).eval()
    batch = valid.batch(0, 0)
    with torch.no_grad():
        alone = nn.functional.cross_entropy(model(batch.images), batch.labels)
    return loss, float(alone)


def evaluated(trainer):
    return json.loads((trainer.run.path / "evaluation.json").read_text())["images"]


def everything(root, processes):
    """Results by name: weights and recorded numbers."""
    found = {}
    trainer = kd(root, "plain")
    found["weights"] = weights(trainer.net.student)
    found["ema"] = weights(trainer.ema_model)
    for name in ("loss.train", "loss.valid", "accuracy.train", "accuracy.valid"):
        found[name] = trainer.results[name]
    for name in ("ece.valid", "agreement.valid", "kl.valid"):
        found[name] = trainer.results[name]
    found["evaluated"] = evaluated(trainer)
    found["samples"] = trainer.run.curve("loss.train")[0]
    found["test"] = trainer.test(test_loader=ordinary(48))["Accuracy"]
    one = TensorLoader(images()[1].subset(1), 64, shuffle=False)
    found["test on one image"] = trainer.test(test_loader=one)["KDLogitsLoss/Loss"]

    look = Wrapped()
    kd(root, "accumulated", batch_accumulate=2, phase_callbacks=[look], max_epochs=2)
    found["held"] = look.held
    found["accumulated"] = weights(kd(root, "accumulated", batch_accumulate=2).net.student)
    dealt = kd(root, "dealt", loader=ordinary(32 // processes), max_train_batches=2)
    found["dealt"] = weights(dealt.net.student)

    arch = {
        "criterion": {("features", "features"): Projected()},
        "loss_balancer": StaticLossBalancer(0.5),
    }
    layers = kd(root, "layers", kd_arch_params=arch)
    found["layers"] = weights(layers.net.student)

    found["batch norm"] = weights(norm_net(root, "bn", False))
    found["sync_bn"] = weights(norm_net(root, "sync", True))

    found["validated"] = judged(root, "validated")
    found["averaged"] = judged(root, "averaged", ema=True, ema_params={"decay": 0.5})
    found["tested"] = judged(root, "tested")

    if processes > 1:
        whole = {"ema": False, "fsdp": True}
        sharded = kd(root, "sharded", save_ckpt_epoch_list=[4], clip_grad_norm=100.0, **whole)
        found["fsdp"] = weights(sharded.net.student)
        found["fsdp evaluated"] = evaluated(sharded)
        found["fsdp loss.valid"] = sharded.results["loss.valid"]
        again = kd(
            root, "sharded", resume_path=sharded.checkpoints_dir / "ckpt_epoch_4.pth", **whole
        )
        found["fsdp resumed"] = weights(again.net.student)
        found["fsdp keys"] = list(torch.load(again.checkpoints_dir / "ckpt_latest.pth")["net"])
        found["fsdp best"] = torch.load(again.checkpoints_dir / "ckpt_best.pth")["net"]
        found["fsdp same object"] = type(again.net.student).__name__

    try:
        kd(root, "stopped", phase_callbacks=[Stop(4)])
    except RuntimeError:
        found["resumed"] = weights(kd(root, "stopped", resume=True).net.student)

    # Six batches an epoch; the last checkpoint is of the sixteenth update
    halfway = {"loader": loaders(24)[0], "max_train_batches": None, "max_epochs": 3}
    found["halfway whole"] = kd(root, "halfway whole", **halfway).results["accuracy.train"]
    try:
        stop = [Stop(2, 5)]
        kd(root, "halfway", phase_callbacks=stop, save_seconds=1e-9, **halfway)
    except RuntimeError:
        resumed = kd(root, "halfway", resume=True, **halfway)
        found["halfway"] = resumed.results["accuracy.train"]

    kd(root, "best", max_epochs=1)
    longer = kd(root, "best", max_epochs=2, resume=True)
    found["epochs after the best"] = len(longer.run.curve("loss.train")[0])
    return found


class Projected(nn.Module):
    """A loss with a parameter, which starts differently on every process but the first."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 32, bias=False)
        with torch.no_grad():
            rank = int(os.environ.get("RANK", 0))
            self.project.weight.copy_(torch.eye(32, 16) + rank)

    def forward(self, student, teacher):
        return nn.functional.mse_loss(self.project(student), teacher)


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = everything(sys.argv[1], int(os.environ["WORLD_SIZE"]))
    if os.environ["RANK"] == "0":
        torch.save(results, sys.argv[2])
