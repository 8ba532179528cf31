"""The models: our own zoo, and one door to it and to those of torchvision and timm.

student = models.get("small_model", num_classes=10)
teacher = models.get("resnet50", num_classes=1000, pretrained_weights="imagenet")
models.names("zoo")
"""

from __future__ import annotations

import importlib

_PUBLIC = {
    "CIFARResNet": "resnet",
    "DigitsLargeModel": "digits",
    "DigitsSmallModel": "digits",
    "LargeModel": "vgg",
    "SmallModel": "vgg",
    "get": "registry",
    "model_facts": "facts",
    "names": "registry",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        from distillation.errors import unknown

        raise AttributeError(unknown("name in distillation.models:", name, __all__))
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
