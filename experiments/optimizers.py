r"""
# Optimizers

What updates the weights. [`ClassificationConfigs`](classification.html) nests these values under
`optimizer`, so that `--set optimizer.learning_rate=0.05` is one of them.
"""

from typing import Any

import torch
from labml.configs import BaseConfigs, option

from distillation.fused import fused_options


class OptimizerConfigs(BaseConfigs):
    """
    ## Optimizer

    The keys are those of `labml_helpers`, whose own SGD knows neither Nesterov nor weight decay.
    """

    # SGD or Adam
    optimizer: torch.optim.Optimizer = "SGD"
    # Learning rate, $\eta$; the highest one when the schedule is `one_cycle`
    learning_rate: float = 0.1
    # Momentum, $\mu$
    momentum: float = 0.9
    # Look ahead by the momentum
    nesterov: bool = True
    # Weight decay, $\lambda$, of every parameter
    weight_decay: float = 5e-4
    # $\beta_1$ and $\beta_2$ of Adam
    betas: list = [0.9, 0.999]
    # $\epsilon$ of Adam
    eps: float = 1e-8
    # One kernel for all parameters: `auto` where they are on a GPU, `on` or `off`. On a CPU it is
    # faster too, but rounds otherwise.
    fused: str = "auto"
    # Parameters to optimize
    parameters: Any

    _parts = ("parameters",)

    def __init__(self):
        super().__init__(_primary="optimizer")


@option(OptimizerConfigs.optimizer, "SGD")
def _sgd(c: OptimizerConfigs):
    """
    ### Stochastic gradient descent
    """
    parameters = list(c.parameters)
    return torch.optim.SGD(
        parameters,
        lr=c.learning_rate,
        momentum=c.momentum,
        nesterov=c.nesterov and c.momentum > 0,
        weight_decay=c.weight_decay,
        **_fused(c, torch.optim.SGD, parameters),
    )


@option(OptimizerConfigs.optimizer, "Adam")
def _adam(c: OptimizerConfigs):
    """
    ### Adam
    """
    parameters = list(c.parameters)
    return torch.optim.Adam(
        parameters,
        lr=c.learning_rate,
        betas=tuple(c.betas),
        eps=c.eps,
        weight_decay=c.weight_decay,
        **_fused(c, torch.optim.Adam, parameters),
    )


def _fused(c: OptimizerConfigs, kind: type, parameters: list) -> dict[str, bool]:
    """
    ### One kernel, or one for each operation
    """
    if c.fused == "auto":
        return fused_options(kind, parameters)
    return {"fused": c.fused == "on"}
