"""The toolkit's models and losses.

A plain model is called with the inputs and gives logits.

A model of the dict contract has a parameter `temperature` in its `forward`. It is called with the
whole batch, `model(*batch, temperature=T)` (of a dict batch `model(**batch, temperature=T)`), and
returns a dict:

* `logits`: divided by T already, as the toolkit's examples have it; or `tempered_logits` so, and
  `logits` undivided
* `loss` (of the student, optional): a scalar, or `{name: scalar}`; `final_loss_coeff_dict` may
  name them

`prob` and `log_prob`, the softmax of the tempered logits, are for the caller's own pipeline; they
are taken where a model returns no logits. A first batch in which they show that `logits` are not
divided by T is an error. Student and teacher may be of different kinds.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from distillation.errors import ConfigError, unknown
from distillation.kd_module import KDModule, KDOutput
from distillation.losses import cosine, kl_divergence
from distillation.trainer.batches import KEYS, plain_output, take_apart

LOSSES = ("kd_loss", "ce_loss", "cos_embed_loss")


def follows_contract(model: Any) -> bool:
    """Whether a model's forward takes `temperature`."""
    return isinstance(model, nn.Module) and "temperature" in _parameters(model)


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


class ToolkitModule(KDModule):
    """A KDModule that calls models of the dict contract as they want to be called."""

    def __init__(self, student: nn.Module, teacher: Any, temperature: float):
        super().__init__(student=student, teacher=teacher)
        self.temperature = temperature

    @property
    def by_contract(self) -> bool:
        """Whether the models see whole batches."""
        return follows_contract(self.student) or follows_contract(self.teacher)

    def adapters(self) -> dict[str, Any]:
        """Training parameters with which the batches and outputs come whole."""
        if not self.by_contract:
            return {}
        return {"batch_adapter": _whole, "output_adapter": _as_it_is}

    def forward(self, *args: Any, sample: Any = None, view: Any = None, **kwargs: Any) -> KDOutput:
        """Outputs of both models; by contract the one argument is the batch."""
        if not self.by_contract:
            return super().forward(*args, sample=sample, view=view, **kwargs)
        (batch,) = args
        positional, named = self._call(self.teacher, batch)
        teacher = self.answering_source(*positional, sample=sample, view=view, **named)
        positional, named = self._call(self.student, batch)
        return KDOutput(self.student(*positional, **named), teacher)

    def _call(self, model: Any, batch: Any) -> tuple[tuple, dict[str, Any]]:
        if not follows_contract(model):
            parts = take_apart(batch)
            return parts.args, parts.kwargs
        if isinstance(batch, Mapping):
            named = {k: v for k, v in batch.items() if k not in KEYS}
            if set(named) <= set(_parameters(model)):
                return (), {**named, "temperature": self.temperature}
            return (batch,), {"temperature": self.temperature}
        if hasattr(batch, "_fields"):
            batch = tuple(v for k, v in batch._asdict().items() if k not in KEYS)
        whole = batch if isinstance(batch, list | tuple) else (batch,)
        return tuple(whole), {"temperature": self.temperature}


class ToolkitLoss(nn.Module):
    """The weighted sum of the losses that `coefficients` name; called with a KDOutput.

    Classes are the last dimension of the logits; or the second, where targets (N, …) are those that
    `cross_entropy` takes with logits (N, classes, …).

    * `kd_loss`: KL(teacher ‖ student) at temperature T, times T²
    * `ce_loss`: cross-entropy with the target, on logits that are not divided by T; by the dict
      contract the student's own `loss["ce_loss"]` where it returns one
    * `cos_embed_loss`: 1 - cosine of student's and teacher's logits, mean over the batch
    * any other: what the student returns under `loss` by that name

    Raises `ConfigError` at the first batch for a coefficient of a loss that there is not, and for
    `logits` beside which `log_prob` or `prob` are softened and they are not.
    """

    def __init__(self, coefficients: Mapping[str, float], temperature: float):
        super().__init__()
        self.coefficients, self.temperature = dict(coefficients), float(temperature)
        self._looked_at: set[str] = set()

    @staticmethod
    def check(coefficients: Mapping[str, float], student: Any) -> None:
        """Raise `ConfigError` for coefficients that are no numbers, or surely of no loss."""
        if not coefficients:
            raise ConfigError(f"final_loss_coeff_dict is empty; known losses: {', '.join(LOSSES)}")
        for name, value in coefficients.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ConfigError(f"final_loss_coeff_dict[{name!r}] is no number but {value!r}")
            if name not in LOSSES and not follows_contract(student):
                message = unknown("loss in final_loss_coeff_dict:", name, LOSSES)
                raise ConfigError(
                    f"{message} A student whose forward takes temperature= may return others."
                )

    @property
    def component_names(self) -> list[str]:
        """Names of the entries of `items`, in order."""
        return ["Loss", *self.coefficients]

    def forward(self, output: KDOutput, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`(total, items)`, `items` detached."""
        student, teacher = output.student_output, output.teacher_output
        own = student.get("loss", {}) if isinstance(student, Mapping) else {}
        own = {"loss": own} if torch.is_tensor(own) else own
        parts = [self._part(name, student, teacher, target, own) for name in self.coefficients]
        weighted = [c * part for c, part in zip(self.coefficients.values(), parts, strict=True)]
        total = sum(weighted[1:], weighted[0])
        return total, torch.stack([total, *parts]).detach()

    def _part(
        self, name: str, student: Any, teacher: Any, target: Any, own: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        if name == "kd_loss":
            return self._kd(student, teacher, target)
        if name == "cos_embed_loss":
            one, other = self._logits(student, "student"), self._logits(teacher, "teacher")
            return cosine(one, other, dim=_class_dimension(one, target))
        if name in own:
            return own[name].float()
        if name != "ce_loss":
            raise ConfigError(
                unknown("loss in final_loss_coeff_dict:", name, [*LOSSES, *own])
                + " The student returns its own under 'loss'."
            )
        if target is None:
            raise ConfigError("ce_loss needs a target, and the batch has none")
        return F.cross_entropy(self._logits(student, "student"), target)

    def _kd(self, student: Any, teacher: Any, target: Any) -> torch.Tensor:
        if not isinstance(student, Mapping) and not isinstance(teacher, Mapping):
            one, other = self._logits(student, "student"), self._logits(teacher, "teacher")
            return kl_divergence(one, other, self.temperature, dim=_class_dimension(one, target))
        one, other = self._tempered(student, "student"), self._tempered(teacher, "teacher")
        dim = _class_dimension(one, target)
        return kl_divergence(one, other, dim=dim) * self.temperature**2

    def _logits(self, output: Any, whose: str) -> torch.Tensor:
        """Logits that are not divided by the temperature."""
        if not isinstance(output, Mapping):
            return plain_output(output)
        if "tempered_logits" in output and "logits" in output:
            return output["logits"]
        return self._tempered(output, whose) * self.temperature

    def _tempered(self, output: Any, whose: str) -> torch.Tensor:
        """Logits divided by the temperature, up to a constant a row."""
        if not isinstance(output, Mapping):
            return plain_output(output) / self.temperature
        if whose not in self._looked_at:  # once: to compare makes the host wait
            self._looked_at.add(whose)
            _check_softened(output, self.temperature, whose)
        for name in ("tempered_logits", "logits", "log_prob"):
            if name in output:
                return output[name]
        if "prob" in output:
            return _log(output["prob"])
        raise ConfigError(
            f"the {whose} returned a dict without logits; it has {sorted(map(str, output))}"
        )


def _log(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


@torch.no_grad()
def _check_softened(output: Mapping[str, Any], temperature: float, whose: str) -> None:
    """Raise for logits that are not divided by T, where the probabilities beside them are."""
    logits = output.get("logits")
    beside = next((name for name in ("log_prob", "prob") if name in output), None)
    if logits is None or beside is None or "tempered_logits" in output or temperature == 1:
        return
    told = output[beside]
    if not torch.is_tensor(told) or told.shape != logits.shape:
        return
    told = told.float()
    told = told if beside == "log_prob" else _log(told)
    for dim in range(logits.dim()):
        divided, bare = (
            torch.allclose(told, F.log_softmax(logits.float() / T, dim), rtol=1e-2, atol=1e-3)
            for T in (1.0, temperature)
        )
        if bare and not divided:
            raise ConfigError(
                f"the {whose}'s {beside} is the softmax of logits / {temperature:g}, so its "
                "'logits' are not divided by the temperature yet, as this contract takes them to "
                "be; return the divided ones under 'tempered_logits' as well"
            )


def _whole(batch: Any) -> tuple[tuple[Any], Any]:
    """The batch as the one argument, and its target."""
    return (batch,), take_apart(batch).target


def _as_it_is(output: Any) -> Any:
    return output


def _class_dimension(logits: torch.Tensor, target: Any) -> int:
    shape = (*logits.shape[:1], *logits.shape[2:])
    return 1 if torch.is_tensor(target) and target.shape == shape else -1
