"""What does an experiment's step in the engine cost over a bare loop?

    python -m benchmarks.experiment_door

The step of `experiments.digits.distill` in its engine, with run store, labml's tracker and rows of
metrics, against a loop by hand with the same models, loss, optimizer and `TensorLoader`: once a
loop that only trains, once one that also keeps the five running means of the experiment (three
losses, accuracy, agreement). `benchmarks.doors` says how the two take turns and what is timed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from labml import experiment
from labml.configs import option
from torch import nn
from torch.nn import functional as F

from benchmarks.common import Result, arguments
from benchmarks.doors import BATCH, STEPS, Clock, Variant, compare, finish
from distillation import runs
from distillation.data import CropFlip, TensorLoader
from distillation.data import digits as digit_images
from distillation.losses import kl_from_log_probabilities
from distillation.models.digits import DigitsSmallModel
from experiments.command_line import parse, run_main
from experiments.digits import EVALUATION, NAME, distill, large
from experiments.session import open_session
from experiments.teachers import find_teacher, load_teacher

T, SOFT, LABELS, RATE = 8.0, 0.9, 0.1, 0.01


class Clocked(TensorLoader):
    """A `TensorLoader` over the digits, again and again, whose steps are timed."""

    def __init__(self, clock: Clock):
        train, _ = digit_images()
        again = torch.arange(len(train)).repeat(6)[: BATCH * clock.steps]
        super().__init__(train.select(again), BATCH, views=CropFlip(1, 8, False), seed=0)
        self.clock = clock

    def _batches(self, epoch: int, start: int) -> Iterator:
        return self.clock.over(super()._batches(epoch, start))


class Configs(distill.Configs):
    """The experiment, with a loader that is timed."""

    train_loader: object = "_clocked_train_loader"
    clock: Clock

    _parts = (*distill.Configs._parts, "clock")


@option(Configs.train_loader)
def _clocked_train_loader(c: Configs) -> Clocked:
    return Clocked(c.clock)


def by_hand(teacher: nn.Module, metrics: bool) -> Variant:
    """The bare loop; with `metrics` it keeps the running means that the experiment keeps."""

    def run(clock: Clock) -> nn.Module:
        torch.manual_seed(0)
        model, guest = DigitsSmallModel().train(), copy.deepcopy(teacher)
        guest.eval().requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        sums, seen = torch.zeros(5), 0
        for x, y, _, _ in Clocked(clock):
            with torch.no_grad():
                t = guest(x)
            s = model(x)
            soft_targets, soft_prob = F.log_softmax(t / T, dim=-1), F.log_softmax(s / T, dim=-1)
            soft = kl_from_log_probabilities(soft_prob, soft_targets) * T**2
            hard = F.cross_entropy(s, y)
            loss = SOFT * soft + LABELS * hard
            if metrics:
                with torch.no_grad():
                    choice = s.argmax(-1)
                    right = (choice == y).float().mean()
                    alike = (choice == t.argmax(-1)).float().mean()
                    sums += torch.stack([soft, hard, loss, right, alike]) * len(y)
                    seen += len(y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    return run


def by_experiment(teacher_run: runs.Run, root: str) -> Variant:
    """The experiment as its `main` runs it, in this process."""
    settings = {
        "epochs": 1,
        "batch_size": BATCH,
        "channels_last": False,
        "schedule": "constant",
        "optimizer.learning_rate": RATE,
        "optimizer.momentum": 0,
        "optimizer.weight_decay": 0,
        "temperature": T,
        "soft_targets_weight": SOFT,
        "label_loss_weight": LABELS,
        "threads": torch.get_num_threads(),
    }
    sets = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    arguments = ["--teacher", teacher_run.uuid, "--runs", root, *sets]

    def run(clock: Clock) -> nn.Module:
        options = parse(Configs, arguments, title="", has_teacher=True)
        teacher = find_teacher(options)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            open_session(
                options, NAME, "distill", teacher=teacher, evaluation=EVALUATION
            ) as session,
        ):
            conf = Configs()
            conf.session, conf.clock = session, clock
            conf.teacher = load_teacher(teacher, session, options)
            experiment.configs(conf, options.values)
            with experiment.start():
                conf.run()
        return conf.model

    return run


def trained_teacher(root: str) -> runs.Run:
    """The run of a large model, one epoch old."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run_main(large.main, ["--epochs", "1", "--runs", root])
    return runs.find(out.getvalue().split()[-1], Path(root))


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__, rounds=31, argv=argv, steps=STEPS)
    result = Result("experiment_door", "What does an experiment's step cost over a bare loop?")
    same = True
    with tempfile.TemporaryDirectory() as root:
        teacher_run = trained_teacher(root)
        teacher, by_engine = teacher_run.load_model(), by_experiment(teacher_run, root)
        for figure, metrics in (("step_ratio", False), ("step_ratio_same_metrics", True)):
            door = "experiment_beside_metrics" if metrics else "experiment"
            variants = {"by_hand": by_hand(teacher, metrics), door: by_engine}
            same &= compare(result, figure, door, variants, options)
    finish(
        result,
        "experiment",
        same,
        options,
        data="sklearn digits, 8×8, nine views, in a TensorLoader",
        experiment="run store, labml's tracker and rows every 50 batches, five metrics, SGD",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
