r"""
# Residual networks for CIFAR

The networks of He et al. 2016, [Deep Residual Learning](https://arxiv.org/abs/1512.03385), section
4.2: a convolution, three stages of $n$ blocks with two convolutions each, and a linear layer, so
that depth $= 6n + 2$. The shortcuts have no parameters (option A of the paper): where a stage
halves the plane, every other pixel is taken and the new channels are zero.

The wide variants `8x4` and `32x4` are the teachers and students of Tian et al. 2020,
[Contrastive Representation Distillation](https://arxiv.org/abs/1910.10699): four times the
channels, and a 1×1 convolution in the first shortcut of each stage (option B). With 100 classes
they have 1,233,540 and 7,433,860 parameters, as there. (The narrow ones of that paper's code have
such shortcuts, too: `shortcut="conv"`.)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from distillation.errors import ConfigError, ShapeError


class Shortcut(nn.Module):
    """
    ### The way around a block, without parameters

    Every `stride`-th pixel; channels that the input lacks are zero.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return x


class ConvShortcut(nn.Sequential):
    """
    ### The way around a block, as a convolution

    1×1 with `stride`, and batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_channels))


class Block(nn.Module):
    """
    ### Two convolutions and a way around them
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, conv: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes = stride > 1 or in_channels != out_channels
        way = ConvShortcut if conv and changes else Shortcut
        self.shortcut = way(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CIFARResNet(nn.Module):
    """
    ### The network

    * `depth` is $6n + 2$: 8, 14, 20, 32, 44, 56, 110, …
    * `num_classes` is the number of logits
    * `width` multiplies the channels of the stages, 16, 32 and 64
    * `in_channels` is the number of channels of an image
    * `shortcut` is "pad" (without parameters) or "conv", where a block changes the shape

    Input `[batch, in_channels, height, width]`, at least 4×4 pixels; output logits
    `[batch, num_classes]`. The stages are `stage1`, `stage2` and `stage3`.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        *,
        width: float = 1,
        in_channels: int = 3,
        shortcut: str = "pad",
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"depth must be 6n + 2 (8, 14, 20, …, 56, 110), got {depth}")
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {num_classes}")
        if shortcut not in ("pad", "conv"):
            raise ConfigError(f"shortcut must be 'pad' or 'conv', not {shortcut!r}")
        first, second, third = (int(width * channels) for channels in (16, 32, 64))
        if first < 1:
            raise ConfigError(f"width {width} leaves no channel")
        self.in_channels = in_channels
        # The paper's stem has 16 channels; four times wider variants keep 32
        stem = 16 if width <= 1 else 32
        self.conv = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        blocks = (depth - 2) // 6
        conv = shortcut == "conv"
        self.stage1 = _stage(blocks, stem, first, stride=1, conv=conv)
        self.stage2 = _stage(blocks, first, second, stride=2, conv=conv)
        self.stage3 = _stage(blocks, second, third, stride=2, conv=conv)
        self.fc = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < 4:
            raise ShapeError(
                f"CIFARResNet takes images [batch, {self.in_channels}, height ≥ 4, width ≥ 4], "
                f"got {list(x.shape)}"
            )
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        # Average over the plane: one feature vector an image
        return self.fc(x.mean(dim=(2, 3)))


def _stage(
    blocks: int, in_channels: int, out_channels: int, stride: int, conv: bool
) -> nn.Sequential:
    first = Block(in_channels, out_channels, stride, conv)
    return nn.Sequential(first, *(Block(out_channels, out_channels, 1) for _ in range(blocks - 1)))
