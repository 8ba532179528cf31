"""Balancers: one total from several losses."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distillation.distiller import Distiller
from distillation.errors import ConfigError, ShapeError
from distillation.losses import (
    STUDENT_LOSS_KEY,
    DistillationLossBalancer,
    ScheduledLossBalancer,
    StaticLossBalancer,
    UncertaintyLossBalancer,
)


def losses(*kd, student=None):
    named = {f"MSELoss_{i}": torch.tensor(float(value)) for i, value in enumerate(kd)}
    if student is not None:
        named[STUDENT_LOSS_KEY] = torch.tensor(float(student))
    return named


class TestStatic:
    def test_a_number_weighs_the_one_loss_and_leaves_the_rest_to_the_student(self):
        assert StaticLossBalancer(0.8)(losses(2, student=10)).item() == pytest.approx(3.6)

    def test_the_default_is_one_half(self):
        assert StaticLossBalancer()(losses(2, student=4)).item() == 3

    def test_a_number_with_several_losses_weighs_their_sum(self):
        total = StaticLossBalancer(0.5)(losses(2, 3, student=7))
        assert total.item() == 0.5 * (2 + 3) + 0.5 * 7

    def test_a_list_goes_in_the_criterions_order(self):
        total = StaticLossBalancer([0.25, 0.5])(losses(2, 3, student=8))
        assert total.item() == 0.25 * 2 + 0.5 * 3 + 0.25 * 8

    def test_a_mapping_goes_by_name(self):
        weights = {"MSELoss_1": 0.5, "MSELoss_0": 0.25}
        total = StaticLossBalancer(weights)(losses(2, 3, student=8))
        assert total.item() == 0.25 * 2 + 0.5 * 3 + 0.25 * 8

    def test_weights_that_sum_to_one_but_for_rounding_need_no_student_loss(self):
        weights = [0.2, 0.4, 0.3, 0.1]
        assert sum(weights) != 1
        total = StaticLossBalancer(weights)(losses(1, 2, 3, 4))
        assert total.item() == pytest.approx(0.2 + 0.8 + 0.9 + 0.4)

    def test_weight_one_needs_no_student_loss(self):
        assert StaticLossBalancer(1)(losses(2)).item() == 2

    def test_weight_zero_is_the_students_loss_alone(self):
        assert StaticLossBalancer(0.0)(losses(2, student=7)).item() == 7

    def test_it_is_bit_for_bit_the_sum_as_written(self):
        kd, student = torch.rand(()), torch.rand(())
        total = StaticLossBalancer(0.3)({"A_0": kd, STUDENT_LOSS_KEY: student})
        assert torch.equal(total, 0.3 * kd + (1 - 0.3) * student)

    def test_gradients_reach_each_loss_with_its_weight(self):
        named = {key: value.requires_grad_() for key, value in losses(1, 2, student=3).items()}
        StaticLossBalancer([0.25, 0.5])(named).backward()
        assert [value.grad.item() for value in named.values()] == [0.25, 0.5, 0.25]

    @given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
    def test_weights_normalised_to_one_are_accepted(self, raw):
        balancer = StaticLossBalancer([weight / sum(raw) for weight in raw])
        assert balancer.student_loss_weight == 0

    @pytest.mark.parametrize("weights", [-0.1, [0.5, -0.1], {"MSELoss_0": -0.1}])
    def test_negative_weights_are_refused(self, weights):
        with pytest.raises(ConfigError, match=r"kd_loss_weight.* at least 0, not -0\.1"):
            StaticLossBalancer(weights)

    @pytest.mark.parametrize("weights", [1.1, [0.6, 0.5], {"A_0": 0.6, "B_1": 0.5}])
    def test_more_than_one_in_sum_is_refused(self, weights):
        with pytest.raises(ConfigError, match=r"sums to 1\.1; at most 1"):
            StaticLossBalancer(weights)

    @pytest.mark.parametrize("weights", [math.nan, [math.inf], "0.5", None, [], {}, True])
    def test_what_is_no_weight_is_refused(self, weights):
        with pytest.raises(ConfigError, match="kd_loss_weight"):
            StaticLossBalancer(weights)

    def test_a_missing_student_loss_is_named(self):
        with pytest.raises(ConfigError, match=r"leave 0\.5 for the student's own loss"):
            StaticLossBalancer(0.5)(losses(2))

    def test_another_number_of_weights_than_losses_is_named(self):
        with pytest.raises(ConfigError, match="2 weights for 3 distillation losses: MSELoss_0"):
            StaticLossBalancer([0.5, 0.5])(losses(1, 2, 3))

    def test_a_mapping_must_name_each_loss_and_no_other(self):
        with pytest.raises(ConfigError, match="unknown distillation loss 'MSELos_0'; did you mean"):
            StaticLossBalancer({"MSELos_0": 1.0})(losses(1))
        with pytest.raises(ConfigError, match="no weight for MSELoss_1"):
            StaticLossBalancer({"MSELoss_0": 1.0})(losses(1, 2))
        with pytest.raises(ConfigError, match="must not name 'student_loss'"):
            StaticLossBalancer({STUDENT_LOSS_KEY: 0.5})

    def test_losses_that_are_no_scalars_are_named(self):
        with pytest.raises(ShapeError, match=r"MSELoss_0 has shape \(3,\)"):
            StaticLossBalancer(1.0)({"MSELoss_0": torch.ones(3)})

    def test_without_a_distillation_loss_there_is_nothing_to_balance(self):
        with pytest.raises(ConfigError, match="no distillation loss"):
            StaticLossBalancer()({STUDENT_LOSS_KEY: torch.tensor(1.0)})


def test_a_balancer_of_ones_own_is_a_module_with_a_forward():
    class Largest(DistillationLossBalancer):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale))

        def forward(self, losses):
            kd, student = self.split(losses)
            return self.scale * torch.stack([*kd.values()]).max() + student

    balancer = Largest(2.0)
    total = balancer(losses(1, 5, student=1))
    total.backward()
    assert total.item() == 11
    assert balancer.scale.grad.item() == 5
    assert balancer.constructor_arguments == ((2.0,), {})


def test_the_base_class_says_that_forward_is_missing():
    with pytest.raises(NotImplementedError, match="DistillationLossBalancer has no forward"):
        DistillationLossBalancer()(losses(1))


class TestUncertainty:
    def test_equals_its_formula(self):
        balancer = UncertaintyLossBalancer(2)
        s = [0.3, -0.7, 1.1]
        with torch.no_grad():
            balancer.log_variances.copy_(torch.tensor(s))
        total = balancer(losses(2, 3, student=5))
        expected = sum(math.exp(-a) * loss + a / 2 for a, loss in zip(s, [2, 3, 5], strict=True))
        assert total.item() == pytest.approx(expected, rel=1e-6)

    def test_starts_as_the_plain_sum(self):
        assert UncertaintyLossBalancer(2)(losses(2, 3, student=5)).item() == 10

    def test_gradients_are_those_of_finite_differences(self):
        balancer = UncertaintyLossBalancer(1).double()
        named = {"A_0": torch.tensor(2.0), STUDENT_LOSS_KEY: torch.tensor(3.0)}

        def total(variances, kd):
            return torch.func.functional_call(
                balancer, {"log_variances": variances}, ({**named, "A_0": kd},)
            )

        start = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
        kd = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(total, (start, kd))

    def test_learns_weights_of_one_over_twice_the_loss(self):
        balancer = UncertaintyLossBalancer(1)
        optimizer = torch.optim.Adam(balancer.parameters(), lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            balancer(losses(4, student=0.25)).backward()
            optimizer.step()
        torch.testing.assert_close(
            balancer.weights(), torch.tensor([1 / 8, 2.0]), rtol=1e-2, atol=0
        )

    def test_may_leave_out_the_students_loss_and_start_elsewhere(self):
        balancer = UncertaintyLossBalancer(2, student_loss=False, initial_log_variance=1.0)
        assert balancer(losses(2, 3)).item() == pytest.approx(5 * math.exp(-1) + 1, rel=1e-6)

    def test_errors(self):
        with pytest.raises(
            ConfigError, match="made for 2 distillation losses and got 1: MSELoss_0"
        ):
            UncertaintyLossBalancer(2)(losses(1, student=1))
        with pytest.raises(ConfigError, match="student loss is missing"):
            UncertaintyLossBalancer(1)(losses(1))
        with pytest.raises(ConfigError, match="student loss is given"):
            UncertaintyLossBalancer(1, student_loss=False)(losses(1, student=1))
        with pytest.raises(ConfigError, match=r"num_kd_losses must be .* at least 1"):
            UncertaintyLossBalancer(0)


class TestScheduled:
    def totals(self, balancer, calls):
        """With kd = 1 and student = 0 the total is the distillation weight itself."""
        return [balancer(losses(1, student=0)).item() for _ in range(calls)]

    def test_linear_warm_up(self):
        balancer = ScheduledLossBalancer(0.8, steps=4)
        assert self.totals(balancer, 7) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])

    def test_cosine(self):
        balancer = ScheduledLossBalancer(0.8, steps=4, shape="cosine")
        ramp = [(1 - math.cos(math.pi * k / 4)) / 2 for k in range(5)]
        assert self.totals(balancer, 6) == pytest.approx([0.8 * r for r in [*ramp, 1]], abs=1e-7)

    def test_fading_out(self):
        balancer = ScheduledLossBalancer(0.5, steps=2, start=1.0, end=0.2)
        assert self.totals(balancer, 4) == pytest.approx([0.5, 0.3, 0.1, 0.1])

    def test_the_student_gets_the_rest(self):
        balancer = ScheduledLossBalancer([0.25, 0.5], steps=2)
        assert [balancer(losses(0, 0, student=1)).item() for _ in range(3)] == [1, 0.625, 0.25]

    def test_several_losses_share_the_ramp(self):
        balancer = ScheduledLossBalancer({"MSELoss_0": 0.25, "MSELoss_1": 0.5}, steps=2)
        assert [balancer(losses(4, 8, student=0)).item() for _ in range(3)] == [0, 2.5, 5]

    def test_after_the_ramp_it_is_the_static_balancer(self):
        balancer = ScheduledLossBalancer(0.25, steps=1)
        balancer(losses(3, student=7))
        given = losses(3, student=7)
        assert torch.equal(balancer(given), StaticLossBalancer(0.25)(given))

    def test_evaluation_does_not_count(self):
        balancer = ScheduledLossBalancer(1.0, steps=4).eval()
        assert self.totals(balancer, 3) == [0, 0, 0]
        assert self.totals(balancer.train(), 2) == [0, 0.25]

    def test_a_resumed_balancer_goes_on_where_the_first_stopped(self):
        first = ScheduledLossBalancer(0.7, steps=9, shape="cosine")
        self.totals(first, 5)
        second = ScheduledLossBalancer(0.7, steps=9, shape="cosine")
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.step.item() == 5
        assert self.totals(second, 5) == self.totals(first, 5)

    def test_the_count_survives_half_precision(self):
        balancer = ScheduledLossBalancer(1.0, steps=10_000)
        balancer.step += 4099  # not a number of float16 or bfloat16
        assert balancer.half().ramp().item() == pytest.approx(0.4099)

    def test_the_students_loss_is_always_needed(self):
        with pytest.raises(ConfigError, match="changing rest"):
            ScheduledLossBalancer(1.0, steps=3)(losses(1))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "steps must be .* at least 1"),
            ({"steps": 2.5}, "steps must be an integer, not 2.5"),
            ({"steps": 3, "shape": "cosin"}, "unknown shape 'cosin'; did you mean 'cosine'"),
            ({"steps": 3, "start": -1}, "start must be"),
            ({"steps": 3, "end": 2}, "end must be .* at most 1"),
            ({"steps": 3, "start": 1, "end": 1}, "both 1; a constant ramp is StaticLossBalancer"),
        ],
    )
    def test_options_that_make_no_sense_are_named(self, options, message):
        with pytest.raises(ConfigError, match=message):
            ScheduledLossBalancer(0.5, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_learned_weights_stay_in_float32_in_a_model_of_half_precision(dtype):
    balancer = UncertaintyLossBalancer(1, initial_log_variance=0.1234567)
    before = balancer.log_variances.clone()
    assert torch.equal(balancer.to(dtype).log_variances, before)
    balancer = UncertaintyLossBalancer(1).to(dtype)
    large = {"kd_0": torch.tensor(70_000.0), STUDENT_LOSS_KEY: torch.tensor(1.003)}
    assert balancer(large).item() == pytest.approx(70_001.003)


@pytest.mark.parametrize(
    ("balancer", "said"),
    [
        (StaticLossBalancer([0.2, 0.3]), "2 weights for 1 distillation losses"),
        (StaticLossBalancer({"MSELos_0": 0.5}), "did you mean 'MSELoss_0'"),
        (UncertaintyLossBalancer(2), "was made for 2 distillation losses and got 1"),
    ],
)
def test_weights_for_other_losses_are_told_before_the_first_batch(balancer, said):
    with pytest.raises(ConfigError, match=said):
        Distiller(nn.Linear(2, 2), nn.Linear(2, 2), nn.MSELoss(), balancer)
