r"""
# The protocol

Accuracies are of the last epoch, on all test images; no student is chosen on them. Each
hyper-parameter of a small model is chosen on 5,000 held out training images; the students are then
trained on all of them. Three trials of the plain student choose learning rate and weight decay, for
both; three of the distilled one, with these, choose its temperature and weights. So plain and
distilled differ in the loss alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LARGE = "experiments.cifar10.large"
SMALL = "experiments.cifar10.small"
DISTILL = "experiments.cifar10.distill"

MODULES = {"large": LARGE, "distilled": DISTILL, "small": SMALL}

# What each search may choose from, a trial each
TRIALS = {
    "large": (
        {"dropout": 0.1},
        {"dropout": 0.0},
        {"dropout": 0.0, "optimizer.learning_rate": 0.03},
    ),
    "small": (
        {"optimizer.learning_rate": 0.1, "optimizer.weight_decay": 5e-4},
        {"optimizer.learning_rate": 0.1, "optimizer.weight_decay": 2e-4},
        {"optimizer.learning_rate": 0.05, "optimizer.weight_decay": 5e-4},
    ),
    "distilled": (
        {"temperature": 4.0, "soft_targets_weight": 0.9, "label_loss_weight": 0.1},
        {"temperature": 2.0, "soft_targets_weight": 0.9, "label_loss_weight": 0.1},
        {"temperature": 4.0, "soft_targets_weight": 0.5, "label_loss_weight": 0.5},
    ),
}
# Whose choice a group's trials and students take over, before their own
BASES = {"distilled": "small"}

# The groups, in the order of the record's list of runs, and what the table calls them
GROUPS = {
    "search_large": "search for the large model, on held out images",
    "large": "Large (teacher)",
    "search_small": "search for the plain student, on held out images",
    "small": "Small, alone",
    "search_distilled": "search for the distilled student, on held out images",
    "distilled": "Small, distilled",
    "labml": "control: the tutorial's recipe and loss",
    "smoothing": "control: alone, label smoothing 0.1",
    "all_views": "control: alone, every view of each image",
    "untrained": "an untrained large model",
    "from_untrained": "control: distilled from an untrained teacher",
    "longer": "control: alone, every view, with its share of the large model's compute",
}
# Which search chooses for which models
SEARCHES = {group: f"search_{group}" for group in TRIALS}
# What was hoped for, and said, before anything was run; the margin is distilled over alone
TARGETS = {"large": 0.91, "distilled": 0.89, "margin": 0.007}
# What the tutorial publishes, and where
PUBLISHED = {"large": 0.85, "small": 0.80, "distilled": 0.82}
TUTORIAL = (
    "*The tutorial's* figures are those that the "
    "[labml_nn tutorial](https://nn.labml.ai/distillation/) publishes, on the original "
    "images."
)
# What was tried before the protocol had its present form
EARLIER = (
    "Two large models were trained before this one, and thrown away when their test accuracy was "
    "known to be too low for a teacher: 87.66 % after 12 epochs without dropout, and 87.13 % after "
    "20 epochs with dropout 0.1, batches of 64 and a learning rate of 0.05. That is why this one "
    "is trained for longer than the first, with what a search on held out images has found. The "
    "distilled student's search was first to choose its weight decay, too; two epochs into its "
    "first trial it was given the plain student's optimizer, for the two to differ in the loss "
    "alone."
)


@dataclass(frozen=True)
class Scale:
    """
    ### How much of everything

    Epochs, images, seeds; the full protocol and its rehearsal differ in nothing else.
    """

    # Passes over the training images
    large_epochs: int = 24
    student_epochs: int = 30
    search_epochs: int = 8
    large_search_epochs: int = 4
    # Seeds of the plain students and of the distilled one
    seeds: int = 3
    # Trials of each search, at most
    trials: int = 3
    # Training images kept back in a search
    holdout: int = 5000
    # Views of each image that a student sees, in training and in a search
    views: int = 16
    search_views: int = 8
    # As all are trained; the large model is worth two threads
    precision: str = "bf16"
    threads: int = 1
    large_threads: int = 2
    # Images that the untrained teacher's running statistics are taken from
    statistics: int = 2560
    # Whether the large model may have learned nothing, as in a rehearsal of seconds
    weak_teacher: bool = False


FULL = Scale()
# The rehearsal: every part, at the smallest size
SMOKE = Scale(
    large_epochs=1,
    student_epochs=1,
    search_epochs=1,
    large_search_epochs=1,
    seeds=2,
    trials=2,
    holdout=20,
    views=2,
    search_views=2,
    precision="fp32",
    large_threads=1,
    statistics=128,
    weak_teacher=True,
)


@dataclass(frozen=True)
class Part:
    """
    ### One run of the protocol

    * `key` names it and its files: the group, then the trial or the seed
    * `module` is the experiment that trains it, `values` what is set in it
    * `learns_from` is the key of its teacher, `weak_teacher` allows one that knows nothing
    """

    key: str
    group: str
    module: str
    values: Mapping[str, Any] = field(default_factory=dict)
    learns_from: str | None = None
    weak_teacher: bool = False


def searches(scale: Scale, group: str, base: Mapping[str, Any] | None = None) -> list[Part]:
    """
    ### Trials on held out training images

    `base` are values that all trials of the group have, of `BASES`. A distilled student's teacher
    has been trained on the images that are held out here. That flatters all its trials, and those
    the most that follow the teacher most closely.
    """
    small = group != "large"
    values = {
        "epochs": scale.search_epochs if small else scale.large_search_epochs,
        "holdout": scale.holdout,
        "views_per_image": scale.search_views if small else 0,
        "seed": 0,
        **_common(scale),
        **(base or {}),
    }
    return [
        _part(scale, f"{SEARCHES[group]}_{i}", SEARCHES[group], MODULES[group], values | trial)
        for i, trial in enumerate(TRIALS[group][: scale.trials], 1)
    ]


def large(scale: Scale, chosen: Mapping[str, Any]) -> Part:
    """
    ### The large model, once

    14,728,266 parameters, with running statistics. What its search does not name, weight decay and
    batches, is the experiment's own; `chosen` is what was found. `EARLIER` says what was before it.
    """
    values = {"epochs": scale.large_epochs, "seed": 0, **_common(scale), **chosen}
    values["threads"] = scale.large_threads
    return Part("large", "large", LARGE, values)


def students(
    scale: Scale, group: str, chosen: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> list[Part]:
    """
    ### Plain and distilled students: the same seeds, epochs, views, batches

    `chosen` is what the search of the group has found, `more` are values on top of it.
    """
    module = MODULES.get(group, SMALL)
    return [
        _part(
            scale,
            f"{group}_{seed}",
            group,
            module,
            _student_values(scale, chosen, seed) | dict(more or {}),
        )
        for seed in range(scale.seeds)
    ]


def controls(
    scale: Scale, chosen: Mapping[str, Mapping[str, Any] | None], ratio: float
) -> list[Part]:
    r"""
    ### Controls

    `chosen` holds the searches' findings by group; the controls of a search that has not ended are
    left out. `ratio` is what an image costs the large model, in MACs, over what it costs the small
    one. The student of the tutorial's recipe has Adam at a constant $2.5 \cdot 10^{-4}$ and the
    tutorial's loss, for the epochs of the others; that of the untrained teacher, too, trains on
    soft targets and labels.
    """
    parts = [Part("untrained", "untrained", LARGE, _untrained(scale))]
    if chosen["large"] is not None:
        labml = _student_values(scale, {}, 0) | {"recipe": "labml", "loss": "labml"}
        parts.append(_part(scale, "labml", "labml", DISTILL, labml))
    if chosen["distilled"] is not None:
        distilled = _student_values(scale, chosen["distilled"], 0) | _TABLE
        parts.append(
            Part("from_untrained", "from_untrained", DISTILL, distilled, "untrained", True)
        )
    if chosen["small"] is not None:
        parts += _alone(scale, chosen["small"], ratio)
    return parts


def _alone(scale: Scale, chosen: Mapping[str, Any], ratio: float) -> list[Part]:
    """
    Only the teacher's table has a reason to show the same few views of an image again and again.
    Alone, the small model may be better off with all of them; so it is trained with all, with as
    many seeds, and is trained longer with all. What the large model's training cost is spent on
    training longer; the students of one teacher share it, and so each gets its part.
    """
    alone = _student_values(scale, chosen, 0)
    every_view = {"views_per_image": 0}
    share = round(scale.large_epochs * ratio / scale.seeds)
    longer = alone | every_view | {"epochs": scale.student_epochs + share}
    return [
        *students(scale, "all_views", chosen, every_view),
        _part(scale, "smoothing", "smoothing", SMALL, alone | {"label_smoothing": 0.1}),
        _part(scale, "longer", "longer", SMALL, longer),
    ]


def _untrained(scale: Scale) -> dict[str, Any]:
    """The initial weights: a rate of nothing, and images enough for the running statistics"""
    return dict(large(scale, {}).values) | {
        "epochs": 1,
        "subset": scale.statistics,
        "schedule": "constant",
        "optimizer.learning_rate": 0.0,
        "optimizer.weight_decay": 0.0,
    }


_TABLE = {"teacher_table": "auto"}


def _common(scale: Scale) -> dict[str, Any]:
    return {"precision": scale.precision, "threads": scale.threads}


def _student_values(scale: Scale, chosen: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {
        "epochs": scale.student_epochs,
        "views_per_image": scale.views,
        "seed": seed,
        **_common(scale),
        **chosen,
    }


def _part(scale: Scale, key: str, group: str, module: str, values: Mapping[str, Any]) -> Part:
    if module == DISTILL:
        return Part(key, group, module, {**values, **_TABLE}, "large", scale.weak_teacher)
    return Part(key, group, module, values)
