r"""
# VGG-like networks for CIFAR

One base class builds the network; a model is the widths of its blocks and, by overriding one
hook, what one convolutional layer is made of.

The large model has dropout before each convolution: the paper's teacher is a large model with
regularization, which generalizes better than a small one trained directly.
The two models are those of the [labml_nn experiment](https://nn.labml.ai/distillation/) that this
project rebuilds, after Simonyan & Zisserman 2015, [VGG](https://arxiv.org/abs/1409.1556).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from distillation.errors import ConfigError, ShapeError


class BatchStatisticsNorm2d(nn.Module):
    """
    ### Normalization with the statistics of the batch, also in evaluation

    The original experiment normalizes this way. A sample's output then depends on the other
    samples of its batch, so a teacher built of it gives no reproducible soft targets. Kept for
    comparison, behind `batch_statistics=True`, which warns.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(
            x, None, None, self.weight, self.bias, training=True, eps=self.eps
        )


class VGG(nn.Module):
    """
    ### The base

    * `blocks` are the widths of the convolutions, block by block; a 2×2 max pooling ends a block
    * `num_classes` is the number of logits
    * `in_channels` is the number of channels of an image
    * `batch_statistics` normalizes with the batch's own statistics even in evaluation

    Input `[batch, in_channels, height, width]`, output logits `[batch, num_classes]`.
    Height and width must be at least $2^{blocks}$ pixels.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        batch_statistics: bool = False,
    ):
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {num_classes}")
        if batch_statistics:
            warnings.warn(
                "batch_statistics=True: an image's logits depend on the other images of its "
                "batch, in evaluation too; do not cache or compare such a teacher's outputs",
                stacklevel=3,
            )
        self.batch_statistics = batch_statistics
        self.in_channels = in_channels
        self.smallest_image = 2 ** len(blocks)

        # The convolutional layers
        layers: list[nn.Module] = []
        channels = in_channels
        for block in blocks:
            for width in block:
                layers += self.conv_block(channels, width)
                channels = width
            # Max pooling at the end of each block
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.layers = nn.Sequential(*layers)
        # The final linear layer gives the logits
        self.fc = nn.Linear(channels, num_classes)

    def norm(self, channels: int) -> nn.Module:
        """Running statistics, unless the batch's own were asked for"""
        if self.batch_statistics:
            return BatchStatisticsNorm2d(channels)
        return nn.BatchNorm2d(channels)

    def conv_block(self, in_channels: int, out_channels: int) -> list[nn.Module]:
        """The hook: one convolution, its normalization and its activation"""
        return [
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            self.norm(out_channels),
            nn.ReLU(inplace=True),
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < self.smallest_image:
            raise ShapeError(
                f"{type(self).__name__} takes images [batch, {self.in_channels}, "
                f"height ≥ {self.smallest_image}, width ≥ {self.smallest_image}], "
                f"got {list(x.shape)}"
            )
        # The convolutional layers
        x = self.layers(x)
        # Average what is left of the plane: one feature vector an image
        x = x.mean(dim=(2, 3))
        # Logits
        return self.fc(x)


class LargeModel(VGG):
    """
    ### Large model: 14,728,266 parameters

    Blocks 64,64 | 128,128 | 256×3 | 512×3 | 512×3, with dropout before each convolution.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        dropout: float = 0.1,
        batch_statistics: bool = False,
    ):
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {dropout}")
        self.dropout = dropout
        super().__init__(
            [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3],
            num_classes=num_classes,
            in_channels=in_channels,
            batch_statistics=batch_statistics,
        )

    def conv_block(self, in_channels: int, out_channels: int) -> list[nn.Module]:
        # Dropout before the convolution
        return [nn.Dropout(self.dropout), *super().conv_block(in_channels, out_channels)]


class SmallModel(VGG):
    """
    ### Small model: 437,034 parameters

    Blocks 32,32 | 64,64 | 128 | 128 | 128, no dropout.
    """

    def __init__(
        self, num_classes: int = 10, *, in_channels: int = 3, batch_statistics: bool = False
    ):
        super().__init__(
            [[32, 32], [64, 64], [128], [128], [128]],
            num_classes=num_classes,
            in_channels=in_channels,
            batch_statistics=batch_statistics,
        )
