"""How one vector of logits becomes the half floats of an entry: whole, top-k, or sampled ids.

| form | half floats an entry | reads back as | error |
|---|---|---|---|
| `Dense()` | classes | logits | rounding to fp16 only |
| `TopK(k)` | 2k + 1 (3k + 1 beyond 65,536 classes) | logits | biased: see `TopK` |
| `Sampled(k)` | k + 1 (2k + 1) | `SampledTargets` | unbiased, variance like 1/k |

`Dense` is the form of this project's own experiments; the other two are for thousands of classes.
Their error, of the gradient of the student's logits relative to the exact one, on 1,000 classes
with normal logits of standard deviation 2.5 (`benchmarks/table_rates.py`):

| form | bytes (of 2,000) | one entry | mean over draws |
|---|---|---|---|
| `TopK(12)` | 50 | 3.6 % | 3.6 %, it is a bias |
| `TopK(50)` | 202 | 1.0 % | 1.0 %, it is a bias |
| `Sampled(12)` | 26 | 58 % | 0 (falls with the number of draws) |
| `Sampled(50)` | 102 | 28 % | 0 (falls with the number of draws) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from distillation.data import keys
from distillation.errors import ConfigError, ShapeError, TeacherError, unknown

HALF_MAX = 65_504.0


class SampledTargets(NamedTuple):
    """Soft targets as a few ids: an unbiased estimate of `softmax(logits / temperature)`.

    `ids` `[n, k]` int64, drawn from that distribution, so each draw weighs 1/k. `entropy` `[n]` is
    the distribution's own, in nats. `classes` is the number of classes.
    """

    ids: torch.Tensor
    entropy: torch.Tensor
    classes: int
    temperature: float

    def probabilities(self) -> torch.Tensor:
        """The estimate written out, `[n, classes]`; its expectation is the teacher's softmax."""
        n, k = self.ids.shape
        zeros = torch.zeros(n, self.classes, device=self.ids.device)
        return zeros.scatter_add_(1, self.ids, torch.full((n, k), 1.0 / k, device=zeros.device))

    def to(self, *args, **kwargs) -> SampledTargets:
        """On another device; a dtype, as in `nn.Module.to`, is that of what floats: the entropy."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        ids = self.ids.to(device, None, non_blocking)
        return self._replace(ids=ids, entropy=self.entropy.to(device, dtype, non_blocking))


class Codec(Protocol):
    """`encode` makes entries `[n, width]` float16 of logits `[n, classes]`, `decode` reads them."""

    def describe(self) -> dict[str, object]: ...

    def width(self, shape: tuple[int, ...]) -> int: ...

    def encode(self, logits: torch.Tensor, sample: np.ndarray, view: np.ndarray) -> np.ndarray: ...

    def decode(self, entries: np.ndarray, shape: tuple[int, ...]) -> object: ...


def to_half(values: torch.Tensor, what: str, sample: np.ndarray, view: np.ndarray) -> np.ndarray:
    """`[n, …]` as float16 `[n, size]`; `TeacherError` for NaN and for what fp16 cannot hold."""
    flat = values.detach().float().cpu().flatten(1)
    half = flat.half()
    wrong = torch.isnan(flat) | (torch.isinf(half) & ~torch.isinf(flat))
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        raise TeacherError(
            f"{what} {flat[row, column].item():g} of sample {int(sample[row])}, view "
            f"{int(view[row])} does not fit a half float (finite and at most {HALF_MAX:g}); "
            "a teacher with such outputs cannot be kept in a table"
        )
    return half.numpy()


@dataclass(frozen=True)
class Dense:
    """The outputs as they are, rounded to fp16: reading back equals `output.half()` to the bit."""

    def describe(self) -> dict[str, object]:
        return {"form": "dense"}

    def width(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape))

    def encode(self, logits, sample, view):
        return to_half(logits, "the output", sample, view)

    def decode(self, entries, shape):
        return torch.from_numpy(entries).float().reshape(len(entries), *shape)


@dataclass(frozen=True)
class TopK:
    """The k largest logits; what is left of the probability is spread evenly over the others.

    Reads back as logits with `logsumexp` kept at temperature 1, so any loss takes them. Biased:
    the even spread is not the teacher's, and its weight is wrong at other temperatures. No number
    of epochs averages that out; `Sampled` has no such error.
    """

    k: int

    def __post_init__(self):
        _positive("k", self.k)

    def describe(self) -> dict[str, object]:
        return {"form": "top-k", "k": self.k}

    def width(self, shape: tuple[int, ...]) -> int:
        classes = _classes(shape)
        if not self.k < classes:
            raise ConfigError(f"TopK(k={self.k}) needs more than {self.k} classes, got {classes}")
        return self.k * (1 + _words(classes)) + 1

    def encode(self, logits, sample, view):
        logits = logits.detach().float().cpu()
        classes = logits.shape[1]
        top, ids = logits.topk(self.k, dim=1)
        others = logits.scatter(1, ids, float("-inf"))
        rest = others.logsumexp(dim=1, keepdim=True) - np.log(classes - self.k)
        values = to_half(torch.cat([top, rest], dim=1), "the logit", sample, view)
        return np.concatenate([values, _pack(ids.numpy(), classes)], axis=1)

    def decode(self, entries, shape):
        classes = _classes(shape)
        values = torch.from_numpy(np.ascontiguousarray(entries[:, : self.k + 1])).float()
        ids = torch.from_numpy(_unpack(entries[:, self.k + 1 :], classes))
        return values[:, -1:].expand(-1, classes).scatter(1, ids, values[:, :-1])


@dataclass(frozen=True)
class Sampled:
    """k ids drawn with replacement from `softmax(logits / temperature)`.

    Importance sampling with the teacher's own distribution as the proposal: every draw weighs 1/k,
    and the estimate of the soft targets, of the loss and of its gradient is unbiased (Anshumann et
    al. 2025, "Sparse Logit Sampling", arXiv 2503.16870, section 4). A dozen ids are enough there.
    The draw is a pure function of `(seed, sample, view)`. Train with `SampledDistillationLoss`.
    """

    k: int = 12
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self):
        _positive("k", self.k)
        _positive("temperature", self.temperature)

    def describe(self) -> dict[str, object]:
        return {
            "form": "sampled",
            "k": self.k,
            "temperature": float(self.temperature),
            "seed": self.seed,
        }

    def width(self, shape: tuple[int, ...]) -> int:
        return self.k * _words(_classes(shape)) + 1

    def encode(self, logits, sample, view):
        to_half(logits, "the logit", sample, view)
        logs = (logits.detach().double().cpu() / self.temperature).log_softmax(dim=1)
        p = logs.exp()
        entropy = -(p * logs.nan_to_num(neginf=0.0)).sum(dim=1, keepdim=True)
        # Inverse of the cumulative distribution at k uniform numbers.
        cumulative = p.cumsum(dim=1)
        u = uniforms(self.seed, sample, view, self.k) * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, u, right=True).clamp_(max=logits.shape[1] - 1)
        half = to_half(entropy, "the entropy", sample, view)
        return np.concatenate([half, _pack(ids.sort(dim=1).values.numpy(), logits.shape[1])], 1)

    def decode(self, entries, shape):
        classes = _classes(shape)
        return SampledTargets(
            ids=torch.from_numpy(_unpack(entries[:, 1:], classes)),
            entropy=torch.from_numpy(np.ascontiguousarray(entries[:, 0])).float(),
            classes=classes,
            temperature=float(self.temperature),
        )


def codec_of(description: dict[str, object]) -> Codec:
    """The codec that `describe()`s itself so."""
    forms = {"dense": Dense, "top-k": TopK, "sampled": Sampled}
    options = dict(description)
    form = options.pop("form", None)
    if form not in forms:
        raise ConfigError(unknown("storage form", form, forms))
    return forms[form](**options)


class SampledDistillationLoss(nn.Module):
    """`KL(teacher ‖ student) · T²` of student logits and `SampledTargets`, estimated without bias.

    `Σ_draws -log softmax(student / T)[id] / k`, less the teacher's entropy, mean over the batch.
    A single estimate may be negative; its expectation is the loss of `LogitsDistillationLoss`.
    `temperature` must be the one the ids were drawn at, else `ConfigError`.
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        _positive("temperature", temperature)
        self.temperature = float(temperature)

    def forward(self, student_output: torch.Tensor, teacher_output: SampledTargets) -> torch.Tensor:
        if not isinstance(teacher_output, SampledTargets):
            raise ShapeError(
                "SampledDistillationLoss takes the SampledTargets of a table stored with "
                f"Sampled(k), got {type(teacher_output).__name__}"
            )
        if teacher_output.temperature != self.temperature:
            raise ConfigError(
                f"the ids were drawn at temperature {teacher_output.temperature:g}, the loss has "
                f"{self.temperature:g}: make a table with Sampled(temperature={self.temperature:g})"
            )
        n, classes = student_output.shape
        if (n, classes) != (len(teacher_output.ids), teacher_output.classes):
            raise ShapeError(
                f"student logits {[n, classes]} and sampled targets "
                f"{[len(teacher_output.ids), teacher_output.classes]} do not fit"
            )
        logs = (student_output.float() / self.temperature).log_softmax(dim=1)
        cross_entropy = -logs.gather(1, teacher_output.ids).mean(dim=1)
        return (cross_entropy - teacher_output.entropy).mean() * self.temperature**2


def uniforms(seed: int, sample: np.ndarray, view: np.ndarray, k: int) -> torch.Tensor:
    """`[n, k]` float64 in [0, 1], a pure function of `(seed, sample, view)`."""
    place = torch.from_numpy(np.asarray(sample, dtype=np.int64) << 20 | np.asarray(view))
    draws = [keys.hashes(keys.derive(seed, "sampled ids", draw), place) for draw in range(k)]
    return torch.stack(draws, dim=1).double() * 2.0**-63


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be greater than 0, got {value}")


def _classes(shape: tuple[int, ...]) -> int:
    if len(shape) != 1:
        raise ConfigError(
            f"this storage form takes logits [batch, classes], the teacher's output has shape "
            f"[batch, {', '.join(map(str, shape))}]; use Dense()"
        )
    return shape[0]


def _words(classes: int) -> int:
    return 1 if classes <= 65_536 else 2


def _pack(ids: np.ndarray, classes: int) -> np.ndarray:
    """Ids `[n, k]` as the bits of half floats."""
    kind = "<u2" if _words(classes) == 1 else "<u4"
    return np.ascontiguousarray(ids.astype(kind)).view("<f2")


def _unpack(words: np.ndarray, classes: int) -> np.ndarray:
    kind = "<u2" if _words(classes) == 1 else "<u4"
    return np.ascontiguousarray(words).view(kind).astype(np.int64)
