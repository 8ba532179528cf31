r"""
# The protocol

Accuracies are of the last epoch, on all test images; no student is chosen on them. Each
hyper-parameter of a small model is chosen on 5,000 held out training images, with as many trials
for the plain student as for the distilled one; the students are then trained on all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LARGE = "experiments.cifar10.large"
SMALL = "experiments.cifar10.small"
DISTILL = "experiments.cifar10.distill"

# What the small model's search may choose from: a trial each
SMALL_TRIALS = (
    {"optimizer.learning_rate": 0.1, "optimizer.weight_decay": 5e-4},
    {"optimizer.learning_rate": 0.1, "optimizer.weight_decay": 2e-4},
    {"optimizer.learning_rate": 0.05, "optimizer.weight_decay": 5e-4},
)
# As many for the distilled one
DISTILLED_TRIALS = (
    {"temperature": 4.0, "soft_targets_weight": 0.9, "optimizer.weight_decay": 5e-4},
    {"temperature": 4.0, "soft_targets_weight": 0.9, "optimizer.weight_decay": 2e-4},
    {"temperature": 2.0, "soft_targets_weight": 0.9, "optimizer.weight_decay": 5e-4},
)

# The groups, in the order in which they are run, and what the table calls them
GROUPS = {
    "large": "Large (teacher)",
    "search_distilled": "search for the distilled student, on held out images",
    "distilled": "Small, distilled",
    "labml": "control: the tutorial's recipe and loss",
    "search_small": "search for the plain student, on held out images",
    "small": "Small, alone",
    "smoothing": "control: alone, label smoothing 0.1",
    "all_views": "control: alone, every view of each image",
    "untrained": "an untrained large model",
    "from_untrained": "control: distilled from an untrained teacher",
    "longer": "control: alone, every view, with the large model's share of the compute",
}
SEARCHES = {"small": "search_small", "distilled": "search_distilled"}


@dataclass(frozen=True)
class Scale:
    """
    ### How much of everything

    Epochs, images, seeds; the full protocol and its rehearsal differ in nothing else.
    """

    # Passes over the training images
    large_epochs: int = 20
    student_epochs: int = 30
    search_epochs: int = 8
    # Seeds of the plain and of the distilled student
    seeds: int = 3
    # Trials of each search
    trials: int = 3
    # Training images kept back in a search
    holdout: int = 5000
    # Views of each image that a student sees, in training and in a search
    views: int = 8
    search_views: int = 4
    # As all are trained; a small model has no use for two threads, the large one has
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

    @property
    def title(self) -> str:
        """What it is called in the table"""
        return GROUPS[self.group]


def large(scale: Scale) -> Part:
    """
    ### The large model, once

    14,728,266 parameters, with running statistics, and the experiment's own dropout. Its learning
    rate and weight decay were not searched for. A first one, of 12 epochs without dropout and
    with batches of 128, was right for 87.66 % of the test images: too little to teach, so this one
    is trained longer. That much the test images have said; no student's value was chosen by them.
    """
    values = {
        "epochs": scale.large_epochs,
        "batch_size": 64,
        "optimizer.learning_rate": 0.05,
        "seed": 0,
        "precision": scale.precision,
        "threads": scale.large_threads,
    }
    return Part("large", "large", LARGE, values)


def searches(scale: Scale, group: str) -> list[Part]:
    """
    ### Trials on held out training images

    The student's teacher has been trained on the images that are held out here: that can flatter
    all its trials alike, but does not choose between them.
    """
    module, trials = (SMALL, SMALL_TRIALS) if group == "small" else (DISTILL, DISTILLED_TRIALS)
    values = {
        "epochs": scale.search_epochs,
        "holdout": scale.holdout,
        "views_per_image": scale.search_views,
        "seed": 0,
        **_common(scale),
    }
    return [
        _student(scale, f"{SEARCHES[group]}_{i}", SEARCHES[group], module, values | trial)
        for i, trial in enumerate(trials[: scale.trials], 1)
    ]


def students(scale: Scale, group: str, chosen: Mapping[str, Any]) -> list[Part]:
    """
    ### Plain and distilled students: the same seeds, epochs, views, batches

    `chosen` is what the search of the group has found.
    """
    module = SMALL if group == "small" else DISTILL
    return [
        _student(scale, f"{group}_{seed}", group, module, _student_values(scale, chosen, seed))
        for seed in range(scale.seeds)
    ]


def controls(scale: Scale, chosen: Mapping[str, Mapping[str, Any]], ratio: float) -> list[Part]:
    r"""
    ### Controls

    `chosen` holds both searches' findings by group; `ratio` is what an image costs the large
    model, in MACs, over what it costs the small one. The student of the untrained teacher, too,
    trains on soft targets and labels; that of the tutorial's recipe has Adam at a constant
    $2.5 \cdot 10^{-4}$ and the tutorial's loss, for the epochs of the others.

    Only the teacher's table has a reason to show the same few views of an image again and again.
    Alone, the small model may be better off with all of them; so it has a control with all, and is
    trained longer with all.
    """
    alone = _student_values(scale, chosen["small"], 0)
    distilled = _student_values(scale, chosen["distilled"], 0)
    labml = _student_values(scale, {}, 0) | {"recipe": "labml", "loss": "labml"}
    every_view = alone | {"views_per_image": 0}
    # What the large model's training cost, spent on the small one instead
    longer = every_view | {"epochs": scale.student_epochs + round(scale.large_epochs * ratio)}
    # The initial weights: a rate of nothing, and images enough for the running statistics
    untrained = dict(large(scale).values) | {
        "epochs": 1,
        "subset": scale.statistics,
        "schedule": "constant",
        "optimizer.learning_rate": 0.0,
        "optimizer.weight_decay": 0.0,
    }
    return [
        _student(scale, "labml", "labml", DISTILL, labml),
        _student(scale, "smoothing", "smoothing", SMALL, alone | {"label_smoothing": 0.1}),
        _student(scale, "all_views", "all_views", SMALL, every_view),
        Part("untrained", "untrained", LARGE, untrained),
        Part("from_untrained", "from_untrained", DISTILL, distilled | _TABLE, "untrained", True),
        _student(scale, "longer", "longer", SMALL, longer),
    ]


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


def _student(scale: Scale, key: str, group: str, module: str, values: Mapping[str, Any]) -> Part:
    if module == DISTILL:
        return Part(key, group, module, {**values, **_TABLE}, "large", scale.weak_teacher)
    return Part(key, group, module, values)
