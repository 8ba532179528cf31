"""Losses between feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillation.errors import ShapeError
from distillation.losses.checks import check_count, check_number, check_tensors, full_precision
from distillation.losses.interface import DistillationLoss


class MGDLoss(DistillationLoss):
    r"""Masked generative distillation: the teacher's map from a student's map with holes.

    $$\alpha \cdot \frac{1}{B C H W}
      \left\| \mathcal{T} - \mathcal{G}(f_{align}(\mathcal{S}) \cdot M) \right\|^2$$

    with a fresh $M_{b,1,i,j} = 0$ with probability $\lambda$, else 1, shared by the channels;
    $\mathcal{G}$ a 3×3 convolution, ReLU and another 3×3 convolution; $f_{align}$ a 1×1 convolution
    when the channel counts differ. The mean is over all elements, as in NVIDIA ModelOpt (the paper
    sums and divides by B). These weights are trained with the student and are then thrown away;
    names and shapes are ModelOpt's, so its state dicts load.

    The mask comes from the generator of the student's device, or from `generator`: after
    `torch.manual_seed` the loss repeats itself. It is drawn in evaluation mode as well. The loss
    is not zero where student equals teacher.

    Args:
        num_student_channels, num_teacher_channels: channels of the two maps, at least 1.
        alpha_mgd: weight of the loss, at least 0.
        lambda_mgd: masked share, in [0, 1].

    Source: Yang et al., "Masked Generative Distillation" (2022), equations 4 to 6,
    arXiv 2205.01529.
    """

    def __init__(
        self,
        num_student_channels: int,
        num_teacher_channels: int,
        alpha_mgd: float = 1.0,
        lambda_mgd: float = 0.65,
    ) -> None:
        super().__init__()
        self.num_student_channels = check_count("num_student_channels", num_student_channels)
        self.num_teacher_channels = check_count("num_teacher_channels", num_teacher_channels)
        self.alpha_mgd = check_number("alpha_mgd", alpha_mgd)
        self.lambda_mgd = check_number("lambda_mgd", lambda_mgd, high=1.0)
        channels = self.num_teacher_channels
        self.align = (
            nn.Identity()
            if self.num_student_channels == channels
            else nn.Conv2d(self.num_student_channels, channels, kernel_size=1)
        )
        self.generation = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        )

    def forward(
        self,
        student_features: Tensor,
        teacher_features: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A scalar from maps (B, C_student, H, W) and (B, C_teacher, H, W).

        Raises:
            ShapeError: maps that are not 4-D, other channel counts than constructed with, or
                another batch or spatial size on one side.
        """
        self._check(student_features, teacher_features)
        # Half-precision features meet float32 weights; autocast decides what the convolutions use.
        features = self.align(student_features.to(self.generation[0].weight.dtype))
        batch, _, height, width = teacher_features.shape
        noise = torch.rand(
            (batch, 1, height, width), device=student_features.device, generator=generator
        )
        generated = self.generation(features * (noise >= self.lambda_mgd))
        reduction = "mean" if batch else "sum"  # of no image there is no mean
        error = F.mse_loss(*full_precision(generated, teacher_features), reduction=reduction)
        return error * self.alpha_mgd

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        check_tensors(student, teacher)
        sides = (
            ("student", student, self.num_student_channels),
            ("teacher", teacher, self.num_teacher_channels),
        )
        for who, features, channels in sides:
            if features.dim() != 4 or features.shape[1] != channels:
                raise ShapeError(
                    f"the {who}'s features have shape {tuple(features.shape)}; this MGDLoss wants "
                    f"(batch, {channels}, height, width)."
                )
        if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
            raise ShapeError(
                "student and teacher features differ in batch, height or width: "
                f"{tuple(student.shape)}, {tuple(teacher.shape)}."
            )

    def extra_repr(self) -> str:
        return (
            f"{self.num_student_channels}, {self.num_teacher_channels}, "
            f"alpha_mgd={self.alpha_mgd}, lambda_mgd={self.lambda_mgd}"
        )
