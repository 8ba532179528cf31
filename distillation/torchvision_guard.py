"""Lets torchvision be imported beside a CPU build of torch.

The registry's Linux wheel of torchvision is built for CUDA. Beside a CPU-only torch its compiled
operators do not load, and `import torchvision` (so also timm and torchmetrics) dies with
`operator torchvision::nms does not exist`, because torchvision registers fake kernels for
operators that were never defined. Declaring the missing schemas is enough: data sets, transforms
and models need none of the compiled operators. Calling one still fails, with torch's own message.

Import this module before torchvision. It is idempotent and does nothing where the operators are.
"""

from __future__ import annotations

import importlib.util

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# Definitions live as long as their Library object, so it must outlive the module's import.
_library: torch.library.Library | None = None


def _has_operator(name: str) -> bool:
    return torch._C._dispatch_has_kernel(f"torchvision::{name}") or bool(
        torch._C._jit_get_schemas_for_operator(f"torchvision::{name}")
    )


def _load_compiled_operators() -> None:
    """Load torchvision's own library first, so that a working one is never shadowed."""
    spec = importlib.util.find_spec("torchvision")  # finds the folder, does not import it
    if spec is None or not spec.submodule_search_locations:
        return
    from pathlib import Path

    for folder in spec.submodule_search_locations:
        for library in sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd")):
            try:
                torch.ops.load_library(str(library))
            except (OSError, RuntimeError):
                continue  # built for another torch: exactly the case this module is for
            return


def declare_missing_operators() -> list[str]:
    """Declare the schemas that torchvision needs and does not find; returns their names."""
    global _library
    if all(_has_operator(name) for name in SCHEMAS):
        return []
    _load_compiled_operators()
    missing = [name for name in SCHEMAS if not _has_operator(name)]
    if missing:
        if _library is None:
            _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            _library.define(SCHEMAS[name])
    return missing


declare_missing_operators()
