"""A recorded run's model on the test set of its experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillation import data as datasets
from distillation.errors import ConfigError, RunError, unknown
from distillation.runs import Run

DATASETS = ("cifar10", "digits")


def evaluate_run(
    run: Run,
    *,
    data: str | None = None,
    weights: str = "auto",
    device: str | torch.device = "cpu",
    batch_size: int = 500,
    trust: Iterable = (),
) -> dict[str, object]:
    """Accuracy, loss and calibration error of `run` at its step (the last by default).

    run.json says under `evaluation` which data set is meant, `{"dataset": "cifar10"}` or
    `{"dataset": "digits"}`, with the `mean` and `std` of the normalisation, else those in the
    configuration, else the data set's own. `data` is where CIFAR-10 lies.

    Raises:
        RunError: the run says nothing of a data set, or has no such checkpoint.
        ConfigError: `data` for a data set that does not lie anywhere.
        DataError: the data is missing.
    """
    spec = run.info.get("evaluation")
    if not isinstance(spec, Mapping) or "dataset" not in spec:
        raise RunError(
            f"run {run.label} does not say which data set it is evaluated on "
            '("evaluation" in its run.json)'
        )
    test = _test_set(spec, data)
    step = run.resolve_step()
    if weights == "auto":
        weights = "ema" if "ema" in run.weight_names(step) else "model"
    model = run.load_model(step, weights=weights, trust=trust, device=str(device))
    loader = datasets.TensorLoader(
        test,
        batch_size,
        shuffle=False,
        device=device,
        **{key: _statistic(run, spec, key) for key in ("mean", "std")},
    )
    measured = measure(model, loader)
    return {
        "run": run.uuid,
        "experiment": run.experiment,
        "step": step,
        "weights": weights,
        "dataset": spec["dataset"],
        **measured,
    }


@torch.inference_mode()
def measure(model: nn.Module, loader: Iterable) -> dict[str, float | int]:
    """`images`, `accuracy`, `loss` (mean cross entropy, nats) and `ece` of a classifier.

    `loader` yields batches whose first two fields are images and labels.
    """
    logits, labels = [], []
    for batch in loader:
        logits.append(model(batch[0]).float())
        labels.append(batch[1])
    outputs, targets = torch.cat(logits), torch.cat(labels)
    return {
        "images": len(targets),
        "accuracy": (outputs.argmax(-1) == targets).double().mean().item(),
        "loss": F.cross_entropy(outputs.double(), targets).item(),
        "ece": calibration_error(outputs, targets),
    }


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0 … 1, of logits (N, classes) for labels (N,).

    The mean distance between confidence and accuracy over `bins` equal bins of confidence,
    weighted by the samples in each. Guo et al. 2017, "On Calibration of Modern Neural Networks",
    equation 3.
    """
    confidence, predicted = logits.double().softmax(-1).max(-1)
    correct = (predicted == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are open on the left
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gaps.index_add_(0, index, correct - confidence)
    return (gaps.abs().sum() / len(labels)).item()


def check_device(device: str) -> torch.device:
    """`device`, if it is here. Raises ConfigError otherwise."""
    try:
        wanted = torch.device(device)
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used here: {reason}") from error
    return wanted


def _test_set(spec: Mapping, data: str | None) -> datasets.ImageSet:
    name = spec["dataset"]
    if name == "cifar10":
        return datasets.cifar10(data)[1]
    if data is not None:
        raise ConfigError(f"--data is where CIFAR-10 lies; this run is evaluated on {name!r}")
    if name == "digits":
        return datasets.digits(spec.get("seed", 0))[1]
    raise RunError(unknown("data set", name, DATASETS))


def _statistic(run: Run, spec: Mapping, key: str) -> object:
    """`mean` or `std` of the normalisation; None leaves it to the data set."""
    if spec.get(key) is not None:
        return spec[key]
    value = run.config.get(key)
    return value if isinstance(value, (list, tuple)) else None
