r"""
# What a student has taken over

Accuracy says how often a model is right. Whether a student *became like its teacher* is another
question, and a better loss on the labels does not answer it
([Stanton et al. 2021](https://arxiv.org/abs/2106.05945)). So each evaluation also measures

* the *agreement*: the share of images that student and teacher give the same class,
* $\operatorname{KL}(p \| q)$ with the teacher's probabilities $p$ and the student's $q$, $T = 1$,
* the *calibration error*: how far confidence is from accuracy
  ([Guo et al. 2017](https://arxiv.org/abs/1706.04599)), in fifteen bins,
* which class is taken for which.

`distillation.transfer_hook` counts them, on the device; they become metrics of the epoch, such as
`ece.test`, and those of the test images `evaluation.json` in the run's folder.
"""

from typing import Any

from torch import Tensor

from distillation.errors import TeacherError
from distillation.frozen_teacher import TeacherSource


class ComputedOnce(TeacherSource):
    """
    ## A teacher's outputs on images that are never augmented

    The teacher does not change, so its outputs on the test images don't either: `source` (the
    teacher, or a table of its outputs) is asked for them all when they are first needed, and they
    stay on the device: 400 kB for 10,000 images and ten classes. A look-up waits for nothing.
    """

    keyed = True

    def __init__(self, source: TeacherSource, loader: Any):
        self.source, self.loader = source, loader
        self.run_uuid, self.run_step = source.run_uuid, source.run_step
        self.reference, self.mode = source.reference, source.mode
        self.outputs: Tensor | None = None

    def __call__(self, *args: Any, sample: Tensor | None = None, **_: Any) -> Tensor:
        if sample is None:
            raise TeacherError("these outputs are found by key: give sample=…, a batch's own")
        if self.outputs is None:
            self.outputs = self._compute()
        return self.outputs.index_select(0, sample)

    def _compute(self) -> Tensor:
        """All outputs of this process's share, in the precision that the caller has chosen"""
        outputs = None
        for batch in self.loader.batches(0):
            logits = self.source(batch.images, sample=batch.sample, view=batch.view)
            if outputs is None:
                outputs = logits.new_full(
                    (len(self.loader.image_set), logits.shape[1]), float("nan")
                )
            outputs[batch.sample] = logits
        return outputs

    @property
    def fingerprint(self) -> str:
        """That of the teacher"""
        return self.source.fingerprint

    def release(self) -> None:
        """Give the teacher back"""
        self.outputs = None
        self.source.release()
