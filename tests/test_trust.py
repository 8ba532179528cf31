"""Trust: what a name in a file may make us call."""

from __future__ import annotations

import functools
import importlib
import os
import string
import sys
import types

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

import distillation.torchvision_guard  # noqa: F401
from distillation.errors import TrustError
from distillation.models.digits import DigitsSmallModel
from distillation.references import Reference, build, noted, resolve


class Mine(nn.Module):
    def __init__(self, width: int = 2, sizes=(1, 2)):
        super().__init__()
        self.layer = nn.Linear(width, 2)
        self.sizes = sizes

    @classmethod
    def wide(cls, width):
        return cls(width)

    def erase(self):
        return self


class Other(Mine):
    pass


class NoModule:
    pass


def make(width=2):
    return Mine(width)


def makes_a_number():
    return 3


HERE = __name__


def local_function():
    def make():
        return Mine()

    return make


# What may be called ---------------------------------------------------------------------------


def test_imported_module_classes_are_allowed():
    assert resolve(Reference(f"{HERE}:Mine")) is Mine
    assert resolve(Reference("torch.nn:Linear")) is nn.Linear
    assert isinstance(build(Reference("torch.nn:Linear", (2, 3))), nn.Linear)


def test_our_zoo_is_allowed():
    made = build(Reference("distillation.models.digits:DigitsSmallModel"))
    assert type(made) is DigitsSmallModel
    assert noted(made) == Reference("distillation.models.digits:DigitsSmallModel")


def test_the_zoos_tools_are_no_models():
    for target in (
        *("distillation.models.weights:load_into", "distillation.models.weights:read_weights"),
        *("distillation.models.external:from_timm", "distillation.models.registry:load_into"),
        "distillation.models.facts:cpu_latency",
    ):
        importlib.import_module(target.partition(":")[0])
        with pytest.raises(TrustError, match="a tool of the zoo"):
            resolve(Reference(target))


def test_methods_are_not_called_on_what_a_file_gives():
    with pytest.raises(TrustError, match="is a method"):
        resolve(Reference(f"{HERE}:Mine.erase"), home_module=HERE)


def test_functions_are_allowed_in_main_and_in_the_students_home(monkeypatch):
    reference = Reference.of(make, 3)
    with pytest.raises(TrustError, match=f"trust=\\('{HERE}:make',\\)"):
        resolve(reference)
    assert resolve(reference, home_module=HERE) is make
    assert resolve(reference, home_module=sys.modules[HERE]) is make
    main = types.ModuleType("__main__")
    exec("def build(): ...", main.__dict__)
    main.borrowed = make
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert resolve(Reference("__main__:build")) is main.build
    with pytest.raises(TrustError, match="is a function"):
        resolve(Reference("__main__:borrowed"))


def test_torchvision_model_functions_are_allowed_and_nothing_else_of_it():
    import torchvision

    allowed = "torchvision.models:resnet18"
    assert resolve(Reference(allowed)) is torchvision.models.resnet18
    assert Reference.of(torchvision.models.resnet18).target == "torchvision.models.resnet:resnet18"
    resolve(Reference("torchvision.models.resnet:resnet18"))
    resolve(Reference("torchvision.models.segmentation:fcn_resnet50"))
    for target in (
        *("torchvision.models.resnet:_resnet", "torchvision.models:get_weight"),
        *("torchvision.io:read_image", "torchvision.datasets.utils:download_url"),
        *("torchvision.models._api:register_model", "torchvision.models.resnet:partial"),
        *("torchvision.datasets:CIFAR10", "torchvision.models:resnet.resnet18"),
        *("torchvision.models:ResNet18_Weights", "torchvision.datasets.utils:os.system"),
    ):
        with pytest.raises(TrustError):
            resolve(Reference(target))


def test_timm_model_functions_are_allowed_with_model_names_only():
    import timm

    entry = "timm.models.resnet:resnet18"
    assert resolve(Reference(entry)) is timm.models.resnet.resnet18
    create = "timm.models._factory:create_model"
    assert resolve(Reference(create, ("resnet18.a1_in1k",))) is timm.create_model
    assert resolve(Reference("timm:create_model", (), {"model_name": "vit_tiny_patch16_224"}))
    for args, kwargs in (
        (("hf-hub:someone/something",), {}),
        (("hf_hub:someone/something",), {}),
        (("local-dir:/tmp/x",), {}),
        (("../x",), {}),
        ((), {}),
        ((3,), {}),
        (("resnet18", False, {"file": "/x"}), {}),
        (("resnet18",), {"checkpoint_path": "/x"}),
        (("resnet18",), {"pretrained_cfg": {"url": "x"}}),
        (("resnet18",), {"pretrained_cfg_overlay": {"file": "x"}}),
        (("resnet18",), {"cache_dir": "/x"}),
    ):
        with pytest.raises(TrustError):
            resolve(Reference(create, args, kwargs))
    with pytest.raises(TrustError, match="checkpoint_path"):
        resolve(Reference(entry, (), {"checkpoint_path": "/x"}))
    with pytest.raises(TrustError, match="model functions"):
        resolve(Reference("timm.models._helpers:load_checkpoint"))


HOSTILE = [
    *("os:system", "posix:system", "nt:system", "subprocess:Popen", "subprocess:run"),
    *("builtins:eval", "builtins:exec", "builtins:__import__", "builtins:open", "builtins:type"),
    *("importlib:import_module", "runpy:run_path", "pickle:loads", "shutil:rmtree", "pty:spawn"),
    *("torch.nn:Module.__init__.__globals__", "torch.nn:Module.__subclasses__", "torch:load"),
    *("torch.nn:Module.load_state_dict", "torch.hub:load", "torch:os.system", "torch:sys.exit"),
    *("torch.nn.modules.module:functools.partial", "torch.nn.modules.module:weakref.ref"),
    *("torch.fx.graph_module:_forward_from_src", "torch.fx.graph_module:GraphModule"),
    *("torch.utils.cpp_extension:load_inline", "torch.serialization:load", "torch.jit:load"),
    *("distillation.models.os:system", "distillation.models:os.system", "distillation:models"),
    *("distillation.models.digits:ConfigError", "distillation.models.digits:nn.Linear"),
    *("distillation.models.digits:VGG.__init__", "distillation.models..digits:VGG"),
    *("distillation.errors:nearest", "distillation.checkpoint:atomic_write"),
    *("numpy:load", "numpy:fromfile", "numpy.f2py:compile", "yaml:unsafe_load"),
    *("__main__:__builtins__.eval", "__main__:__loader__.load_module", "__main__:sys.exit"),
    *("antigravity:fly", "this:s", "nowhere.at.all:x", ":x", "x:", ":", "", "a b:c", "a:b c"),
    *("a:b:c", "a.b", "a:b()", "a:b[0]", "a:<lambda>", "a:f.<locals>.g", "a:b\n", " os:system"),
    *("os\x00:system", "оs:system", "ｏｓ:system", "os:ｓystem", "os.path:os.system"),
]


@pytest.mark.parametrize("target", HOSTILE, ids=ascii)
def test_a_hostile_target_is_refused_even_with_the_students_home_open(target):
    before = set(sys.modules)
    for home in (None, HERE, "torch.fx.graph_module", "torch.nn.modules.module", "os"):
        with pytest.raises(TrustError):
            resolve(Reference(target, ("true",)), home_module=home)
    assert set(sys.modules) - before <= {"distillation.models"}


def test_private_functions_of_the_zoo_and_reexports_are_refused(monkeypatch):
    from distillation.models import digits

    monkeypatch.setattr(digits, "_secret", make, raising=False)
    monkeypatch.setattr(digits, "system", os.system, raising=False)
    monkeypatch.setattr(digits, "os", os, raising=False)
    monkeypatch.setattr(digits, "make", make, raising=False)
    monkeypatch.setattr(digits, "call", functools.partial(os.system, "true"), raising=False)
    for name in ("_secret", "system", "os", "os.system", "make", "call"):
        with pytest.raises(TrustError):
            resolve(Reference(f"distillation.models.digits:{name}"))


def test_no_module_is_imported_and_no_module_getattr_runs(tmp_path, monkeypatch):
    (tmp_path / "evil_module_of_a_file.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TrustError, match="no module is imported because a file names it"):
        resolve(Reference("evil_module_of_a_file:make"))
    lazy = types.ModuleType("lazy_module_of_a_test")
    lazy.__getattr__ = lambda name: pytest.fail("module __getattr__ was run")
    monkeypatch.setitem(sys.modules, lazy.__name__, lazy)
    with pytest.raises(TrustError, match="has no 'anything'"):
        resolve(Reference(f"{lazy.__name__}:anything"))


def test_classes_that_are_no_modules_and_instances_are_refused(monkeypatch):
    with pytest.raises(TrustError, match=r"no nn\.Module"):
        resolve(Reference(f"{HERE}:NoModule"))
    monkeypatch.setattr(sys.modules[HERE], "instance", Mine(), raising=False)
    with pytest.raises(TrustError, match="is a Mine"):
        resolve(Reference(f"{HERE}:instance"), home_module=HERE)


# Trust ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [HERE, [f"{HERE}:make"], [make], make, (sys.modules[HERE],)])
def test_trust_takes_modules_names_and_callables(trust):
    assert resolve(Reference.of(make), trust=trust) is make


def test_trust_reaches_classmethods_and_imports_what_it_names(tmp_path, monkeypatch):
    assert isinstance(build(Reference.of(Other.wide, 4), trust=[HERE]), Other)
    package = tmp_path / "trusted_package_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(
        "import os\nfrom os import system\nfrom numpy import save\nfrom torch import nn\n"
        "def make():\n    return nn.Identity()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reference = Reference("trusted_package_of_a_test.nets:make")
    with pytest.raises(TrustError, match="trust="):
        resolve(reference)
    assert isinstance(build(reference, trust=["trusted_package_of_a_test"]), nn.Identity)
    for name in ("system", "os.system", "save"):
        with pytest.raises(TrustError):
            resolve(
                Reference(f"trusted_package_of_a_test.nets:{name}"),
                trust=["trusted_package_of_a_test"],
            )
    reexported = "trusted_package_of_a_test.nets:system"
    with pytest.raises(TrustError, match="Python's own"):
        resolve(Reference(reexported), trust=[reexported])


@pytest.mark.parametrize("target", ["os:system", "builtins:eval", "json:loads"])
def test_the_standard_library_cannot_be_trusted_by_name(target):
    with pytest.raises(TrustError, match="Python's own"):
        resolve(Reference(target), trust=[target, target.partition(":")[0]])


def test_a_trusted_callable_that_is_not_importable_is_used_as_it_is():
    function = local_function()
    function.__qualname__ = "make_teacher"
    reference = Reference(f"{HERE}:make_teacher")
    assert resolve(reference, trust=[function]) is function


def test_trust_that_names_nothing_is_an_error():
    with pytest.raises(TrustError, match="trust takes"):
        resolve(Reference.of(make), trust=[3])


def test_what_makes_no_module_is_refused():
    with pytest.raises(TrustError, match=r"made a int, not an nn\.Module"):
        build(Reference.of(makes_a_number), home_module=HERE)


# Fuzz -----------------------------------------------------------------------------------------

WORDS = [
    *(
        "os",
        "sys",
        "torch",
        "nn",
        "fx",
        "graph_module",
        "hub",
        "load",
        "system",
        "eval",
        "builtins",
    ),
    *("distillation", "models", "digits", "VGG", "Module", "Linear", "functools", "partial"),
    *("torchvision", "resnet", "resnet18", "timm", "create_model", "__init__", "__globals__"),
    *("__class__", "__subclasses__", "__dict__", "__builtins__", "__main__", "path", "utils"),
    *("importlib", "import_module", "subprocess", "Popen", "numpy", "load_library", "ops"),
]
part = st.sampled_from(WORDS) | st.text(string.ascii_letters + "_.: \x00", max_size=6)
targets = st.builds(
    lambda module, names: ".".join(module) + ":" + ".".join(names),
    st.lists(part, min_size=1, max_size=4),
    st.lists(part, min_size=1, max_size=4),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(targets, st.sampled_from([None, "torch.nn.modules.module", "os", "timm", "__main__"]))
@example("distillation.models:os.system", None)
@example("torch.nn.modules.module:Module", None)
def test_whatever_is_resolved_makes_models_and_nothing_is_imported(target, home):
    before = set(sys.modules)
    try:
        found = resolve(Reference(target, ("resnet18",)), home_module=home)
    except TrustError:
        pass
    else:
        defined = found.__module__
        if isinstance(found, type):
            assert issubclass(found, nn.Module)
        else:
            assert defined.startswith(("distillation.models", "torchvision.", "timm.", "__main__"))
    assert set(sys.modules) - before <= {"distillation.models"}
