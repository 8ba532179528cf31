"""Checkpoints that say one value everywhere, for tests of what is read back."""

from __future__ import annotations

from pathlib import Path

import torch

from distillation.checkpoint import read_checkpoint, write_checkpoint


def write(folder: Path, value: float, size: int = 4) -> None:
    """A checkpoint in which everything says `value`."""
    weights = {"model": {"w": torch.full((size,), value)}, "ema": {"w": torch.full((2,), value)}}
    write_checkpoint(folder, weights, {"value": value}, {"value": value})


def value_of(folder: Path) -> float:
    """The value that everything in a checkpoint says; fails if they disagree."""
    read = read_checkpoint(folder)
    said = {read.state["value"], read.info["value"]}
    said |= set(read.weights["model"]["w"].tolist()) | set(read.weights["ema"]["w"].tolist())
    assert len(said) == 1
    return said.pop()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
