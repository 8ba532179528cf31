"""Metrics of the student, on the device."""

import pytest
import torch
from torch import nn
from trainer_kit import loaders, trained

from distillation.errors import ConfigError
from distillation.trainer.metrics import MetricSet, resolve_watch, slug

import torchmetrics  # isort: skip  (distillation declares the operators that it needs)

LOGITS = torch.tensor([[3.0, 1, 2], [1, 3, 2], [1, 2, 3], [3, 2, 1]])
TARGET = torch.tensor([0, 1, 1, 2])


def value(entry, logits=LOGITS, target=TARGET):
    metrics = MetricSet([entry])
    metrics.update(logits, target)
    return metrics.compute()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("Accuracy", {"Accuracy": 0.5}),
        ({"Accuracy": {"top_k": 2}}, {"Accuracy": 0.75}),
        ("Top5", {"Top5": 1.0}),
        ({"MulticlassAccuracy": {"num_classes": 3, "average": "micro"}}, None),
        (torchmetrics.MeanMetric, None),
    ],
)
def test_a_metric_by_name_class_or_arguments(entry, expected):
    if expected is not None:
        assert value(entry) == pytest.approx(expected)
    elif isinstance(entry, dict):
        with pytest.raises(ConfigError, match="unknown metric 'MulticlassAccuracy'"):
            MetricSet([entry])
    else:
        assert MetricSet([entry]).names() == ["MeanMetric"]


def test_a_name_of_torchmetrics():
    entry = {"F1Score": {"task": "multiclass", "num_classes": 3}}
    (name,) = MetricSet([entry]).names()
    assert name == "MulticlassF1Score"


def test_accuracy_over_maps_and_soft_targets():
    maps = LOGITS.T[None].clone()  # (1, 3, 4): four positions
    assert value("Accuracy", maps, TARGET[None]) == {"Accuracy": 0.5}
    assert value("Accuracy", LOGITS, nn.functional.one_hot(TARGET)) == {"Accuracy": 0.5}


def test_equal_metrics_get_names_of_their_own():
    assert MetricSet(["Accuracy", "Accuracy", "Top5"]).names() == [
        "Accuracy",
        "Accuracy_2",
        "Top5",
    ]


def test_the_mean_is_over_samples_not_over_batches():
    metrics = MetricSet(["Accuracy"])
    metrics.update(LOGITS[:3], TARGET[:3])
    metrics.update(LOGITS[3:], TARGET[3:])
    assert metrics.compute() == {"Accuracy": 0.5}
    metrics.reset()
    assert metrics.compute() == {}


def test_the_state_goes_on_in_the_middle_of_an_epoch():
    metrics, other = MetricSet(["Accuracy"]), MetricSet(["Accuracy"])
    metrics.update(LOGITS[:3], TARGET[:3])
    other.load_state_dict(metrics.state_dict())
    other.update(LOGITS[3:], TARGET[3:])
    assert other.compute() == {"Accuracy": 0.5}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("Acuracy", r"did you mean 'Accuracy'\?.*; distillation\.trainer\.metric_names\(\) lists"),
        ({"Accuracy": {"topk": 2}}, "cannot be made with"),
        ({"a": {}, "b": {}}, "with one name"),
        (3, "a metric must be a name"),
        (nn.Identity(), "a metric must be"),
    ],
)
def test_wrong_metrics_are_told(entry, said):
    with pytest.raises(ConfigError, match=said):
        MetricSet([entry])


@pytest.mark.parametrize(
    ("output", "target", "said"),
    [
        ([LOGITS, LOGITS], TARGET, "'Accuracy' cannot measure the student's output, a list of 2"),
        (LOGITS, None, "against the target, a NoneType"),
        (LOGITS, TARGET[:-1], r"against the target, a tensor of shape \("),
    ],
)
def test_what_a_metric_cannot_measure_is_told(output, target, said):
    with pytest.raises(ConfigError, match=said):
        MetricSet(["Accuracy"]).update(output, target)


def test_a_metric_that_gives_no_number_is_told():
    entry = {"Accuracy": {}}
    metrics = MetricSet([entry])
    metrics.metrics["Accuracy"].compute = lambda: torch.ones(3)
    metrics.update(LOGITS, TARGET)
    with pytest.raises(ConfigError, match=r"shape \(3,\)"):
        metrics.compute()


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Accuracy", "accuracy"),
        ("KDLogitsLoss/Loss", "loss"),
        ("KDLogitsLoss/Task Loss", "loss.task_loss"),
        ("X/Head-0_CE_Loss", "loss.head_0_ce_loss"),
    ],
)
def test_names_in_the_run_store(name, short):
    assert slug(name) == short


def test_the_watched_metric_is_found_by_full_or_short_name():
    metrics = MetricSet(["Accuracy", torchmetrics.MeanSquaredError])
    losses = ["KD/Loss", "KD/Task Loss"]
    assert resolve_watch(None, metrics, losses) == ("Accuracy", True)
    assert resolve_watch("MeanSquaredError", metrics, losses) == ("MeanSquaredError", False)
    assert resolve_watch("KD/Loss", metrics, losses) == ("KD/Loss", False)
    assert resolve_watch("Task Loss", metrics, losses) == ("KD/Task Loss", False)
    assert resolve_watch("Task Loss", metrics, losses, True) == ("KD/Task Loss", True)
    assert resolve_watch(None, MetricSet([]), losses) == ("KD/Loss", False)


class CountingLoss(nn.Module):
    """Cross entropy that counts the batches it was trained with."""

    def __init__(self):
        super().__init__()
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, output, target):
        if self.training:
            self.batches += 1
        return nn.functional.cross_entropy(output, target)


def test_an_evaluation_does_not_train_the_criterion(tmp_path):
    loss = CountingLoss()
    trained(tmp_path, loss=loss, max_epochs=2)
    assert loss.training
    assert loss.batches == 2 * len(loaders()[0])


def test_one_logit_is_a_yes_or_no():
    logits, target = torch.tensor([[2.0], [-1.0], [0.5], [-3.0]]), torch.tensor([1.0, 1, 0, 0])
    assert value("Accuracy", logits, target[:, None]) == {"Accuracy": 0.5}
    assert value("Accuracy", logits, target.long()) == {"Accuracy": 0.5}


class Hits(torchmetrics.Metric):
    """Two numbers, of which the second counts misses."""

    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.add_state("right", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("wrong", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds, target):
        right = (preds.argmax(1) == target).sum()
        self.right += right
        self.wrong += len(target) - right

    def compute(self):
        return {"hits": self.right, "misses": self.wrong}


@pytest.mark.parametrize("wanted", [None, "misses"])
def test_a_metric_that_gives_a_dict_can_choose_the_best_epoch(tmp_path, wanted):
    metrics = MetricSet([Hits])
    assert metrics.names() == ["hits", "misses"]
    assert resolve_watch(wanted, metrics, ["Loss"]) == (wanted or "hits", False)
    trained(tmp_path, valid_metrics_list=[Hits], metric_to_watch=wanted)
