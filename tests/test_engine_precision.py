"""Devices and precision are names; what is not there is an error."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path

import pytest
import torch
from engine_case import images, make_engine, perceptron, weights

from distillation.devices import make_accelerator
from distillation.errors import ConfigError
from distillation.precision import resolve_precision


def seen_by_the_model(**options) -> torch.dtype:
    model, seen = perceptron(), []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    engine = make_engine([images(8)], model=model, epochs=1, **options)
    engine.fit()
    assert {v.dtype for v in weights(engine).values()} == {torch.float32}
    return seen[0]


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_is_in_the_precision_that_was_asked_for(name, dtype):
    assert seen_by_the_model(precision=name) == dtype


def test_fp16_on_a_cpu_becomes_bf16_with_a_warning():
    with pytest.warns(UserWarning, match="fp16 needs a GPU; bf16 is used"):
        assert seen_by_the_model(precision="fp16") == torch.bfloat16


def instructions() -> set[str]:
    """What the processor says it can do; Linux on x86 only."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("reads /proc/cpuinfo of an x86 processor")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("flags")).split())


def test_auto_is_bf16_where_the_processor_has_instructions_for_it_and_fp32_where_not():
    has_bf16 = instructions() & {"avx512_bf16", "amx_tile"}
    name, dtype = ("bf16", torch.bfloat16) if has_bf16 else ("fp32", torch.float32)
    assert (
        resolve_precision("auto", "cpu") == resolve_precision("auto", torch.device("cpu")) == name
    )
    assert seen_by_the_model(precision="auto", device="cpu") == dtype


def test_bf16_is_warned_of_where_it_is_far_slower_than_fp32():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert seen_by_the_model(precision="bf16", device="cpu") == torch.bfloat16
        assert resolve_precision("fp32", "cpu") == "fp32"
    told = [str(w.message) for w in caught if "no fast bf16 for this" in str(w.message)]
    assert len(told) == ("avx512f" not in instructions())
    assert all("'auto'" in text for text in told)


def test_precisions_may_follow_each_other_in_one_process():
    found = [seen_by_the_model(precision=p) for p in ("bf16", "fp32", "bf16")]
    assert found == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_unknown_names_are_errors_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown precision 'fp23'; did you mean 'fp32'"):
        make_engine(precision="fp23")
    with pytest.raises(ConfigError, match="unknown device 'cdua'; did you mean 'cuda'"):
        make_engine(device="cdua")


def test_a_device_that_is_not_there_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="'cuda' is not available here"):
        make_accelerator("cuda")


def test_a_training_can_be_resumed_in_another_precision(tmp_path):
    from engine_case import resume, train_until_killed

    uuid = train_until_killed(tmp_path, 12)
    engine = resume(tmp_path, uuid, lambda **o: make_engine(precision="bf16", **o))
    assert engine.update == 20
