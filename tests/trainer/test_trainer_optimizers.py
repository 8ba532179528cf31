"""The optimizer over the student's parameters."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from trainer_kit import Net, NormNet, effect_of, make, trained, weights

from distillation.errors import ConfigError
from distillation.trainer import Callback
from distillation.trainer.optimizers import make_optimizer
from distillation.trainer.params import TrainingParams


def optimizer(net, **params):
    return make_optimizer(net, TrainingParams.from_any({"max_epochs": 1, **params}))


@effect_of("optimizer", "optimizer_params")
@pytest.mark.parametrize("given", ["adamw", "AdamW", torch.optim.AdamW])
def test_by_name_or_class_with_its_arguments(given, tmp_path):
    made = optimizer(make(), optimizer=given, optimizer_params={"weight_decay": 0.3})
    assert type(made) is torch.optim.AdamW
    assert made.param_groups[0]["weight_decay"] == 0.3
    still = make()
    trained(tmp_path, still, optimizer=given, initial_lr=0.0, optimizer_params={"eps": 1e-3})
    assert torch.equal(weights(still), weights(make()))


def test_an_instance_is_taken_as_it_is_and_trains(tmp_path):
    net = make()
    given = torch.optim.SGD(net.classifier.parameters(), lr=0.5)
    assert optimizer(net, optimizer=given) is given
    trained(tmp_path, net, optimizer=given)
    assert torch.equal(net.features.weight, make().features.weight)
    assert not torch.equal(net.classifier.weight, make().classifier.weight)


def test_an_instance_over_other_parameters_is_refused():
    with pytest.raises(ConfigError, match=r"holds 4 parameters .* not the student's"):
        optimizer(make(), optimizer=torch.optim.SGD(make().parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"optimizer": "SDG"}, "did you mean 'SGD'"),
        ({"optimizer_params": {"momentun": 0.9}}, "did you mean 'momentum'"),
        ({"optimizer_params": {"lr": 0.9}}, "learning rate is 'initial_lr'"),
        ({"optimizer": "LBFGS"}, "LBFGS needs a closure"),
        ({"optimizer": 3}, "must be a name, a class or an instance"),
    ],
)
def test_wrong_ones_are_told(params, said):
    with pytest.raises(ConfigError, match=said):
        optimizer(make(), **params)


def test_a_student_without_trainable_parameters_is_refused():
    with pytest.raises(ConfigError, match="nothing to train"):
        optimizer(make().requires_grad_(False))


@effect_of("initial_lr")
def test_rates_by_prefix_the_longest_wins_and_default_takes_the_rest(tmp_path):
    net = make(NormNet)
    made = optimizer(net, initial_lr={"c": 0.1, "conv": 0.2, "default": 0.3})
    rates = {id(p): g["lr"] for g in made.param_groups for p in g["params"]}
    assert {n: rates[id(p)] for n, p in net.named_parameters()} == {
        "conv.weight": 0.2,
        "conv.bias": 0.2,
        "norm.weight": 0.3,
        "norm.bias": 0.3,
        "classifier.weight": 0.1,
        "classifier.bias": 0.1,
    }
    plain = make()
    trained(tmp_path, plain, initial_lr={"features": 0.0, "default": 0.1})
    assert torch.equal(plain.features.weight, make().features.weight)
    assert not torch.equal(plain.classifier.weight, make().classifier.weight)


def test_a_prefix_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"matches no parameter .*did you mean 'features'"):
        optimizer(make(), initial_lr={"feature_s": 0.1, "default": 0.3})


def test_parameters_without_a_rate_are_told():
    with pytest.raises(ConfigError, match=r"2 parameters .*'classifier.weight'.*Add a 'default'"):
        optimizer(make(), initial_lr={"features": 0.1})


@effect_of("zero_weight_decay_on_bias_and_bn")
def test_biases_and_norms_get_no_weight_decay(tmp_path):
    net = make(NormNet)
    made = optimizer(
        net, optimizer_params={"weight_decay": 0.5}, zero_weight_decay_on_bias_and_bn=True
    )
    decay = {id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
    assert {n for n, p in net.named_parameters() if decay[id(p)] == 0.5} == {
        "conv.weight",
        "classifier.weight",
    }
    assert {decay[id(p)] for p in net.parameters()} == {0.0, 0.5}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.MultiheadAttention])
def test_biases_go_by_many_names(kind):
    net = kind(4, 2) if kind is nn.LSTM else kind(4, 1)
    decayed = {"optimizer_params": {"weight_decay": 0.5}, "zero_weight_decay_on_bias_and_bn": True}
    free = [p for g in optimizer(net, **decayed).param_groups[1:] for p in g["params"]]
    assert {id(p) for p in free} == {id(p) for p in net.parameters() if p.dim() == 1}


@effect_of("finetune")
def test_finetune_trains_the_named_part_only_and_gives_the_flags_back(tmp_path):
    net = make()
    trained(tmp_path, net, finetune=["classifier"])
    assert torch.equal(net.features.weight, make().features.weight)
    assert not torch.equal(net.classifier.weight, make().classifier.weight)
    assert all(p.requires_grad for p in net.parameters())


class Tuned(Net):
    def get_finetune_lr_dict(self, lr):
        return {"classifier": lr, "default": 0}


def test_finetune_true_asks_the_model(tmp_path):
    net = make(Tuned)
    trained(tmp_path, net, finetune=True)
    assert torch.equal(net.features.weight, make().features.weight)
    assert not torch.equal(net.classifier.weight, make().classifier.weight)
    with pytest.raises(ConfigError, match="get_finetune_lr_dict"):
        trained(tmp_path, make(), finetune=True)
    with pytest.raises(ConfigError, match="matches no parameter"):
        trained(tmp_path, make(), finetune=["head"])


def test_a_loss_with_parameters_is_trained_too(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return nn.functional.cross_entropy(output * self.scale, target)

    loss = Scaled()
    trained(tmp_path, make(), loss=loss)
    assert loss.scale != 1


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_fused_on_a_gpu_by_itself_and_on_a_cpu_when_asked_for():
    """The GPU's parameters are fake ones, which torch checks like real ones."""

    class OnGPU(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3, device="cuda"))

    with FakeTensorMode():
        for name, fused in (("SGD", True), ("Adam", True), ("AdamW", True), ("RMSprop", None)):
            made = optimizer(OnGPU(), optimizer=name)
            assert made.defaults.get("fused") is fused, name
        plain = optimizer(OnGPU(), optimizer_params={"foreach": True})
        assert not plain.defaults["fused"]
    assert not optimizer(make()).defaults["fused"]
    assert optimizer(make(), optimizer_params={"fused": True}).defaults["fused"]
    with pytest.raises(ConfigError, match="'fused' needs floating-point parameters"):
        optimizer(make().to(torch.complex64), optimizer_params={"fused": True})


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_fused_on_a_cpu_trains_alike_but_for_rounding(tmp_path, name):
    nets = make(), make()
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    for net, more in zip(nets, ({}, {"fused": True}), strict=True):
        options = {"optimizer_params": {**momentum, **more}, "initial_lr": 0.01}
        trained(tmp_path, net, optimizer=name, max_epochs=2, **options)
    assert torch.allclose(weights(nets[0]), weights(nets[1]), atol=1e-5)
    assert not torch.equal(weights(nets[0]), weights(make()))


def test_resumed_the_kernels_are_those_of_now(tmp_path):
    """Begun fused, gone on with unfused; a fused kernel wants its step counts elsewhere."""
    settings = {"optimizer": "Adam", "initial_lr": 0.01}
    first = trained(tmp_path, make(), optimizer_params={"fused": True}, **settings)
    net = make()
    seen = []

    class Look(Callback):
        def on_training_start(self, context):
            group = context.optimizer.param_groups[0]
            seen.append((group["fused"], len(context.optimizer.state)))

    again = {"max_epochs": 2, "resume_path": first.run.uuid, "phase_callbacks": [Look()]}
    trained(tmp_path, net, **settings, **again)
    assert seen == [(None, 4)]
    whole = make()
    trained(tmp_path, whole, max_epochs=2, **settings)
    assert torch.allclose(weights(net), weights(whole), atol=1e-5)


def test_the_weights_that_a_balancer_learns_do_not_decay():
    balancer = [("balancer.log_variances", nn.Parameter(torch.zeros(2)))]
    params = TrainingParams.from_any(
        {"max_epochs": 1, "initial_lr": 0.1, "optimizer_params": {"weight_decay": 0.5}}
    )
    groups = make_optimizer(make(), params, balancer).param_groups
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]
    assert [id(p) for p in groups[1]["params"]] == [id(p) for _, p in balancer]
