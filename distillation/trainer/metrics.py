"""Metrics of the student, kept on the device and read once an epoch (torchmetrics)."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

import distillation.torchvision_guard  # noqa: F401  (torchmetrics imports torchvision)

import torchmetrics  # isort: skip

from distillation.errors import ConfigError, unknown


class Accuracy(torchmetrics.Metric):
    """Share of samples whose target is among the `top_k` largest logits.

    Logits have shape (N, C) or (N, C, ...), targets (N, ...) of class numbers, or the logits'
    shape (soft or one-hot; their largest entry counts). One logit (N, 1, ...), as for
    `BCEWithLogitsLoss`, says "yes" above 0; its targets (N, ...) or (N, 1, ...) do so above 0.5.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, top_k: int = 1, **options: Any):
        super().__init__(**options)
        self.top_k = top_k
        self.add_state("correct", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Count one batch."""
        if preds.dim() > 1 and preds.shape[1] == 1:
            hits = (preds > 0).squeeze(1) == (target > 0.5).reshape(preds.squeeze(1).shape)
            self._count(hits)
            return
        if target.shape == preds.shape:
            target = target.argmax(1)
        if self.top_k == 1:
            hits = preds.argmax(1) == target
        else:
            top = preds.topk(min(self.top_k, preds.shape[1]), dim=1).indices
            hits = (top == target.unsqueeze(1)).any(1)
        self._count(hits)

    def _count(self, hits: torch.Tensor) -> None:
        self.correct += hits.sum()
        self.total += hits.numel()

    def compute(self) -> torch.Tensor:
        """A scalar from 0 to 1."""
        return self.correct / self.total


class Top5(Accuracy):
    """`Accuracy` among the five largest logits."""

    def __init__(self, **options: Any):
        super().__init__(top_k=5, **options)


SHORTCUTS = {"Accuracy": Accuracy, "Top5": Top5}


def make_metric(entry: Any) -> torchmetrics.Metric:
    """A metric from an instance, a class, a name, or `{name: constructor arguments}`.

    Names are `Accuracy`, `Top5` and the classes of torchmetrics. Raises `ConfigError` for an
    unknown name or arguments that the metric does not take.
    """
    options: dict[str, Any] = {}
    if isinstance(entry, Mapping):
        if len(entry) != 1:
            raise ConfigError(f"a metric is {{name: arguments}} with one name, not {dict(entry)!r}")
        ((entry, given),) = entry.items()
        options = dict(given or {})
    if isinstance(entry, str):
        entry = _class(entry)
    if isinstance(entry, torchmetrics.Metric):
        return entry
    if inspect.isclass(entry) and issubclass(entry, torchmetrics.Metric):
        try:
            return entry(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"metric {entry.__name__} cannot be made with {options!r}: {error}"
            ) from error
    raise ConfigError(
        f"a metric must be a name, a torchmetrics class or instance, or {{name: arguments}}, "
        f"not {entry!r}."
    )


def metric_names() -> list[str]:
    """The names that a list of metrics takes: `Accuracy`, `Top5` and those of torchmetrics."""
    return sorted(_classes())


def _class(name: str) -> type:
    known = _classes()
    if name not in known:
        raise ConfigError(unknown("metric", name, known, "distillation.trainer.metric_names()"))
    return known[name]


def _classes() -> dict[str, type]:
    classes = {
        key: value
        for key, value in vars(torchmetrics).items()
        if inspect.isclass(value) and issubclass(value, torchmetrics.Metric)
    }
    return {**classes, **SHORTCUTS}


class MetricSet:
    """Several metrics under unique names, of one split.

    `update(output, target)` per batch, `compute()` once per epoch gives floats in the order of the
    list. With several processes torchmetrics gathers the states.
    """

    per_process = True  #: each process has a state of its own, of the batches that it saw

    def __init__(self, entries: Iterable[Any], device: torch.device | str = "cpu"):
        self.metrics: dict[str, torchmetrics.Metric] = {}
        for entry in entries:
            metric = make_metric(entry).to(device)
            name, number = type(metric).__name__, 1
            while name in self.metrics:
                number += 1
                name = f"{type(metric).__name__}_{number}"
            self.metrics[name] = metric
        self.samples = 0

    def __len__(self) -> int:
        return len(self.metrics)

    def names(self) -> list[str]:
        """Names of the results, in the order of the metrics."""
        return list(self._owners())

    def _owners(self) -> dict[str, torchmetrics.Metric]:
        """The metric behind each result; one that gives a dict is behind each of its keys."""
        return {key: metric for name, metric in self.metrics.items() for key in _keys(name, metric)}

    def update(self, output: Any, target: Any) -> None:
        """Show one batch to every metric, without gradients and without a host sync.

        Raises `ConfigError` naming the metric that cannot take this output and target.
        """
        self.samples += 1
        if torch.is_tensor(output):
            output = output.detach()
        for name, metric in self.metrics.items():
            try:
                metric.update(output, target)
            except torch.OutOfMemoryError:
                raise
            except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
                raise ConfigError(
                    f"metric {name!r} cannot measure the student's output, {_kind(output)}, "
                    f"against the target, {_kind(target)}: {error}. A metric sees what the "
                    "student (in a KDOutput, student_output) gives; choose one that takes it."
                ) from error

    def compute(self) -> dict[str, float]:
        """Value of every metric since the last reset; a metric that gives a dict gives its keys."""
        results: dict[str, float] = {}
        if not self.samples:
            return results
        for name, metric in self.metrics.items():
            value = metric.compute()
            if isinstance(value, Mapping):
                results.update({str(key): _scalar(str(key), v) for key, v in value.items()})
            else:
                results[name] = _scalar(name, value)
        return results

    def reset(self) -> None:
        """Forget every batch."""
        self.samples = 0
        for metric in self.metrics.values():
            metric.reset()

    def higher_is_better(self, name: str) -> bool:
        """The metric's own word; True where it has none."""
        metric = self._owners().get(name)
        better = getattr(metric, "higher_is_better", None)
        return True if better is None else bool(better)

    def state_dict(self) -> dict[str, Any]:
        """The states in the middle of an epoch, as tensors."""
        states = {
            name: {key: _saved(getattr(metric, key)) for key in metric._defaults}
            for name, metric in self.metrics.items()
        }
        counts = {name: metric._update_count for name, metric in self.metrics.items()}
        return {"states": states, "counts": counts, "batches": self.samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of an epoch; metrics that were not there before start empty."""
        self.samples = state["batches"]
        for name, values in state["states"].items():
            if name not in self.metrics:
                continue
            metric = self.metrics[name]
            for key, value in values.items():
                device = metric.device
                loaded = [v.to(device) for v in value] if isinstance(value, list) else value
                setattr(metric, key, loaded.to(device) if torch.is_tensor(loaded) else loaded)
            metric._update_count = state["counts"][name]


def _keys(name: str, metric: torchmetrics.Metric) -> list[str]:
    """What a metric's results are called: its name, or the keys of the dict that it gives."""
    empty = copy.deepcopy(metric)
    empty.sync_on_compute = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = empty.compute()
        except Exception:  # one that cannot say without a batch is taken for a number
            return [name]
    return list(map(str, value)) if isinstance(value, Mapping) else [name]


def _kind(value: Any) -> str:
    if torch.is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    size = f" of {len(value)}" if isinstance(value, list | tuple | Mapping) else ""
    return f"a {type(value).__name__}{size}"


def _saved(value: Any) -> Any:
    if isinstance(value, list):
        return [v.detach().cpu().clone() for v in value]
    return value.detach().cpu().clone()


def _scalar(name: str, value: Any) -> float:
    if torch.is_tensor(value) and value.numel() != 1:
        raise ConfigError(
            f"metric {name!r} gives a tensor of shape {tuple(value.shape)}; the trainer records "
            "numbers. Choose an average, or wrap it in a metric that gives a dict."
        )
    return float(value)


def slug(name: str) -> str:
    """`KDLogitsLoss/Task Loss` as the run store names it: `loss.task_loss`; `Accuracy`:
    `accuracy`."""
    _, _, component = name.rpartition("/")
    plain = "".join(c if c.isalnum() or c == "." else "_" for c in component.lower())
    return f"loss.{plain}" if "/" in name and plain != "loss" else plain


def resolve_watch(
    wanted: str | None,
    metrics: MetricSet,
    losses: list[str],
    greater: bool | None = None,
    kind: str = "metric_to_watch",
) -> tuple[str, bool]:
    """Name and direction (True: maximise) of the metric that chooses the best checkpoint.

    `losses` are full names (`KDLogitsLoss/Loss`), the total first. `wanted` is the exact name of
    a metric or loss, or the short name of a component; None is the first metric, else the total
    loss. Raises `ConfigError` with the list when nothing matches.
    """
    names = [*metrics.names(), *losses]
    if wanted is None:
        found = names[0]
    elif wanted in names:
        found = wanted
    else:
        short = {name.rpartition("/")[2]: name for name in reversed(losses)}
        if wanted not in short:
            raise ConfigError(unknown(kind, wanted, [*names, *short]))
        found = short[wanted]
    if greater is None:
        greater = found not in losses and metrics.higher_is_better(found)
    return found, greater
