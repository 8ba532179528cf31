"""Teachers as guests of a training: `TeacherSource`, and the one that runs a frozen model."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from distillation.errors import ConfigError, TeacherError
from distillation.loans import Loan
from distillation.references import Reference, noted_as_made, noted_run


class TeacherSource(ABC):
    """Where a teacher's outputs come from: a model, several models, or a table of outputs.

    A source is no `nn.Module`, so that it can be an attribute of one without entering its
    `state_dict()`, its parameters, its EMA or its DDP wrapper. It is called with the student's
    inputs; `sample` and `view` (int64 tensors, shape (N,)) say which transfer-set samples, under
    which augmentations, these are, for sources that need no inputs.
    """

    reference: Reference | None = None
    """How the teacher is made, when that can be written down."""
    run_uuid: str | None = None
    """The run of the store that the teacher's weights come from."""
    run_step: int | None = None
    """The checkpoint of that run, when one was asked for."""
    keyed: bool = False
    """Whether it answers by `sample` and `view`, which the caller may give with the loss."""
    mode: str = "eval"
    """"eval", "follow" or "train", as in `FrozenTeacher`."""

    @abstractmethod
    def __call__(self, *args: Any, sample: Any = None, view: Any = None, **kwargs: Any) -> Any:
        """The teacher's output for these inputs."""

    def run(
        self, args: tuple, kwargs: Mapping[str, Any], *, sample: Any = None, view: Any = None
    ) -> Any:
        """The output for the inputs `args` and `kwargs`, whatever these are named.

        A call takes `sample=` and `view=` for keys. Here they may be inputs too, as for denoisers
        whose `forward` names its image `sample`, where the source runs a module.
        """
        return self(*args, sample=sample, view=view, **kwargs)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what determines the outputs (64 hex characters)."""

    @property
    def module(self) -> nn.Module | None:
        """The module whose layers can be captured, or None when there is none."""
        return None

    def describe(self) -> dict[str, Any] | None:
        """What `teacher.rebuild` needs to make this source again, as JSON; None: cannot be."""
        return None

    def share(self) -> TeacherSource:
        """A hold of one's own on the same teacher: releasing one leaves the others theirs."""
        return self

    def release(self) -> None:  # noqa: B027, a source may have nothing to give back
        """Give the caller's objects back as they were. Releasing twice is harmless."""

    def refuse_student(self, student: nn.Module) -> None:
        """Raise `TeacherError` when `student` is this teacher, or shares a part with it."""
        if self.module is not None:
            refuse_shared(student, self.module)

    def train_with(self, mode: bool = True) -> TeacherSource:
        """Tell the source that its student went into training (or evaluation) mode."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> TeacherSource:
        """Move to a device or floating dtype, as `nn.Module.to` does."""
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)

        def move(tensor: Tensor) -> Tensor:
            floating = tensor.is_floating_point() or tensor.is_complex()
            form = {} if tensor.dim() not in (4, 5) else {"memory_format": memory_format}
            return tensor.to(device, dtype if floating else None, non_blocking, **form)

        return self._apply(move)

    def half(self) -> TeacherSource:
        """Cast floating-point weights to float16."""
        return self.to(torch.float16)

    def bfloat16(self) -> TeacherSource:
        """Cast floating-point weights to bfloat16."""
        return self.to(torch.bfloat16)

    def float(self) -> TeacherSource:
        """Cast floating-point weights to float32."""
        return self.to(torch.float32)

    def double(self) -> TeacherSource:
        """Cast floating-point weights to float64."""
        return self.to(torch.float64)

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> TeacherSource:
        """`nn.Module._apply` for the teacher: what reaches the student's tensors reaches its."""
        return self

    def move_like(self, fn: Callable[[Tensor], Tensor]) -> TeacherSource:
        """Move and cast the teacher as `fn`, which `nn.Module._apply` was given, does a tensor.

        Only device, dtype and memory format follow: what else `fn` does to its tensors (`to_empty`
        throws their values away) is not done to the teacher.
        """
        parameters = () if self.module is None else self.module.parameters()
        like = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
        probe = torch.ones(1, 2, 2, 2, dtype=like.dtype, device=like.device)
        moved = fn(probe)
        change: dict[str, Any] = {}
        if moved.device != probe.device and moved.device.type != "meta":
            change["device"] = moved.device
        if moved.dtype != probe.dtype:
            change["dtype"] = moved.dtype
        if moved.is_contiguous(memory_format=torch.channels_last) and not moved.is_contiguous():
            change["memory_format"] = torch.channels_last
        return self.to(**change) if change else self

    def __deepcopy__(self, memo: dict) -> TeacherSource:
        return self.share()


# A cast to another dtype loses bits, but the teacher is still the one its reference or run names.
# So for a cast model: (the fingerprint before the first cast, the one its weights have now). Held
# per model, since several sources may share one.
_cast = WeakIdKeyDictionary()

_HALF = (torch.float16, torch.bfloat16)


class FrozenTeacher(TeacherSource):
    """A model as teacher: frozen, in evaluation mode, run without autograd.

    `mode`:

    * "eval" is the rule: after any training the model is bit-identical, batch-norm buffers
      included;
    * "follow": still frozen and without autograd, but its `training` flags follow the student's,
      so dropout and batch statistics are active while the student trains, and batch-norm buffers
      change;
    * "train": follows the student, is not frozen, and autograd sees it, as the caller has it
      (mutual learning; the optimizer is the caller's).

    The model's flags are borrowed: `release()`, or the end of the last source on this model,
    gives each submodule its `training` and each parameter its `requires_grad` back. Raises
    `TeacherError` when the model is in use as a teacher with another mode.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mode: str = "eval",
        reference: Reference | None = None,
        run_uuid: str | None = None,
        run_step: int | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"FrozenTeacher takes an nn.Module, not {type(model).__name__}; as_teacher makes "
                "a source of classes, functions, run UUIDs and lists"
            )
        self.mode = mode
        self.reference = reference if reference is not None else noted_as_made(model)
        if run_uuid is None:
            run_uuid, run_step = noted_run(model) or (None, None)
        self.run_uuid = run_uuid
        self.run_step = run_step
        self._loan = Loan(model, mode)
        self._model: nn.Module | None = model
        self._submodules = list(model.modules())
        self._finalizer = weakref.finalize(self, self._loan.end_later)
        self._finalizer.atexit = False

    def __call__(self, *args: Any, sample: Any = None, view: Any = None, **kwargs: Any) -> Any:
        """The model's output; detached, unless the mode is "train"."""
        return self.run(args, kwargs)

    def run(
        self, args: tuple, kwargs: Mapping[str, Any], *, sample: Any = None, view: Any = None
    ) -> Any:
        model = self._held()
        args, kwargs = _widened(model, args, kwargs)
        if self.mode == "train":
            return model(*args, **kwargs)
        if self.mode == "eval" and not torch.compiler.is_compiling():
            for module in self._submodules:
                if module.training:  # someone called train() on a model that contains it
                    module.training = False
        with torch.no_grad():
            output = model(*args, **kwargs)
        return _detached(output) if isinstance(output, Tensor) else tree_map(_detached, output)

    def _held(self) -> nn.Module:
        if self._model is None:
            raise TeacherError("this teacher was released and cannot be used any more")
        return self._model

    @property
    def module(self) -> nn.Module | None:
        return self._model

    @property
    def released(self) -> bool:
        """Whether the model has been given back."""
        return self._model is None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and persistent buffers; a cast to another dtype keeps it."""
        from distillation.checkpoint import fingerprint

        now = fingerprint(self._held())
        before, after = _cast.get(self._model, (now, now))
        return before if now == after else now

    def describe(self) -> dict[str, Any] | None:
        if self.run_uuid is not None:
            return {"kind": "run", "uuid": self.run_uuid, "step": self.run_step}
        if self.reference is not None:
            return {"kind": "reference", **self.reference.to_json()}
        return None

    def share(self) -> FrozenTeacher:
        other = FrozenTeacher(self._held(), mode=self.mode, reference=self.reference)
        other.run_uuid, other.run_step = self.run_uuid, self.run_step
        return other

    def release(self) -> None:
        self._finalizer.detach()
        self._loan.end()
        self._model = None
        self._submodules = []

    def train_with(self, mode: bool = True) -> FrozenTeacher:
        if self.mode != "eval":
            self._held().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> FrozenTeacher:
        from distillation.checkpoint import fingerprint

        model = self._held()
        before = self.fingerprint if _casts(fn, model) else None
        model._apply(fn)
        if before is not None:
            _cast[model] = (before, fingerprint(model))
        return self

    def __reduce__(self) -> tuple:
        raise TeacherError(
            "a teacher is not pickled along with what it teaches: save the student, and the "
            "teacher's describe() or reference"
        )

    def __repr__(self) -> str:
        what = "released" if self._model is None else type(self._model).__name__
        return f"FrozenTeacher({what}, mode={self.mode!r})"


def refuse_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Raise `TeacherError` when the two models are one, or share a submodule or a weight."""
    if student is teacher:
        raise TeacherError(
            "teacher and student are the same object: it would be frozen and trained at once. "
            "Use copy.deepcopy(student) as the teacher."
        )
    theirs = {id(module): name for name, module in teacher.named_modules()}
    for name, module in student.named_modules():
        if id(module) in theirs:
            raise TeacherError(_shared("submodule", name, theirs[id(module)]))
    addresses = {}
    for name, tensor in teacher.state_dict(keep_vars=True).items():
        for address in _addresses(tensor):
            addresses.setdefault(address, name)
    for name, tensor in student.state_dict(keep_vars=True).items():
        for address in _addresses(tensor):
            if address in addresses:
                raise TeacherError(_shared("weights", name, addresses[address]))


def _shared(what: str, student_name: str, teacher_name: str) -> str:
    return (
        f"student and teacher share {what}: {student_name or 'the student itself'!r} of the "
        f"student is {teacher_name or 'the teacher itself'!r} of the teacher, which must not "
        "change while the student trains. Use copy.deepcopy for the teacher."
    )


def _addresses(tensor: object) -> Iterable[Any]:
    """What two tensors have in common when they are one: the object, or the memory."""
    if not isinstance(tensor, Tensor):
        return
    yield id(tensor)
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    if type(local) in (Tensor, nn.Parameter) and local.layout == torch.strided:
        pointer = local.untyped_storage().data_ptr()
        if pointer:  # 0: no memory (meta device, or empty)
            yield local.device, pointer


def _casts(fn: Callable[[Tensor], Tensor], model: nn.Module) -> bool:
    """Whether `fn` changes the dtype of one of the model's tensors (tried on empty ones)."""
    tensors = {t.dtype: t for t in model.state_dict().values() if isinstance(t, Tensor)}
    return any(fn(t.new_empty(0)).dtype != dtype for dtype, t in tensors.items())


def _widened(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, Mapping]:
    """Half-precision inputs in the dtype of the model's weights, where these are wider.

    FSDP2's mixed precision hands a student, and so its teacher, the inputs in bfloat16.
    """
    flat = not kwargs and all(isinstance(arg, Tensor) for arg in args)
    leaves = args if flat else tree_leaves((args, dict(kwargs)))
    if not any(isinstance(leaf, Tensor) and leaf.dtype in _HALF for leaf in leaves):
        return args, kwargs
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if dtype not in (torch.float32, torch.float64):
        return args, kwargs

    def widen(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype in _HALF else value

    return tree_map(widen, args), tree_map(widen, dict(kwargs))


def _detached(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.requires_grad:
        value = value.detach()
    if not torch.compiler.is_compiling() and value.is_inference():
        # Autograd refuses tensors made in inference mode; a copy made outside is an ordinary one.
        return value if torch.is_inference_mode_enabled() else value.clone()
    return value
