"""What a model costs: parameters, multiply-accumulates, bytes, latency.

Of a converted model, what its student costs.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distillation.copies import student_copy


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, trainable or not; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def multiply_accumulates(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass over one input of `input_shape` (no batch axis).

    Convolutions, matrix products and attention count, as torch's flop counter has it; two
    floating-point operations are one multiply-accumulate. Runs on a copy in evaluation mode.
    """
    model = student_copy(model).cpu().float().eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *input_shape))
    return counter.get_total_flops() // 2


def model_facts(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """`{"parameters", "macs", "bytes", "input_shape"}`; bytes are those of the state dict."""
    model = student_copy(model)
    state = model.state_dict()
    return {
        "parameters": parameter_count(model),
        "macs": multiply_accumulates(model, input_shape),
        "bytes": sum(t.numel() * t.element_size() for t in state.values()),
        "input_shape": list(input_shape),
    }


@torch.no_grad()
def cpu_latency(
    model: nn.Module, input_shape: tuple[int, ...], repeats: int = 20
) -> dict[str, float]:
    """Milliseconds for one input on one CPU thread: median and quartiles of `repeats` passes."""
    model = student_copy(model).cpu().float().eval()
    image = torch.zeros(1, *input_shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            model(image)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            model(image)
            times.append(1000 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    low, middle, high = torch.tensor(times, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return {"median": float(middle), "lower": float(low), "upper": float(high)}
