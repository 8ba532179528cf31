"""Every option of the toolkit door has the effect that it promises."""

from __future__ import annotations

import math
import sys
import textwrap

import pytest
import torch
from toolkit_kit import Accuracy, after, net, rates, train_loader, training, valid_loader, weights

from distillation.errors import ConfigError, RunError
from distillation.precision import resolve_precision
from distillation.toolkit_options import OPTIMIZERS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimize_method_names_the_optimizer(tmp_path, name):
    seen = []

    from distillation.trainer import Callback

    class Spy(Callback):
        def on_training_start(self, context):
            seen.append(context.optimizer)

    started = training(tmp_path, optimize_method=name, max_epoch=1)
    params = started.options.training_params()
    expected, settings = OPTIMIZERS[name]
    assert params["optimizer"] == expected
    started.options.training_params = lambda **more: {
        **params,
        **more,
        "phase_callbacks": [Spy()],
    }
    started.start_kd_training()
    assert type(seen[0]).__name__ == expected
    assert {k: seen[0].defaults[k] for k in settings} == settings


def test_the_cosine_runs_over_the_epochs_after_the_warm_up(tmp_path):
    got = rates(tmp_path, max_epoch=6, scheduler_method="cosine_anneal", num_lr_warm_up_epoch=2)
    # The row of an epoch has the rate of the next step; the last one's, that of its own last
    assert got[0] == pytest.approx(0.01 * 2 / 3)
    assert got[1] == pytest.approx(0.01)
    assert got[3] == pytest.approx((0.01 + 1e-6) / 2, rel=1e-4)
    last = (1 + math.cos(math.pi * 15 / 16)) / 2
    assert got[5] == pytest.approx(1e-6 + (0.01 - 1e-6) * last)


def test_the_linear_decay_reaches_zero_at_the_last_epoch(tmp_path):
    got = rates(
        tmp_path, max_epoch=6, scheduler_method="linear_decay_with_warm_up", num_lr_warm_up_epoch=2
    )
    assert got[:2] == pytest.approx([0.01 * 2 / 3, 0.01])
    assert got[2:] == pytest.approx([0.0075, 0.005, 0.0025, 0.01 / 16])


def test_without_a_scheduler_the_rate_stays(tmp_path):
    assert rates(tmp_path, max_epoch=3) == [0.01] * 3
    warm = rates(tmp_path, max_epoch=3, num_lr_warm_up_epoch=1)
    assert warm == pytest.approx([0.01] * 3)


def test_a_warm_up_slows_the_first_epoch(tmp_path):
    quick = after(tmp_path, max_epoch=2, optimize_method="sgd")
    slow = after(tmp_path, max_epoch=2, optimize_method="sgd", num_lr_warm_up_epoch=1)
    start = weights(net())
    assert (slow - start).norm() < (quick - start).norm()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 8.0),
        ("learning_rate", 0.02),
        ("seed", 1),
        ("max_epoch", 3),
        ("final_loss_coeff_dict", {"kd_loss": 0.9, "ce_loss": 0.1}),
        ("accumulate_grad_batches", 2),
    ],
)
def test_the_training_depends_on(tmp_path, option, value):
    assert not torch.equal(after(tmp_path), after(tmp_path, **{option: value}))


def test_accumulated_batches_equal_a_large_one(tmp_path):
    student = net()
    student[2].p = 0.0
    order = {"max_epoch": 1, "optimize_method": "sgd", "learning_rate": 0.5}
    fixed = torch.utils.data.DataLoader(train_loader().dataset, batch_size=16)
    whole = torch.utils.data.DataLoader(train_loader().dataset, batch_size=64)
    one = training(tmp_path, student, train_data_loader=fixed, accumulate_grad_batches=4, **order)
    one.start_kd_training()
    other_student = net()
    other_student[2].p = 0.0
    other = training(tmp_path, other_student, train_data_loader=whole, **order)
    other.start_kd_training()
    torch.testing.assert_close(weights(student), weights(other_student), rtol=1e-5, atol=1e-7)


def test_sixteen_bits_on_a_cpu_are_bf16_with_a_warning(tmp_path):
    seen = []
    student = net()
    student[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with pytest.warns(UserWarning, match="fp16 needs a GPU; bf16 is used"):
        after(tmp_path, student=student, precision=16)
    assert set(seen) == {torch.bfloat16}


def test_precision_auto_is_what_the_device_is_fast_at(tmp_path):
    seen = []
    student = net()
    student[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    after(tmp_path, student=student, precision="auto")
    fast = {"bf16": torch.bfloat16, "fp32": torch.float32}[resolve_precision("auto")]
    assert set(seen) == {fast}


def test_deterministic_asks_for_deterministic_algorithms_and_gives_the_setting_back(tmp_path):
    class Spy(Accuracy):
        def run_inference_pipeline(self, model, data_loader):
            self.calls.append(torch.are_deterministic_algorithms_enabled())
            return {"inference_result": 0.0}

    spy = Spy()
    loaders = {"v": valid_loader()}
    after(
        tmp_path,
        deterministic=True,
        max_epoch=1,
        val_data_loaders=loaders,
        inference_pipeline=spy,
    )
    assert spy.calls == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_callers_warnings_of_determinism_stay_warnings(tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        after(tmp_path, max_epoch=1)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gpu_that_is_not_there_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="num_gpu_used=2, but no GPU is here"):
        started = training(tmp_path, num_gpu_used=2)
    assert started.trainer.device == "cpu"


def test_a_training_is_resumed_and_its_results_are_whole(tmp_path):
    class Stops(Accuracy):
        def run_inference_pipeline(self, model, data_loader):
            result = super().run_inference_pipeline(model, data_loader)
            if len(self.calls) == 2 and self.stop:
                raise KeyboardInterrupt
            return result

    def start(stop, **options):
        pipeline = Stops()
        pipeline.stop = stop
        return training(
            tmp_path,
            max_epoch=4,
            scheduler_method="cosine_anneal",
            val_data_loaders={"v": valid_loader()},
            inference_pipeline=pipeline,
            **options,
        )

    whole = start(False)
    whole.start_kd_training()
    stopped = start(True)
    with pytest.raises(KeyboardInterrupt):
        stopped.start_kd_training()
    again = start(False, resume_from_checkpoint=stopped.run.uuid)
    again.start_kd_training()
    assert again.run.uuid == stopped.run.uuid
    assert again.results == whole.results
    assert len(again.results["v"]) == 4
    assert torch.equal(weights(again.student_model), weights(whole.student_model))


def test_resume_from_an_unknown_run_is_an_error(tmp_path):
    with pytest.raises(RunError):
        training(tmp_path, resume_from_checkpoint="abcdef12").start_kd_training()
    after(tmp_path, resume_from_checkpoint="", max_epoch=1)  # the toolkit's way to say none


def test_what_is_to_be_logged_is_in_the_record(tmp_path):
    started = training(
        tmp_path, logging_param={"note": "first"}, comet_exp_name="one", experiment_name="digits"
    )
    started.start_kd_training()
    run = started.run
    assert run.config["logging_param"] == {"note": "first"}
    assert run.config["toolkit"]["temperature"] == 1.0
    assert run.comment == "one"
    assert run.experiment == "digits"
    assert run.path.is_relative_to(tmp_path)


def test_silent_mode_prints_nothing(tmp_path, capsys):
    after(tmp_path, max_epoch=1)
    assert capsys.readouterr().out == ""
    after(tmp_path, max_epoch=1, silent_mode=False)
    assert "loss.train" in capsys.readouterr().out


@pytest.mark.parametrize("lines", [None, "key\n"])
def test_comet_without_its_file_is_a_warning_and_the_local_record(tmp_path, lines):
    path = tmp_path / "comet.txt"
    if lines is not None:
        path.write_text(lines)
    started = training(tmp_path, log_to_comet=True, comet_info_path=str(path), max_epoch=1)
    with pytest.warns(UserWarning, match=r"log_to_comet: .*The run store records the run"):
        started.start_kd_training()
    assert started.run.status == "completed"


COMET = """
__version__ = "3.50.0"
rows = []
class ExperimentConfig:
    def __init__(self, name): self.name = name
class Experiment:
    def log_parameters(self, values): rows.append(("parameters", values))
    def log_metrics(self, values, step=None, **rest): rows.append(("metrics", values))
    def log_metric(self, name, value, step=None, **rest): rows.append(("metrics", {name: value}))
    def log_other(self, *args, **rest): pass
    def set_step(self, step): pass
    def end(self): rows.append(("end", None))
def start(project_name, api_key, workspace, experiment_config):
    if api_key == "broken": raise RuntimeError("no network")
    rows.append(("start", (project_name, api_key, workspace, experiment_config.name)))
    return Experiment()
"""


@pytest.fixture
def comet(tmp_path, monkeypatch):
    """Comet's package as far as it is used, since the real one needs a key and a network."""
    import accelerate.utils

    folder = tmp_path / "package" / "comet_ml"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(textwrap.dedent(COMET))
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(accelerate.utils, "is_comet_ml_available", lambda: True)
    yield
    sys.modules.pop("comet_ml", None)


def test_comet_gets_key_project_workspace_and_name(tmp_path, comet):
    (tmp_path / "info.txt").write_text("key\nproject\nworkspace\n")
    after(
        tmp_path,
        log_to_comet=True,
        comet_info_path=str(tmp_path / "info.txt"),
        comet_exp_name="one",
        val_data_loaders={"v": valid_loader()},
        inference_pipeline=Accuracy(),
    )
    rows = sys.modules["comet_ml"].rows
    assert rows[0] == ("start", ("project", "key", "workspace", "one"))
    logged = [values for kind, values in rows if kind == "metrics"]
    assert any("inference_result.v" in values for values in logged)
    assert rows[-1][0] == "end"


def test_comet_without_a_network_is_a_warning(tmp_path, comet):
    (tmp_path / "info.txt").write_text("broken\nproject\nworkspace\n")
    with pytest.warns(UserWarning, match="no network"):
        after(
            tmp_path,
            log_to_comet=True,
            comet_info_path=str(tmp_path / "info.txt"),
            comet_exp_name="one",
        )


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("optimize_method", "adamw", "unknown optimize_method 'adamw'"),
        ("scheduler_method", "cosine", "unknown scheduler_method 'cosine'; did you mean 'cosine_a"),
        ("precision", 64, "unknown precision '64'"),
        ("temperature", 0, "'temperature' is 0"),
        ("max_epoch", 0, "'max_epoch' is 0"),
        ("num_lr_warm_up_epoch", 2, "leaves none of the 2 epochs"),
        ("accumulate_grad_batches", 0, "'accumulate_grad_batches' is 0"),
        ("seed", "one", "'seed' must be int"),
    ],
)
def test_a_value_that_is_not_valid_is_named(tmp_path, option, value, match):
    with pytest.raises(ConfigError, match=match):
        training(tmp_path, **{option: value})


def test_options_of_the_trainer_below_are_taken_where_they_ask_for_nothing(tmp_path):
    neutral = {"accelerator": None, "num_nodes": 1, "track_grad_norm": -1, "logging_param": None}
    training(tmp_path, max_epoch=1, **neutral).start_kd_training()
    with pytest.raises(ConfigError, match=r"'num_nodes' can only be 1 here: `accelerate launch"):
        training(tmp_path, num_nodes=2)
