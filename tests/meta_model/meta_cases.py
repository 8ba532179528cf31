"""Small models for the tests of the script door, and the training step written by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillation import LogitsDistillationLoss, StaticLossBalancer, convert
from distillation.losses import UncertaintyLossBalancer

T, WEIGHT = 4.0, 0.7


class Net(nn.Module):
    """Two convolutions, batch norm, dropout, a classifier: 8×8 images to 10 classes."""

    def __init__(self, width: int = 6, dropout: float = 0.0):
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.body = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu()).relu()
        return self.head(self.drop(x.mean((2, 3))))


class FeatureLoss(nn.Module):
    """Mean squared error after a learned 1×1 projection: a loss with parameters."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.project = nn.Conv2d(student_channels, teacher_channels, 1)

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        return F.mse_loss(self.project(student_output), teacher_output)


def make_teacher(width: int = 10, seed: int = 7) -> Net:
    """A named function, which a saved file can refer to."""
    torch.manual_seed(seed)
    return Net(width)


def pair(seed: int = 0) -> tuple[Net, Net]:
    """A student and its teacher, always the same two."""
    teacher = make_teacher()
    torch.manual_seed(seed)
    return Net(), teacher


def batch(n: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(
        10, (n,), generator=generator
    )


def features() -> dict:
    """A criterion with two layer pairs, one of which has a loss with parameters."""
    torch.manual_seed(3)
    return {
        ("body", "body"): FeatureLoss(12, 20),
        ("head", "head"): LogitsDistillationLoss(temperature=T),
    }


def converted(student: nn.Module, teacher: nn.Module, **config) -> nn.Module:
    """`student`, distilled on logits against `teacher`, with labels."""
    config.setdefault("criterion", LogitsDistillationLoss(temperature=T))
    config.setdefault("loss_balancer", StaticLossBalancer(WEIGHT))
    return convert(student, mode=[("kd_loss", {"teacher_model": teacher, **config})])


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The training step of a converted model."""
    return model.compute_kd_loss(student_loss=F.cross_entropy(model(x), y))


def loss_by_hand(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same step on plain models, as one writes it without a library."""
    with torch.no_grad():
        t = teacher(x)
    s = student(x)
    p, q = F.log_softmax(t / T, dim=-1), F.log_softmax(s / T, dim=-1)
    kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1).sum() / len(x) * T**2
    return WEIGHT * kl + (1 - WEIGHT) * F.cross_entropy(s, y)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter name, taken off the model."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Two dictionaries of tensors are bit-identical."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


def portrait(model: nn.Module) -> dict:
    """Everything `convert` could leave behind: classes, attributes, hooks, flags."""
    return {
        name: (
            type(module),
            {k: v for k, v in vars(module).items() if not isinstance(v, dict)},
            {k: list(v) for k, v in vars(module).items() if isinstance(v, dict)},
            {n: (id(p), p.requires_grad) for n, p in module._parameters.items() if p is not None},
        )
        for name, module in model.named_modules()
    }


TEACHER = (make_teacher, (10,), {"seed": 7})


def trained(**config):
    """A converted model after a few steps, with everything that a file has to hold."""
    config.setdefault("criterion", features())
    config.setdefault("loss_balancer", UncertaintyLossBalancer(2))
    model = converted(pair()[0], config.pop("teacher", TEACHER), **config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(model, *batch(seed=seed)).backward()
        optimizer.step()
    return model
