"""What does `KnowledgeDistillationTraining` cost over a bare loop?

    python -m benchmarks.toolkit_door

The same student learns from the same teacher with the same two losses on the same DataLoader: in a
loop by hand, and in the toolkit's call with run store and logging of every loss. `benchmarks.doors`
says how the two take turns and what is timed.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common import Result, arguments
from benchmarks.doors import STEPS, Clock, Variant, compare, digits, finish
from distillation import KnowledgeDistillationTraining
from distillation.losses import kl_divergence
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel

T, SOFT, LABELS, RATE = 4.0, 0.5, 0.5, 1e-3


def by_hand(student: nn.Module, teacher: nn.Module) -> Variant:
    """The bare loop."""

    def run(clock: Clock) -> nn.Module:
        model, guest = copy.deepcopy(student), copy.deepcopy(teacher)
        guest.eval().requires_grad_(False)
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        for x, y in digits(clock):
            with torch.no_grad():
                t = guest(x)
            s = model(x)
            total = SOFT * kl_divergence(s, t, T) + LABELS * F.cross_entropy(s, y)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    return run


def by_toolkit(student: nn.Module, teacher: nn.Module, root: str) -> Variant:
    """The toolkit's call."""

    def run(clock: Clock) -> nn.Module:
        training = KnowledgeDistillationTraining(
            train_data_loader=digits(clock),
            student_model=copy.deepcopy(student),
            teacher_model=copy.deepcopy(teacher),
            num_gpu_used=0,
            max_epoch=1,
            temperature=T,
            optimize_method="adam",
            learning_rate=RATE,
            final_loss_coeff_dict={"kd_loss": SOFT, "ce_loss": LABELS},
            ckpt_root_dir=root,
            silent_mode=True,
        )
        training.start_kd_training()
        return training.get_student_model()

    return run


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__, rounds=31, argv=argv, steps=STEPS)
    torch.manual_seed(0)
    teacher, student = DigitsLargeModel(), DigitsSmallModel()
    result = Result("toolkit_door", "What does the toolkit's call cost over a bare loop?")
    with tempfile.TemporaryDirectory() as root:
        variants = {
            "by_hand": by_hand(student, teacher),
            "toolkit": by_toolkit(student, teacher, root),
        }
        same = compare(result, "step_ratio", "toolkit", variants, options)
    finish(
        result,
        "toolkit",
        same,
        options,
        data="sklearn digits, 8×8, in a DataLoader without workers",
        toolkit="run store, rows every 50 batches, kd_loss and ce_loss at T=4, Adam",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
