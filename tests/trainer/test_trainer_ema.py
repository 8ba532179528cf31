"""The moving average of the student's weights."""

import math

import pytest
import torch
from trainer_kit import NormNet, effect_of, make, trained, weights

from distillation.errors import ConfigError
from distillation.trainer import StudentEMA


def test_it_starts_from_the_initial_weights():
    net = make()
    ema = StudentEMA(net, {}, total_updates=10)
    assert torch.equal(weights(ema.module), weights(net))


DECAYS = {
    "constant": lambda n: 0.9,
    "threshold": lambda n: min(0.9, (1 + n) / (10 + n)),
    "exp": lambda n: 0.9 * (1 - math.exp(-5 * n / 20)),
}


@pytest.mark.parametrize("kind", DECAYS)
def test_each_ramp_counts_updates_from_one(kind):
    net = make()
    options = {"decay": 0.9, "decay_type": kind, "beta": 5}
    ema = StudentEMA(net, options, total_updates=20)
    expected = weights(net)
    for n in range(1, 4):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * n)
        ema.update_parameters(net)
        d = DECAYS[kind](n)
        expected = d * expected + (1 - d) * weights(net)
        assert torch.allclose(weights(ema.module), expected, atol=1e-6)


def test_buffers_are_copied_and_the_average_stays_in_eval_mode():
    net = make(NormNet)
    ema = StudentEMA(net, {"decay": 0.9, "decay_type": "constant"}, total_updates=10)
    net.train()
    net(torch.randn(8, 1, 8, 8))
    ema.update_parameters(net)
    assert torch.equal(ema.module.norm.running_mean, net.norm.running_mean)
    assert ema.module.norm.num_batches_tracked == 1
    ema.train()
    assert not any(m.training for m in ema.modules())
    assert not any(p.requires_grad for p in ema.parameters())


def test_the_counter_is_what_is_saved():
    net = make()
    ema = StudentEMA(net, {}, total_updates=10)
    ema.update_parameters(net)
    other = StudentEMA(net, {}, total_updates=10)
    other.counters().load_state_dict(ema.counters().state_dict())
    assert other.updates == 1


def test_unknown_options_are_told():
    with pytest.raises(ConfigError, match="did you mean 'decay_type'"):
        StudentEMA(make(), {"decay_typ": "exp"}, total_updates=1)
    with pytest.raises(ConfigError, match="constant, threshold, exp"):
        StudentEMA(make(), {"decay_type": "linear"}, total_updates=1)


@effect_of("ema", "ema_params")
def test_validation_best_checkpoint_and_test_use_the_average(tmp_path):
    net = make()
    frozen = weights(net)
    trainer = trained(
        tmp_path,
        net,
        ema=True,
        ema_params={"decay": 1.0, "decay_type": "constant"},
        valid_metrics_list=["Accuracy"],
        max_epochs=3,
    )
    # decay 1 keeps the initial weights: what used the average shows no learning
    assert torch.equal(weights(trainer.ema_model), frozen)
    assert not torch.equal(weights(net), frozen)
    accuracies = set(trainer.run.curve("accuracy.valid")[1])
    assert len(accuracies) == 1
    best = torch.load(trainer.checkpoints_dir / "ckpt_best.pth", weights_only=True)["net"]
    assert torch.equal(torch.cat([t.double().flatten() for t in best.values()]), frozen)
    from trainer_kit import loaders

    _, test = loaders()
    assert trainer.test(test_loader=test)["Accuracy"] == accuracies.pop()
    assert trainer.test(test_loader=test, use_ema_net=False)["Accuracy"] > 0.3


def test_ema_params_without_ema_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no effect without 'ema'"):
        trained(tmp_path, ema_params={"decay": 0.5})
