"""What the protocol promises of its parts."""

from __future__ import annotations

from experiments.record.protocol import (
    DISTILLED_TRIALS,
    FULL,
    GROUPS,
    SMALL_TRIALS,
    SMOKE,
    controls,
    large,
    searches,
    students,
)
from experiments.record.training import configuration

CHOSEN = {"small": SMALL_TRIALS[0], "distilled": DISTILLED_TRIALS[0]}


def all_parts(scale):
    parts = [large(scale)]
    for group in CHOSEN:
        parts += searches(scale, group) + students(scale, group, CHOSEN[group])
    return parts + controls(scale, CHOSEN, 8.0)


def test_plain_and_distilled_students_get_as_many_trials():
    assert len(SMALL_TRIALS) == len(DISTILLED_TRIALS) == FULL.trials


def test_students_differ_in_nothing_but_teacher_and_what_was_searched_for():
    plain = [configuration(part) for part in students(FULL, "small", CHOSEN["small"])]
    distilled = [configuration(part) for part in students(FULL, "distilled", CHOSEN["distilled"])]
    searched = set(CHOSEN["small"]) | set(CHOSEN["distilled"])
    for one, other in zip(plain, distilled, strict=True):
        # What a student without a teacher knows nothing of, and how the same model is built
        shared = (one.keys() & other.keys()) - searched - {"model", "loss", "loss_func"}
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
    longer = next(part for part in controls(FULL, CHOSEN, 8.0) if part.key == "longer")
    assert longer.values["epochs"] == FULL.student_epochs + 8 * FULL.large_epochs


def test_students_alone_are_also_trained_with_every_view():
    parts = {part.key: part for part in all_parts(FULL)}
    keys = ("small_0", "all_views", "longer")
    plain, all_views, longer = (configuration(parts[key]) for key in keys)
    assert {k for k in plain if plain[k] != all_views[k]} == {"views_per_image"}
    assert all_views["views_per_image"] == 0
    assert {k for k in all_views if all_views[k] != longer[k]} == {"epochs"}


def test_rehearsal_and_record_have_the_same_groups():
    assert [p.group for p in all_parts(SMOKE)] != []
    assert {p.group for p in all_parts(SMOKE)} == {p.group for p in all_parts(FULL)} == set(GROUPS)


def test_every_part_is_a_valid_configuration_of_its_experiment():
    for part in all_parts(FULL):
        config = configuration(part)
        for key, value in part.values.items():
            if key not in ("recipe", "loss"):
                assert config[key] == value, (part.key, key)
