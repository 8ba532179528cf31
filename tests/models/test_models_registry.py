"""`models.get`: names, arguments, and what a model remembers of how it was made."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from distillation import models, references
from distillation.errors import ConfigError, DataError
from distillation.models.resnet import CIFARResNet


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", models.names("zoo"))
def test_every_model_of_the_zoo_gives_logits_of_the_asked_classes(name):
    channels = 1 if name.startswith("digits") else 3
    model = models.get(name, num_classes=7).eval()
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("LargeModel", "large_model"),
        ("SmallModel", "small_model"),
        ("DigitsSmallModel", "digits_small_model"),
        ("cifar_resnet20", "resnet20"),
        ("resnet56_cifar", "resnet56"),
    ],
)
def test_a_model_has_several_spellings(alias, name):
    one, other = models.get(alias), models.get(name)
    assert type(one) is type(other)
    assert parameters(one) == parameters(other)


# Table 6 of He et al. 2016, in millions
@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_resnets_for_cifar_have_the_sizes_of_the_paper(depth, millions):
    assert parameters(models.get(f"resnet{depth}")) / 1e6 == pytest.approx(millions, abs=0.03)


@pytest.mark.parametrize(("depth", "count"), [(8, 1_233_540), (32, 7_433_860)])
def test_wide_resnets_have_the_sizes_of_the_papers_code(depth, count):
    """Of Tian et al.'s RepDistiller, CIFAR-100."""
    assert parameters(models.get(f"resnet{depth}x4", num_classes=100)) == count


def test_a_resnet_of_another_depth_is_refused():
    with pytest.raises(ConfigError, match=r"6n \+ 2.*got 18"):
        CIFARResNet(18)


def test_a_name_that_is_not_ours_is_torchvisions_then_timms():
    assert type(models.get("resnet18")).__module__ == "torchvision.models.resnet"
    assert type(models.get("vit_tiny_patch16_224")).__module__.startswith("timm.")


def test_classes_and_arguments_reach_other_libraries():
    assert models.get("resnet18", num_classes=5).fc.out_features == 5
    tiny = models.get("vit_tiny_patch16_224", arch_params={"num_classes": 3, "depth": 1})
    assert tiny.head.out_features == 3
    assert len(tiny.blocks) == 1


def test_supergradients_spelling_of_an_image_size_reaches_timm():
    model = models.get(
        "vit_tiny_patch16_224",
        arch_params={"image_size": [64, 64], "patch_size": [16, 16]},
        depth=1,
    )
    assert model.patch_embed.num_patches == 16


def test_an_unknown_name_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'resnt20'; did you mean 'resnet20'"):
        models.get("resnt20")


@pytest.mark.parametrize(
    ("name", "argument", "nearest"),
    [
        ("large_model", "dropuot", "dropout"),
        ("resnet18", "zero_init", "zero_init_residual"),
        ("vit_tiny_patch16_224", "drop_rat", "drop_rate"),
    ],
)
def test_an_unknown_argument_is_an_error_with_the_nearest(name, argument, nearest):
    with pytest.raises(ConfigError, match=f"'{argument}'; did you mean '{nearest}'"):
        models.get(name, arch_params={argument: 0.5})


def test_an_argument_given_twice_must_agree():
    assert models.get("resnet20", 5, arch_params={"num_classes": 5}).fc.out_features == 5
    with pytest.raises(ConfigError, match="num_classes is given twice: 5, and 6"):
        models.get("resnet20", 5, arch_params={"num_classes": 6})


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4", "large_model", "resnet18"])
def test_a_model_remembers_how_it_was_made(name):
    model = models.get(name, num_classes=4)
    again = references.build(references.noted(model))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_models_of_other_libraries_are_noted_as_ours_so_that_a_fresh_process_finds_them():
    made = references.noted(models.get("vit_tiny_patch16_224", num_classes=4, depth=1))
    # The one module that a file may have imported is the zoo's
    assert made.target == "distillation.models.registry:get"
    assert made.kwargs == {"num_classes": 4, "depth": 1}
    assert len(references.build(made).blocks) == 1


def test_the_zoo_has_no_pretrained_weights():
    with pytest.raises(ConfigError, match="no pretrained weights to download"):
        models.get("small_model", pretrained_weights="imagenet")


@pytest.mark.parametrize("name", ["resnet18", "beit_base_patch16_224"])
def test_misspelt_pretrained_weights_are_an_error(name):
    with pytest.raises(ConfigError, match="'imagnet'; did you mean 'imagenet'"):
        models.get(name, pretrained_weights="imagnet", num_classes=10)


def test_without_a_network_pretrained_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"'imagenet' of 'resnet18' cannot be had.*checkpoint_path"):
        models.get("resnet18", pretrained_weights="imagenet")


def test_pretrained_weights_in_the_cache_keep_all_but_a_head_of_other_classes(
    tmp_path, monkeypatch
):
    from torchvision.models import ResNet18_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = models.get("resnet18")
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(theirs.state_dict(), cache / ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    # The name of the file holds its hash, which ours does not have: torch trusts its cache
    whole = models.get("resnet18", pretrained_weights="imagenet")
    part = models.get("resnet18", num_classes=10, pretrained_weights="IMAGENET1K_V1")
    assert torch.equal(whole.fc.weight, theirs.fc.weight)
    assert torch.equal(part.conv1.weight, theirs.conv1.weight)
    assert part.fc.out_features == 10


def test_importing_the_package_imports_no_torch():
    script = "import sys, distillation.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
