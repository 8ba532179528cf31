"""What the tests of tables share: an untrained teacher of the digits, and nine views."""

from __future__ import annotations

import torch

from distillation.data import CropFlip
from distillation.models.digits import DigitsLargeModel


def make_views():
    return CropFlip(padding=1, size=8, flip=False)  # 9 views


def make_teacher(seed=0, scale=20.0):
    """Untrained, with logits as large as a trained one's."""
    torch.manual_seed(seed)
    model = DigitsLargeModel().eval()
    with torch.no_grad():
        model.fc.weight.mul_(scale)
    return model
