"""What each training parameter does, seen from outside."""

import warnings

import pytest
import torch
from torch import nn
from trainer_kit import Net, NormNet, Recorder, effect_of, loaders, make, rows, trained, weights

from distillation.errors import ConfigError, ShapeError
from distillation.precision import resolve_precision
from distillation.trainer import Callback, Trainer

# -- the run


@effect_of("max_epochs")
def test_max_epochs_is_the_number_of_passes(tmp_path):
    trainer = trained(tmp_path, max_epochs=3)
    assert len(rows(trainer, "loss.train")) == 3
    assert trainer.run.status == "completed"


@effect_of("max_train_batches")
def test_max_train_batches_ends_an_epoch(tmp_path):
    recorder = Recorder()
    trained(tmp_path, max_epochs=2, max_train_batches=3, phase_callbacks=[recorder])
    assert len(recorder.rates) == 6


@effect_of("max_valid_batches")
def test_max_valid_batches_ends_a_validation(tmp_path):
    class Count(Callback):
        seen = 0

        def on_validation_batch_end(self, context):
            self.seen += 1

    train, _ = loaders()
    _, test = loaders()
    small = type(test)(test.image_set, 16, shuffle=False)
    count = Count()
    params = {"max_epochs": 1, "silent_mode": True, "phase_callbacks": [count]}
    Trainer("plain", tmp_path).train(make(), {**params, "max_valid_batches": 2}, train, small)
    assert count.seen == 2


@effect_of("run_validation_freq")
def test_validation_runs_every_so_many_epochs_and_after_the_last(tmp_path):
    recorder = Recorder()
    trained(tmp_path, max_epochs=5, run_validation_freq=2, phase_callbacks=[recorder])
    assert [epoch for epoch, _ in recorder.results] == [1, 3, 4]


@effect_of("seed")
def test_the_seed_decides_dropout_and_the_generators_come_back(tmp_path):
    results = []
    for seed in (1, 1, 2):
        net = make(NormNet)
        state = torch.get_rng_state()
        trained(tmp_path, net, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(weights(net))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# -- loss and metrics


class Doubled(nn.Module):
    component_names = ["Loss", "Part One"]

    def forward(self, output, target):
        loss = nn.functional.cross_entropy(output, target)
        return 2 * loss, torch.stack([2 * loss, loss]).detach()


@effect_of("loss", "criterion_params")
def test_the_loss_by_name_class_module_or_function(tmp_path):
    recorder = Recorder()
    still = {"initial_lr": 0.0, "valid_metrics_list": [], "phase_callbacks": [recorder]}
    losses = [
        None,
        "CrossEntropyLoss",
        nn.CrossEntropyLoss,
        nn.CrossEntropyLoss(),
        nn.functional.cross_entropy,
        Doubled(),
    ]
    for loss in losses:
        trained(tmp_path, loss=loss, **still)
    trained(tmp_path, loss="CrossEntropyLoss", criterion_params={"reduction": "sum"}, **still)
    values = [next(iter(results.values())) for _, results in recorder.results]
    base = values[0]
    assert values == pytest.approx([base] * 5 + [2 * base, 64 * base], rel=1e-5)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"loss": "CrossEntropyLos"}, "did you mean 'CrossEntropyLoss'"),
        ({"loss": nn.CrossEntropyLoss(), "criterion_params": {"weight": None}}, "has its arg"),
        ({"criterion_params": {"label_smooting": 0.1}}, "did you mean 'label_smoothing'"),
    ],
)
def test_wrong_losses_are_told(tmp_path, params, said):
    with pytest.raises(ConfigError, match=said):
        trained(tmp_path, **params)


def test_a_loss_that_is_no_scalar_is_told(tmp_path):
    with pytest.raises(ShapeError, match=r"it gave shape \(32,\)"):
        trained(tmp_path, loss=nn.CrossEntropyLoss(reduction="none"))


def test_a_target_beyond_the_classes_is_told_before_the_first_step(tmp_path):
    net = make(classes=5)
    before = weights(net)
    with pytest.raises(ShapeError, match="the student has 5 classes"):
        trained(tmp_path, net)
    assert torch.equal(weights(net), before)


@effect_of("train_metrics_list", "valid_metrics_list")
def test_metrics_are_recorded_for_their_split(tmp_path):
    trainer = trained(
        tmp_path,
        train_metrics_list=["Accuracy"],
        valid_metrics_list=["Top5", {"Accuracy": {"top_k": 2}}],
    )
    names = set(trainer.run.summary)
    assert {"accuracy.train", "top5.valid", "accuracy.valid"} <= names
    assert not {"top5.train", "top5_2.valid"} & names
    assert trainer.run.summary["top5.valid"] >= trainer.run.summary["accuracy.valid"]


@effect_of("metric_to_watch", "greater_metric_to_watch_is_better")
@pytest.mark.parametrize(
    ("watch", "greater", "best"),
    [
        (None, None, "greatest Accuracy"),
        ("Accuracy", None, "greatest Accuracy"),
        ("Accuracy", False, "smallest Accuracy"),
        ("Doubled/Loss", None, "smallest Doubled/Loss"),
        ("Part One", None, "smallest Doubled/Part One"),
        ("Part One", True, "greatest Doubled/Part One"),
    ],
)
def test_the_watched_metric_decides_which_checkpoint_is_the_best(tmp_path, watch, greater, best):
    recorder = Recorder()
    trainer = trained(
        tmp_path,
        max_epochs=4,
        initial_lr=1.5,
        loss=Doubled(),
        valid_metrics_list=["Accuracy"],
        metric_to_watch=watch,
        greater_metric_to_watch_is_better=greater,
        phase_callbacks=[recorder],
    )
    kept = torch.load(trainer.checkpoints_dir / "ckpt_best.pth", weights_only=True)["epoch"]
    how, name = best.split(" ", 1)
    values = [results[name] for _, results in recorder.results]
    wanted = max(values) if how == "greatest" else min(values)
    assert kept - 1 == values.index(wanted)


def test_an_unknown_metric_to_watch_is_an_error_with_the_list(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'Accuracy'.*'CrossEntropyLoss/Loss'"):
        trained(tmp_path, valid_metrics_list=["Accuracy"], metric_to_watch="accuracy_")


# -- the step


@effect_of("batch_accumulate")
def test_accumulated_batches_equal_one_large_batch(tmp_path):
    small, large = make(), make()
    loader, _ = loaders(8, shuffle=False)
    trained(tmp_path, small, loader=loader, batch_accumulate=3, max_epochs=2)
    loader, _ = loaders(24, shuffle=False)
    trained(tmp_path, large, loader=loader, max_epochs=2)
    assert torch.allclose(weights(small), weights(large), atol=1e-6)
    assert not torch.allclose(weights(large), weights(make()), atol=1e-3)


@effect_of("clip_grad_norm")
def test_the_gradient_is_clipped(tmp_path):
    net = make()
    before = weights(net)
    trained(tmp_path, net, clip_grad_norm=1e-4, max_train_batches=1, initial_lr=1.0)
    assert (weights(net) - before).norm() == pytest.approx(1e-4, rel=1e-2)


@effect_of("mixed_precision")
@pytest.mark.parametrize("given", [True, "bf16", False, None, "fp16"])
def test_mixed_precision_runs_the_forward_in_it(tmp_path, given):
    seen = []

    class Spy(Net):
        def forward(self, x):
            output = super().forward(x)
            seen.append(output.dtype)
            return output

    net = make(Spy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(tmp_path, net, mixed_precision=given)
    expected = torch.float32 if given in (False, None) else torch.bfloat16
    assert set(seen) == {expected}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    told = any("fp16 needs a GPU" in str(w.message) for w in caught)
    assert told == (given == "fp16")


def test_precision_auto_is_recorded_as_what_it_was(tmp_path):
    expected = resolve_precision("auto", "cpu")
    trainer = trained(tmp_path, make(), mixed_precision="auto", max_train_batches=1)
    assert trainer.run.config["training_params"]["mixed_precision"] == expected


@effect_of("torch_compile_mode")
def test_the_mode_reaches_the_compiler(tmp_path, monkeypatch):
    """Read off torch's own entry, since a CPU compiles alike in all modes that need no GPU."""
    seen, compile_ = [], torch.compile

    def spy(function, **options):
        seen.append(options)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", spy)
    trained(tmp_path, torch_compile=True, torch_compile_mode="reduce-overhead")
    assert seen == [{"mode": "reduce-overhead"}]
    torch._dynamo.reset()
    for params, said in (
        ({}, "has no effect without 'torch_compile'"),
        ({"torch_compile": {"mode": "default"}}, "name two modes"),
    ):
        with pytest.raises(ConfigError, match=said):
            trained(tmp_path, torch_compile_mode="reduce-overhead", **params)
    with pytest.raises(ConfigError, match="did you mean 'backend'"):
        trained(tmp_path, torch_compile={"backnd": "eager"})


def test_a_failure_to_compile_is_a_warning_and_the_training_goes_on(tmp_path):
    def broken(graph, inputs):
        raise RuntimeError("no compiler on this machine")

    net, plain = make(), make()
    with pytest.warns(UserWarning, match="no compiler on this machine"):
        trained(tmp_path, net, torch_compile={"backend": broken})
    trained(tmp_path, plain)
    assert torch.equal(weights(net), weights(plain))
    torch._dynamo.reset()


@effect_of("torch_compile")
def test_the_student_is_compiled_while_it_trains(tmp_path):
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    net, plain = make(), make()
    trained(tmp_path, net, torch_compile={"backend": backend})
    trained(tmp_path, plain)
    assert calls
    assert net._compiled_call_impl is None
    assert torch.equal(weights(net), weights(plain))
    torch._dynamo.reset()


@effect_of("batch_adapter", "forward_adapter", "output_adapter")
def test_adapters_spare_the_model_any_change(tmp_path):
    class Odd(Net):
        def forward(self, *, pixels):
            return {"scores": super().forward(pixels)}

    loader, _ = loaders()
    batches = [{"p": b.images, "t": {"class": b.labels}} for b in loader.batches(0)]
    adapted = []

    def adapter(batch):
        adapted.append(batch)
        return batch.pop("p"), batch["t"]["class"]

    odd, plain = make(Odd), make()
    Trainer("plain", tmp_path).train(
        odd,
        {
            "max_epochs": 1,
            "silent_mode": True,
            "batch_adapter": adapter,
            "forward_adapter": lambda net, x: net(pixels=x),
            "output_adapter": lambda output: output["scores"],
            "train_metrics_list": ["Accuracy"],
        },
        batches,
    )
    trained(tmp_path, plain)
    assert len(adapted) == len(batches)
    assert torch.equal(weights(odd), weights(plain))
