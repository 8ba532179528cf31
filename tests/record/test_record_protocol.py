"""What the protocol promises of its parts."""

from __future__ import annotations

from collections import Counter

from experiments.record.plan import plan, sizes
from experiments.record.protocol import (
    FULL,
    GROUPS,
    SMOKE,
    TRIALS,
    controls,
    large,
    searches,
    students,
)
from experiments.record.training import configuration

CHOSEN = {group: trials[0] for group, trials in TRIALS.items()}
CHOSEN["distilled"] = CHOSEN["small"] | CHOSEN["distilled"]


def all_parts(scale):
    parts = [large(scale, CHOSEN["large"])]
    for group in CHOSEN:
        parts += searches(scale, group, CHOSEN["small"] if group == "distilled" else None)
    for group in ("small", "distilled"):
        parts += students(scale, group, CHOSEN[group])
    return parts + controls(scale, CHOSEN, 8.0)


def test_plain_and_distilled_students_get_as_many_trials():
    assert len(TRIALS["small"]) == len(TRIALS["distilled"]) == FULL.trials


def test_students_differ_in_nothing_but_the_loss():
    plain = [configuration(part) for part in students(FULL, "small", CHOSEN["small"])]
    distilled = [
        configuration(part)
        for trial in TRIALS["distilled"]
        for part in students(FULL, "distilled", CHOSEN["small"] | trial)
    ]
    for one, other in zip(3 * plain, distilled, strict=True):
        # What a student without a teacher knows nothing of, and how the same model is built
        shared = (one.keys() & other.keys()) - {"model", "loss", "loss_func"}
        assert {k: one[k] for k in shared} == {k: other[k] for k in shared}


def test_students_have_the_same_seeds():
    for group in ("small", "distilled"):
        parts = students(FULL, group, CHOSEN[group])
        assert [part.values["seed"] for part in parts] == [0, 1, 2]


def test_only_searches_hold_images_back():
    for part in all_parts(FULL):
        held_out = configuration(part)["holdout"]
        assert held_out == (5000 if part.group.startswith("search") else 0), part.key


def test_the_control_with_more_compute_trains_for_the_large_models_share():
    longer = next(part for part in controls(FULL, CHOSEN, 9.0) if part.key == "longer")
    # Three students share their teacher
    assert longer.values["epochs"] == FULL.student_epochs + 9 * FULL.large_epochs // 3


def test_students_alone_are_also_trained_with_every_view():
    parts = {part.key: part for part in all_parts(FULL)}
    keys = ("small_0", "all_views_0", "longer")
    plain, all_views, longer = (configuration(parts[key]) for key in keys)
    assert {k for k in plain if plain[k] != all_views[k]} == {"views_per_image"}
    assert all_views["views_per_image"] == 0
    assert {k for k in all_views if all_views[k] != longer[k]} == {"epochs"}


def trials(group):
    """A search that has ended; its second trial was the best."""
    return {
        f"search_{group}_{i}": {
            "key": f"search_{group}_{i}",
            "group": f"search_{group}",
            "seed": 0,
            "config": {"precision": "bf16"},
            "tried": dict(TRIALS[group][i - 1]),
            "accuracy_valid": accuracy,
        }
        for i, accuracy in ((1, 0.7), (2, 0.9), (3, 0.8))
    }


def test_a_part_waits_for_the_search_that_chooses_its_values():
    assert {p.group for p in plan(FULL, {})} == {*("search_large", "search_small", "untrained")}
    known = {p.key: p for p in plan(FULL, trials("small"))}
    for key in ("small_2", "all_views_1", "smoothing", "longer"):
        assert TRIALS["small"][1].items() <= known[key].values.items()
    # What learns from the large model waits for its search, too
    assert not {"distilled_0", "search_distilled_1", "labml", "from_untrained"} & known.keys()


def test_the_distilled_student_has_the_plain_ones_optimizer_and_its_own_loss():
    large, small, own = trials("large"), trials("small"), trials("distilled")
    assert "search_distilled_1" not in {p.key for p in plan(FULL, large)}
    known = {p.key: p for p in plan(FULL, large | small)}
    for i, trial in enumerate(TRIALS["distilled"], 1):
        wanted = TRIALS["small"][1] | trial
        assert wanted.items() <= known[f"search_distilled_{i}"].values.items()
    known = {p.key: p for p in plan(FULL, large | small | own)}
    for key in ("distilled_0", "from_untrained"):
        wanted = TRIALS["small"][1] | TRIALS["distilled"][1]
        assert wanted.items() <= known[key].values.items()


def test_another_precision_is_for_what_is_not_recorded_yet():
    known = {p.key: p for p in plan(FULL, trials("small"), precision="fp32")}
    assert known["search_small_1"].values["precision"] == FULL.precision == "bf16"
    assert known["small_0"].values["precision"] == "fp32"
    unchanged = {p.key: p for p in plan(FULL, trials("small"))}
    for key, part in known.items():
        other = part.values.items() ^ unchanged[key].values.items()
        assert {name for name, _ in other} <= {"precision"}, key


def test_sizes_count_every_part():
    assert sizes(FULL) == Counter(part.group for part in all_parts(FULL))
    assert sizes(FULL)["small"] == sizes(FULL)["all_views"] == FULL.seeds


def test_rehearsal_and_record_have_the_same_groups():
    assert [p.group for p in all_parts(SMOKE)] != []
    assert {p.group for p in all_parts(SMOKE)} == {p.group for p in all_parts(FULL)} == set(GROUPS)


def test_every_part_is_a_valid_configuration_of_its_experiment():
    for part in all_parts(FULL):
        config = configuration(part)
        for key, value in part.values.items():
            if key not in ("recipe", "loss"):
                assert config[key] == value, (part.key, key)
