"""Distillation for dense prediction: segmentation maps and feature maps."""

from __future__ import annotations

from torch import Tensor

from distillation.errors import ConfigError, ShapeError, unknown
from distillation.losses.checks import (
    check_integer,
    check_pair,
    check_rows,
    check_temperature,
)
from distillation.losses.functional import kl_divergence
from distillation.losses.interface import DistillationLoss

MODES = ("channel_wise", "spatial_wise")


class ChannelWiseKnowledgeDistillationLoss(DistillationLoss):
    r"""KL between where student and teacher look, channel by channel.

    "channel_wise": a softmax with temperature T over the H·W positions of each channel gives the
    teacher's $p_{b,c}$ and the student's $q_{b,c}$; mean over the channels.

    $$\frac{T^2}{B C} \sum_{b,c} \operatorname{KL}(p_{b,c} \| q_{b,c})$$

    "spatial_wise": a softmax over the channels at each position, mean over the B·H·W positions.

    $$\frac{T^2}{B H W} \sum_{b,i} \operatorname{KL}(p_{b,i} \| q_{b,i})$$

    Zero where student equals teacher.

    With `ignore_index`, positions whose `target` (B, H, W) has that value do not exist: they are
    left out of the softmax ("channel_wise") or are no rows ("spatial_wise"), and the mean is over
    the channels of images with any position left, or over the positions left. (SuperGradients
    drops their terms after the softmax, which is then no divergence: it can be negative.)

    Args:
        normalization_mode: "channel_wise" or "spatial_wise".
        temperature: T > 0.
        ignore_index: see above; `target` is then required, and refused without one.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction" (2021),
    equations 5 to 7, arXiv 2011.13256.
    """

    def __init__(
        self,
        normalization_mode: str = "channel_wise",
        temperature: float = 4.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if normalization_mode not in MODES:
            raise ConfigError(unknown("normalization_mode", normalization_mode, MODES))
        self.normalization_mode = normalization_mode
        self.temperature = check_temperature(temperature)
        self.ignore_index = (
            None if ignore_index is None else check_integer("ignore_index", ignore_index)
        )

    def keywords(self) -> frozenset[str]:
        return frozenset(() if self.ignore_index is None else {"target"})

    def forward(
        self, student_output: Tensor, teacher_output: Tensor, target: Tensor | None = None
    ) -> Tensor:
        """A scalar from maps (B, C, H, W), both of one shape.

        Raises:
            ShapeError: maps that are not 4-D, or shapes that differ.
            ConfigError: `target` missing with an ignore index, or given without one.
        """
        check_pair(student_output, teacher_output, 1)
        if student_output.dim() != 4:
            raise ShapeError(
                f"maps must be (batch, channels, height, width), not {tuple(student_output.shape)}."
            )
        if (target is None) != (self.ignore_index is None):
            raise ConfigError(
                f"{type(self).__name__} has ignore_index={self.ignore_index} and "
                + ("needs target=…." if target is None else "would not use target; leave it away.")
            )
        student, teacher = student_output.flatten(2), teacher_output.flatten(2)
        counted = None
        if target is not None:
            target = check_rows("target", target, student_output, 1)
            counted = target.flatten(1) != self.ignore_index
        if self.normalization_mode == "spatial_wise":
            return kl_divergence(student, teacher, self.temperature, dim=1, mask=counted)
        rows = None
        if counted is not None:
            left_out = ~counted.unsqueeze(1)
            student = student.masked_fill(left_out, float("-inf"))
            teacher = teacher.masked_fill(left_out, float("-inf"))
            rows = counted.any(1, keepdim=True).expand(student.shape[:2])
        return kl_divergence(student, teacher, self.temperature, mask=rows)

    def extra_repr(self) -> str:
        return (
            f"{self.normalization_mode!r}, temperature={self.temperature}, "
            f"ignore_index={self.ignore_index}"
        )
