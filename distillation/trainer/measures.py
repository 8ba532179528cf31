"""What each evaluation of a trainer says of a classifier, and of what it has taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distillation.classifier_tally import ClassifierTally, warn_of_guessing
from distillation.trainer import loaders
from distillation.transfer_hook import TransferHook, class_names


class Measures(TransferHook):
    """`TransferHook` for whatever a trainer is given: a classifier is measured, others are not.

    `valid_loaders` are the splits' loaders as this process sees them; `evaluation.json` is of the
    split `watched`. A teacher at chance level is warned of, once.
    """

    tally: ClassifierTally

    def __init__(self, valid_loaders: Mapping[str, Any], watched: str):
        super().__init__(None, watched)
        self.tally, self.loaders = ClassifierTally(), valid_loaders
        self.warned = False

    def on_validate_end(self, engine: Any, split: str, metrics: dict[str, float]) -> None:
        self.classes = class_names(self.loaders.get(split), self.tally.classes)
        super().on_validate_end(engine, split, metrics)
        if self.found is not None and engine.accelerator.is_main_process and not self.warned:
            self.warned = warn_of_guessing(self.found)

    def counted(self, engine: Any, split: str) -> bool:
        if engine.accelerator.num_processes == 1:
            return bool(self.tally)
        # All or none: a process without an image has no sums to add to the others'
        flag = torch.tensor(float(bool(self.tally)), device=engine.device)
        return float(engine._reduce(flag)) == engine.accelerator.num_processes

    def reduce(self, engine: Any, split: str) -> Any:
        return engine._reduce if loaders.is_share(self.loaders[split]) else None
