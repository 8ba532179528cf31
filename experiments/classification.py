r"""
# Image classification

What the experiments with images share: the data and their loaders, the optimizer, the schedule and
the loop. An experiment extends `ClassificationConfigs`, names its model, and writes its own `step`.
"""

from typing import Any

import torch
from labml.configs import BaseConfigs, option
from labml_helpers.train_valid import BatchIndex
from torch import nn

from distillation.compiling import MODES, CompiledCall
from distillation.data import TensorLoader
from distillation.engine import Engine
from distillation.errors import ConfigError
from distillation.models.facts import model_facts
from distillation.precision import AUTO, PRECISIONS
from distillation.progress import Progress
from distillation.references import Reference, note, noted
from distillation.rng import seed_everything
from distillation.transfer_hook import TransferHook
from experiments.labml_bridge import own_items
from experiments.optimizers import OptimizerConfigs
from experiments.session import Session
from experiments.trackers import NAMES


class ClassificationConfigs(BaseConfigs):
    """
    ## Configurations

    Every value can be set on the command line, `--set temperature=4`.
    """

    # Passes over the training images
    epochs: int = 8
    # Images a step
    batch_size: int = 128
    # Seed of the initial weights, of the order of the images and of their views
    seed: int = 0

    # Where the images are; empty for `DISTILLATION_DATA`, then the cache, then a download
    data: str = ""
    # Train on a stratified part of so many images; 0 is all
    subset: int = 0
    # Training images kept back to choose the best checkpoint on; 0 chooses nothing
    holdout: int = 0
    # Classes the training images do not show at all
    without_classes: list = []
    # Restrict each image to so many of its augmented views; 0 is all of them
    views_per_image: int = 0

    # auto, cpu, cuda or mps
    device: str = "auto"
    # fp32, bf16 or fp16; `auto` is bf16 if the device has it, else fp32
    precision: str = "fp32"
    # Threads on a CPU; 0 is torch's choice. The sums of another number round otherwise.
    threads: int = 0
    # Memory format of images and convolutions: channels last is the faster one
    channels_last: bool = True
    # Normalize with the statistics of the batch, as the original does: a poor teacher
    batch_statistics: bool = False
    # Compile the model with `torch.compile`; on a CPU this pair runs no faster for it
    compile: bool = False
    # How: `default`, or on a GPU `reduce-overhead`, which records the model as CUDA graphs
    compile_mode: str = "default"

    # Batches whose gradients make one step of the optimizer
    accumulate: int = 1
    # Largest norm of the gradient; 0 does not clip
    clip_grad_norm: float = 0.0
    # Optimizer and its configurations
    optimizer: torch.optim.Optimizer = "_optimizer"
    # How the learning rate goes over the run
    schedule: Any = "one_cycle"
    # Share of the one-cycle schedule in which the rate rises
    warm_up: float = 0.25
    # `default`, or `labml` for the original's Adam at a constant 2.5e-4
    recipe: str = "default"

    # At most so many seconds of work are lost when the run is killed
    save_seconds: float = 45.0
    # Batches between two rows of running means
    log_every: int = 50
    # Who is told of the metrics beside the run store: [`screen`, `file` (labml's log),
    # `tensorboard`](trackers.html)
    tracker: list = ["screen", "file"]

    # The parts, built from the values above
    images: tuple = "_images"
    train_loader: TensorLoader = "_train_loader"
    valid_loaders: dict = "_valid_loaders"
    model: nn.Module
    # The model as the step calls it: compiled, and wrapped where several processes train it
    network: nn.Module = "_network"
    engine: Engine = "_engine"
    # What each evaluation measures
    evaluation: TransferHook = "_evaluation"
    # The run of the store
    session: Session

    _parts = (
        "session",
        "network",
        "images",
        "train_loader",
        "valid_loaders",
        "engine",
        "evaluation",
    )
    _nested = {"optimizer": OptimizerConfigs}
    _choices = {
        "device": ("auto", "cpu", "cuda", "mps"),
        "precision": (*PRECISIONS, AUTO),
        "recipe": ("default", "labml"),
        "tracker": NAMES,
        "compile_mode": MODES,
        "optimizer.fused": ("auto", "on", "off"),
    }
    _ranges = {
        "epochs": (0, None),
        "batch_size": (1, None),
        "seed": (0, 2**63 - 1),
        "subset": (0, None),
        "holdout": (0, None),
        "views_per_image": (0, None),
        "threads": (0, None),
        "accumulate": (1, None),
        "clip_grad_norm": (0.0, None),
        "warm_up": (0.0, 1.0),
        "save_seconds": (0.0, None),
        "log_every": (0, None),
        "optimizer.learning_rate": (0.0, None),
        "optimizer.momentum": (0.0, 1.0),
        "optimizer.weight_decay": (0.0, None),
        "optimizer.betas": (0.0, 0.999999),
        "without_classes": (0, None),
        "optimizer.eps": (0.0, None),
        "label_smoothing": (0.0, 1.0),
        "temperature": (1e-3, None),
        "soft_targets_weight": (0.0, None),
        "label_loss_weight": (0.0, None),
    }
    # What the items of a list are, and how many there must be
    _items = {
        "without_classes": (int, None),
        "optimizer.betas": (float, 2),
        "tracker": (str, None),
    }
    _presets = {
        ("recipe", "labml"): {
            "optimizer.optimizer": "Adam",
            "optimizer.learning_rate": 2.5e-4,
            "optimizer.weight_decay": 0.0,
            "schedule": "constant",
        },
    }

    def __init__(self, **options: Any):
        # Values of this class stay with this class
        with own_items(type(self)):
            super().__init__(**options)

    def run(self):
        """
        ### Train, and return the metrics of the last epoch
        """
        # Reproducible initial weights
        seed_everything(self.seed)
        # What the run store says about the model: how it is made, and what it costs
        reference = noted(self.model)
        images = self.images[0].images
        self.session.notes |= {
            "model": reference.to_json() if reference else None,
            "facts": model_facts(self.model, tuple(images.shape[1:])),
            "seed": self.seed,
        }
        try:
            return self.engine.fit(resume=self.session.resumed)
        finally:
            for hook in self.engine.hooks.hooks:
                getattr(hook, "close", lambda: None)()

    def track(self, values: dict, samples: int):
        """
        ### Track metrics

        The engine keeps their means on the device. To read them stalls the step, so they are
        recorded every `log_every` batches and after each epoch; what is recorded is passed on to
        [labml's tracker](trackers.html).
        """
        self.engine.log(values, samples)


@option(ClassificationConfigs.optimizer)
def _optimizer(c: ClassificationConfigs):
    """
    ### The optimizer of the model's parameters
    """
    configs = OptimizerConfigs()
    configs.parameters = c.model.parameters()
    return configs


@option(ClassificationConfigs.schedule)
def one_cycle(c: ClassificationConfigs):
    """
    ### One cycle

    The rate rises to its highest value, then falls to almost nothing
    ([Smith & Topin 2018](https://arxiv.org/abs/1708.07120)); one step an update.
    """
    updates = -(-len(c.train_loader) // c.accumulate) * c.epochs
    if updates == 0:
        return None
    highest = [group["lr"] for group in c.optimizer.param_groups]
    # one more than the updates, for the schedule is asked once more after the last
    total = updates + 1
    # A rise of exactly one step has no length, by which torch would divide
    rise = c.warm_up + 1e-6 if total * c.warm_up == 1 else c.warm_up
    return torch.optim.lr_scheduler.OneCycleLR(
        c.optimizer,
        max_lr=highest,
        total_steps=total,
        pct_start=rise,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=10,
        final_div_factor=1000,
    )


@option(ClassificationConfigs.schedule)
def constant(c: ClassificationConfigs):
    """
    ### The same rate all the time
    """
    return


def training_images(c: ClassificationConfigs, train, test):
    """
    ### Cut the training images as configured

    Returns the training images, the held out ones or `None`, and the test images. The test images
    are never cut.
    """
    held_out = None
    if c.holdout:
        if c.holdout >= len(train):
            raise ConfigError(f"holdout={c.holdout} leaves none of {len(train)} training images")
        train, held_out = train.split(holdout=c.holdout, seed=0)
    if c.without_classes:
        train = train.without_classes(c.without_classes)
        if not len(train):
            raise ConfigError(f"without_classes={c.without_classes} leaves no training images")
    if c.subset:
        if c.subset > len(train):
            raise ConfigError(f"subset={c.subset} is more than the {len(train)} training images")
        train = train.subset(c.subset, seed=0)
    return train, held_out, test


def make_train_loader(c: ClassificationConfigs, views):
    """
    ### Batches of augmented training images
    """
    train = c.images[0]
    return TensorLoader(
        train,
        c.batch_size,
        views=views,
        views_per_image=c.views_per_image or None,
        seed=c.seed,
        channels_last=c.channels_last,
        device=str(c.session.device),
        rank=c.session.rank,
        world_size=c.session.world_size,
    )


@option(ClassificationConfigs.valid_loaders)
def _valid_loaders(c: ClassificationConfigs):
    """
    ### Images to evaluate on: never augmented, never shuffled

    The test images by the name `test`; held out training images by the name `valid`.
    """
    train, held_out, test = c.images
    loaders = {}
    for name, part in (("valid", held_out), ("test", test)):
        if part is not None:
            loaders[name] = TensorLoader(
                part,
                500,
                shuffle=False,
                mean=train.mean,
                std=train.std,
                channels_last=c.channels_last,
                device=str(c.session.device),
                rank=c.session.rank,
                world_size=c.session.world_size,
            )
    return loaders


def build_model(c: ClassificationConfigs, model_class: type[nn.Module], **arguments):
    """
    ### Create a model from the seed, on the device, in the memory format
    """
    # The same initial weights whatever was built before
    seed_everything(c.seed)
    arguments["batch_statistics"] = c.batch_statistics
    model = model_class(**arguments)
    # The run store writes down how the model is made
    note(model, Reference.of(model_class, **arguments))
    memory_format = torch.channels_last if c.channels_last else torch.contiguous_format
    return model.to(c.session.device, memory_format=memory_format)


def make_batch_index(total: int | None) -> BatchIndex:
    """
    ### labml's index of a batch in its epoch
    """
    index = BatchIndex(total, 1)
    index.reset(total, 1)
    return index


@option(ClassificationConfigs.network)
def _network(c: ClassificationConfigs):
    """
    ### The model as the step calls it
    """
    if c.compile_mode != "default" and not c.compile:
        raise ConfigError(f"compile_mode={c.compile_mode!r} has no effect without compile=True")
    network = c.engine.wrap("model")
    return CompiledCall(network, mode=c.compile_mode) if c.compile else network


@option(ClassificationConfigs.evaluation)
def _evaluation(c: ClassificationConfigs):
    """
    ### Agreement, calibration and confusion, each time it evaluates
    """
    return TransferHook(c.images[2].classes)


@option(ClassificationConfigs.engine)
def _engine(c: ClassificationConfigs):
    """
    ### The loop

    Order of the data, accumulation, precision, devices, schedule, checkpoints and resume.
    """
    shown = c.session.is_main and "screen" in c.tracker
    return Engine(
        c.step,
        modules={"model": c.model},
        optimizer=c.optimizer,
        scheduler=c.schedule,
        train_loader=c.train_loader,
        valid_loaders=c.valid_loaders,
        epochs=c.epochs,
        recorder=c.session.recorder,
        accumulate=c.accumulate,
        clip_grad_norm=c.clip_grad_norm or None,
        accelerator=c.session.accelerator,
        save_seconds=c.save_seconds,
        log_every=c.log_every,
        # The best checkpoint is chosen on held out images, or not at all
        watch="accuracy.valid" if c.holdout else None,
        hooks=[c.session, c.evaluation, *([Progress()] if shown else [])],
        batch_index=make_batch_index,
    )
