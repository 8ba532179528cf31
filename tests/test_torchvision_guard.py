"""The guard declares torchvision's operators when, and only when, they are absent."""

from __future__ import annotations

import subprocess
import sys

import pytest

BARE = """
import torch
missing = not torch._C._jit_get_schemas_for_operator("torchvision::nms")
assert missing, "torchvision was imported already"
"""

DECLARED = """
import torch
mine = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    mine.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
mine.impl("nms", lambda dets, scores, iou_threshold: torch.tensor([42]), "CPU")
from distillation import torchvision_guard
assert torchvision_guard.declare_missing_operators() == []
assert torchvision_guard._library is None
boxes = torch.zeros(1, 4)
assert torch.ops.torchvision.nms(boxes, torch.ones(1), 0.5).item() == 42
"""

ABSENT = """
import importlib.util
from distillation import torchvision_guard as guard
import torch
assert all(guard._has_operator(name) for name in guard.SCHEMAS)
assert guard.declare_missing_operators() == []  # a second time there is nothing to do
for name in ("torchvision", "torchvision.models", "torchvision.transforms.v2", "torchmetrics",
             "timm"):
    if importlib.util.find_spec(name.split(".")[0]) is not None:
        __import__(name)
"""


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_operators_that_are_there_are_left_alone():
    python(BARE + DECLARED)


def test_torchvision_and_what_builds_on_it_can_be_imported_after_the_guard():
    python(BARE + ABSENT)


def test_a_declared_operator_without_a_kernel_says_so_when_it_is_called():
    import torch

    from distillation import torchvision_guard

    if torchvision_guard._library is None:
        pytest.skip("torchvision's compiled operators work beside this torch")
    with pytest.raises(NotImplementedError, match="torchvision::nms"):
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
