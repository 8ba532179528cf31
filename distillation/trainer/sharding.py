"""FSDP2: parameters, gradients and optimizer state of the student, and the teacher, in shards.

The caller's models stay whole: copies are sharded, and the trained weights come back at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from distillation.errors import ConfigError
from distillation.table_option import is_online
from distillation.trainer.params import TrainingParams

_FULL = StateDictOptions(full_state_dict=True)


def check_fsdp(params: TrainingParams, accelerator: Accelerator, extra: list) -> None:
    """Raise `ConfigError` for what does not go together with sharding."""
    if accelerator.num_processes == 1:
        raise ConfigError(
            "training parameter 'fsdp' shards over processes, and there is one. Start several: "
            "torchrun --nproc-per-node=N, or accelerate launch."
        )
    together = ("ema", "sync_bn", "torch_compile", "average_best_models", "teacher_table")
    for name in together:
        value = getattr(params, name)
        if value and not (name == "teacher_table" and is_online(value)):
            raise ConfigError(f"training parameters 'fsdp' and {name!r} do not go together.")
    if extra:
        raise ConfigError(
            f"training parameter 'fsdp' shards the student alone, and the losses or adapters have "
            f"{len(extra)} parameters of their own ({extra[0][0]!r})."
        )
    if isinstance(params.optimizer, torch.optim.Optimizer):
        raise ConfigError(
            "training parameter 'fsdp' needs the optimizer by name or class: an instance holds "
            "whole parameters, and shards take their place."
        )


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """A sharded copy: every direct child is gathered when it runs, and freed afterwards."""
    copied = copy.deepcopy(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for child in copied.children():
        if any(True for _ in child.parameters()) and type(child).forward is not nn.Module.forward:
            fully_shard(child, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    return copied


class Whole:
    """A sharded module as checkpoints see it: whole tensors under the model's own names.

    Every process must ask at the same time (`collective`).
    """

    collective = True

    def __init__(self, module: nn.Module):
        self.module = module

    def modules(self) -> Iterator[nn.Module]:
        """The module's own."""
        return self.module.modules()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Gathered weights, on every process."""
        return get_model_state_dict(self.module, options=_FULL)

    def load_state_dict(self, state: Mapping[str, torch.Tensor], strict: bool = True) -> None:
        """Give each process its shards of whole weights."""
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.module, dict(state), options=options)


class WholeOptimizer:
    """An optimizer over shards whose state is saved whole, by parameter name."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer):
        self.module, self.optimizer = module, optimizer

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def state_dict(self) -> dict[str, Any]:
        """Gathered state, on every process."""
        return get_optimizer_state_dict(self.module, self.optimizer, options=_FULL)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give each process its shards of a whole state."""
        set_optimizer_state_dict(self.module, self.optimizer, state, options=_FULL)
