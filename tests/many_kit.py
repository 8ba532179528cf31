"""Students, a teacher and a stream of the digits for the tests of `distill_many`."""

from __future__ import annotations

import torch

from distillation.data import CropFlip, TensorLoader, digits
from distillation.losses import LogitsDistillationLoss
from distillation.many import Student
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel
from distillation.references import Reference, note

TRAIN, TEST = (part.subset(n) for part, n in zip(digits(), (200, 60), strict=True))


def make_loader():
    views = CropFlip(padding=1, size=8, flip=False)
    return TensorLoader(TRAIN, 32, views=views, views_per_image=2, seed=4)


def make_teacher():
    torch.manual_seed(99)
    return DigitsLargeModel().eval()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def cosine(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def make_student(kind=DigitsSmallModel, seed=0, temperature=4.0, **options):
    torch.manual_seed(seed)
    model = note(kind(), Reference.of(kind))
    criterion = LogitsDistillationLoss(temperature=temperature)
    return Student(model, sgd, criterion, schedule=cosine, seed=seed, **options)


def make_students():
    """Another seed, another temperature, another size; the large one draws dropout masks."""
    return {
        "small": make_student(),
        "seed 1": make_student(seed=1),
        "warm": make_student(temperature=20.0),
        "large": make_student(DigitsLargeModel),
        "large too": make_student(DigitsLargeModel, seed=1),
    }


def weights(student):
    return torch.cat([t.flatten().double() for t in student.model.state_dict().values()])
