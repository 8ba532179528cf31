"""Faults of SuperGradients and the Knowledge Distillation Toolkit, and the tests against them."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent

FAULTS = {
    "ckpt_best with the teacher inside": (
        "trainer/test_trainer_kd.py",
        "test_latest_holds_the_whole_kd_module_and_best_the_student_alone",
    ),
    "best metric lost on resume": (
        "trainer/test_trainer_resume.py",
        "test_the_best_value_comes_back",
    ),
    "EMA rewriting the teacher": (
        "trainer/test_trainer_kd.py",
        "test_the_teacher_is_bit_identical_and_gets_its_flags_back",
    ),
    "use_ema_net ignored in test": (
        "trainer/test_trainer_kd_prediction.py",
        "test_test_measures_the_student_with_or_without_ema",
    ),
    "the teacher's batch-norm statistics changing": (
        "test_kd_module.py",
        "test_the_teacher_stays_frozen_and_in_eval_mode_while_the_student_trains",
    ),
    "a second train() keeping the first models": (
        "trainer/test_trainer_kd.py",
        "test_a_second_training_uses_the_second_models",
    ),
    "unknown arguments swallowed by the trainer": (
        "trainer/test_trainer_kd.py",
        "test_an_unknown_argument_is_refused",
    ),
    "unknown arguments swallowed by the toolkit": (
        "test_toolkit.py",
        "test_an_unknown_argument_is_refused",
    ),
    "mistyped parameters swallowed": (
        "trainer/test_trainer_params.py",
        "test_an_unknown_name_is_told_with_the_nearest",
    ),
    "accumulation not divided, in the trainer": (
        "trainer/test_trainer_effects.py",
        "test_accumulated_batches_equal_one_large_batch",
    ),
    "accumulation not divided, in the toolkit": (
        "test_toolkit_options.py",
        "test_accumulated_batches_equal_a_large_one",
    ),
    "prefixes of initial_lr that silently match nothing": (
        "trainer/test_trainer_optimizers.py",
        "test_a_prefix_that_matches_nothing_is_refused",
    ),
    "loading by order instead of by name": (
        "models/test_models_weights.py",
        "test_tensors_that_fit_by_order_alone_are_refused",
    ),
    "warm-up mode None raising": (
        "trainer/test_trainer_schedules.py",
        "test_warm_up_mode_none_is_no_warm_up",
    ),
    "ce_loss dropped unless the student computes it": (
        "test_toolkit.py",
        "test_the_loss_is_the_weighted_sum_of_distillation_and_cross_entropy",
    ),
    "misspelt coefficient names ignored": (
        "test_toolkit.py",
        "test_a_misspelt_coefficient_is_refused",
    ),
    "a scheduler that ignores max_epoch": (
        "test_toolkit_options.py",
        "test_the_cosine_runs_over_the_epochs_after_the_warm_up",
    ),
    "hyper-parameters overwritten on resume": (
        "trainer/test_trainer_resume.py",
        "test_new_hyper_parameters_win",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_there_is_a_test_against(fault):
    path, name = FAULTS[fault]
    tree = ast.parse((HERE / path).read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
