"""Losses between student and teacher, and balancers that add them up. Only torch is needed."""

from distillation.errors import no_other
from distillation.losses import functional
from distillation.losses.balancers import (
    STUDENT_LOSS_KEY,
    DistillationLossBalancer,
    StaticLossBalancer,
    UncertaintyLossBalancer,
)
from distillation.losses.dense import ChannelWiseKnowledgeDistillationLoss
from distillation.losses.features import MGDLoss
from distillation.losses.functional import (
    cosine,
    jensen_shannon,
    kl_divergence,
    kl_from_log_probabilities,
    mft_divergence,
    mse_logits,
    reverse_kl,
    soft_cross_entropy,
)
from distillation.losses.interface import DistillationLoss, accepts, route
from distillation.losses.kd import KDLogitsLoss, SegKDLoss
from distillation.losses.labml import LabmlSoftTargetsLoss, labml_soft_targets, labml_weight
from distillation.losses.logits import (
    CosineLoss,
    JensenShannonLoss,
    LogitsDistillationLoss,
    LogitsMSELoss,
    MFTLoss,
    ReverseKLLoss,
    SoftCrossEntropyLoss,
)
from distillation.losses.schedules import ScheduledLossBalancer

__all__ = [
    "STUDENT_LOSS_KEY",
    "ChannelWiseKnowledgeDistillationLoss",
    "CosineLoss",
    "DistillationLoss",
    "DistillationLossBalancer",
    "JensenShannonLoss",
    "KDLogitsLoss",
    "LabmlSoftTargetsLoss",
    "LogitsDistillationLoss",
    "LogitsMSELoss",
    "MFTLoss",
    "MGDLoss",
    "ReverseKLLoss",
    "ScheduledLossBalancer",
    "SegKDLoss",
    "SoftCrossEntropyLoss",
    "StaticLossBalancer",
    "UncertaintyLossBalancer",
    "accepts",
    "cosine",
    "functional",
    "jensen_shannon",
    "kl_divergence",
    "kl_from_log_probabilities",
    "labml_soft_targets",
    "labml_weight",
    "mft_divergence",
    "mse_logits",
    "reverse_kl",
    "route",
    "soft_cross_entropy",
]

__getattr__ = no_other(__name__, __all__)
