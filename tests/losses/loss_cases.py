"""The losses between logits that many tests go through, and logits to try them on."""

import loss_formulas as formulas
import torch

from distillation import losses

# name -> (module, formula per row, zero where student equals teacher)
LOSSES = {
    "kl": (losses.LogitsDistillationLoss, formulas.kl, True),
    "reverse_kl": (losses.ReverseKLLoss, formulas.reverse, True),
    "jensen_shannon": (losses.JensenShannonLoss, formulas.js, True),
    "soft_cross_entropy": (losses.SoftCrossEntropyLoss, formulas.cross_entropy, False),
    "mse": (losses.LogitsMSELoss, formulas.squared, True),
    "cosine": (losses.CosineLoss, formulas.cosine, True),
}
WITH_TEMPERATURE = ("kl", "reverse_kl", "jensen_shannon", "soft_cross_entropy")
NEEDS_CLASSES = {"cosine": 1}  # nothing is summed over classes there


def logits(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=dtype)


def make(name, temperature=1.0, **options):
    if name in WITH_TEMPERATURE:
        options["temperature"] = temperature
    return LOSSES[name][0](**options)
