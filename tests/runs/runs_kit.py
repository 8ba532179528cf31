"""What the tests of runs share."""

import multiprocessing

import torch

from distillation import runs

FORK = multiprocessing.get_context("fork")  # a child may be given what cannot be pickled


def save(recorder: runs.Recorder, step: int, best: bool = False) -> None:
    """A checkpoint whose weights and state say its step."""
    weights = {"model": {"w": torch.full((500,), float(step))}}
    recorder.save_checkpoint(step, weights, {"step": step}, {"epoch": 0}, best=best)
