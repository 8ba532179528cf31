"""The batch norm of CPU processes computes what torch's does; here with a single process."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distillation.trainer.sync_bn import GatheredBatchNorm


@pytest.fixture(autouse=True)
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def pair(channels: int = 3) -> tuple[nn.BatchNorm2d, GatheredBatchNorm]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return norm, GatheredBatchNorm(copy.deepcopy(norm))


def images(mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return mean + std * torch.randn(16, 3, 5, 5, generator=random)


def test_outputs_gradients_and_running_statistics_are_torchs():
    norm, gathered = pair()
    results = []
    for layer in (norm, gathered):
        x = images(mean=2.0).requires_grad_()
        y = layer(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append([y, x.grad, layer.weight.grad, layer.running_mean, layer.running_var])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mean", [100.0, 1000.0])
def test_a_small_spread_around_a_large_mean_keeps_its_digits(mean):
    norm, gathered = pair()
    x = images(mean, std=0.1)
    expected = norm.double()(x.double())
    # Of the inputs' own digits, mean 1000 leaves about four
    torch.testing.assert_close(gathered(x).double(), expected, rtol=0, atol=mean * 2e-6)


def test_half_precision_inputs_have_statistics_in_float32():
    norm, gathered = pair()
    x = images(mean=3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = gathered(x.bfloat16()), norm(x.bfloat16())
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    torch.testing.assert_close(gathered.running_var, norm.running_var, rtol=1e-4, atol=1e-5)
