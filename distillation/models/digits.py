r"""
# The pair for the 8×8 handwritten digits

The same base as the CIFAR pair, with one channel and three blocks: images of 8×8 pixels admit three
poolings.
"""

from __future__ import annotations

from torch import nn

from distillation.errors import ConfigError
from distillation.models.vgg import VGG


class DigitsLargeModel(VGG):
    """
    ### Large model

    Blocks 32,32 | 64,64 | 128, with dropout before each convolution but the first: an 8×8 image
    has few pixels to lose.
    """

    def __init__(
        self, num_classes: int = 10, *, dropout: float = 0.1, batch_statistics: bool = False
    ):
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {dropout}")
        self.dropout = dropout
        super().__init__(
            [[32, 32], [64, 64], [128]],
            num_classes=num_classes,
            in_channels=1,
            batch_statistics=batch_statistics,
        )

    def conv_block(self, in_channels: int, out_channels: int) -> list[nn.Module]:
        block = super().conv_block(in_channels, out_channels)
        return block if in_channels == 1 else [nn.Dropout(self.dropout), *block]


class DigitsSmallModel(VGG):
    """
    ### Small model

    Blocks 16 | 32 | 32: a tenth of the large model's parameters.
    """

    def __init__(self, num_classes: int = 10, *, batch_statistics: bool = False):
        super().__init__(
            [[16], [32], [32]],
            num_classes=num_classes,
            in_channels=1,
            batch_statistics=batch_statistics,
        )
