"""Batch norm over the batches of all processes: torch's on GPUs, and one for CPU processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(model: nn.Module, accelerator: Accelerator) -> None:
    """Exchange the batch norms inside `model`, in place; with one process there is nothing to do.

    The new layers share parameters and buffers with the old ones. Whoever keeps the old layers
    can put them back.
    """
    if accelerator.num_processes == 1:
        return
    if accelerator.device.type == "cpu":
        _exchange(model)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _exchange(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, GatheredBatchNorm(child))
        else:
            _exchange(child)


class GatheredBatchNorm(nn.Module):
    """A batch norm whose batch statistics are those of all processes (any device, with gloo).

    Sums, centred squares and counts are reduced with autograd; in eval mode it is the layer it was
    made of.
    """

    def __init__(self, norm: _BatchNorm):
        super().__init__()
        object.__setattr__(self, "_norm", norm)
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        self.training = norm.training

    def train(self, mode: bool = True) -> GatheredBatchNorm:
        """Both this layer and the one it stands for."""
        self._norm.train(mode)
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` of shape (N, C, ...), normalised over all processes' samples while training."""
        norm = self._norm
        if not self.training:
            return norm(x)
        # As torch's: statistics in float32 or better, whatever autocast hands in
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims, shape = [0, *range(2, x.dim())], [1, -1, *([1] * (x.dim() - 2))]
        count = wide.new_tensor([x.numel() / x.shape[1]])
        sums = all_reduce(torch.cat([wide.sum(dims), count]))
        mean, total = sums[:-1] / sums[-1], sums[-1]
        # In a second pass: a difference of large squares would have no digits left
        centred = wide - mean.view(shape)
        variance = all_reduce(centred.square().sum(dims)) / total
        if norm.track_running_stats:
            self._keep(mean.detach(), variance.detach(), total.detach())
        y = centred * (variance.view(shape) + norm.eps).rsqrt()
        if norm.affine:
            y = y * norm.weight.view(shape) + norm.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: torch.Tensor, variance: torch.Tensor, total: torch.Tensor) -> None:
        norm = self._norm
        norm.num_batches_tracked.add_(1)
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
        unbiased = variance * (total / (total - 1))
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
