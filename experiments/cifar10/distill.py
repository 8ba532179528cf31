r"""
# Distilling the Knowledge in a Neural Network

This is an experiment after the paper
[Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531), in the manner of
[the tutorial of labml_nn](https://nn.labml.ai/distillation/).

It trains a small network with the knowledge of a trained larger one, the teacher; the small one,
the student, is used alone afterwards: it is faster and needs less memory.

A large model with regularization, or an ensemble of models, generalizes better than a small model
that is trained directly on the data and labels. However, a small model can be trained to generalize
better with the help of a large one.

The output probabilities of a trained model say more than the labels: they give non-zero probability
to incorrect classes too. When it classifies digits, a model that generalizes gives an image of a 7
a high probability of being a 7 and a small, but not zero, probability of being a 2, and almost none
of being another digit. Distillation trains the small model with this information.

## Soft targets

The large model's probabilities are the softmax of its logits $v_i$,

$$p_i = \frac{\exp(v_i)}{\sum_j \exp(v_j)}$$

These are the *soft targets*: the small model is trained to minimize the KL divergence between them
and its own probabilities $q_i$.

The probabilities of incorrect classes are often so small that they hardly count in the loss. So
both are softened with a temperature $T$; the higher it is, the softer the probabilities:

$$p_i = \frac{\exp(v_i / T)}{\sum_j \exp(v_j / T)}$$

## Training

A second loss has the small model predict the actual labels; the loss is the weighted sum of both.
The images that distillation trains on are the *transfer set*; the paper suggests using the training
set itself.

Train the [large model](large.html) first; its run UUID names it as the teacher:

    python -m experiments.cifar10.large --precision auto
    python -m experiments.cifar10.distill --precision auto --teacher d46cd53e
"""

from collections.abc import Callable
from typing import Any

from labml import experiment
from labml.configs import option
from labml_helpers.train_valid import BatchIndex
from torch import nn
from torch.nn.functional import log_softmax

from distillation.losses import kl_from_log_probabilities
from distillation.models.vgg import SmallModel
from distillation.table import Execution, with_tables
from distillation.teacher import TeacherSource
from experiments.cifar10 import EVALUATION, NAME, CIFAR10Configs
from experiments.classification import build_model
from experiments.command_line import parse, run_main
from experiments.evaluation import ComputedOnce
from experiments.session import open_session
from experiments.teachers import check_teacher, find_teacher, load_teacher


class Configs(CIFAR10Configs):
    """
    ## Configurations

    This extends from [`CIFAR10Configs`](index.html), which has the images, the optimizer and the
    loop.
    """

    _name = "distill"

    # The small model
    model: nn.Module = "_small_student_model"
    # The large model, frozen
    teacher: TeacherSource
    # Its outputs, by split: from itself or from a table
    large: dict = "_large_outputs"
    # KL divergence loss for soft targets: `kl`, or `labml` for the original's
    loss: Callable = "kl"
    # Cross entropy loss for the true labels
    loss_func = nn.CrossEntropyLoss()
    # Temperature, $T$
    temperature: float = 4.0
    # Weight of the soft targets loss
    #
    # The gradients of soft targets get scaled by $\frac{1}{T^2}$. To make up for it the paper
    # scales the loss by $T^2$; here that factor is a part of the [loss](#kl), so that this weight
    # need not follow the temperature.
    soft_targets_weight: float = 0.9
    # Weight of the cross entropy with the true labels
    label_loss_weight: float = 0.1
    # Where the large model's outputs come from: `off` runs it in each step, `auto` or a folder
    # keeps them in a table, so that it runs once for each view of an image
    teacher_table: str = "off"

    _parts = (*CIFAR10Configs._parts, "teacher", "large", "loss_func")
    _presets = {
        **CIFAR10Configs._presets,
        ("loss", "labml"): {
            "temperature": 5.0,
            "soft_targets_weight": 100.0,
            "label_loss_weight": 0.5,
        },
    }

    def step(self, batch: Any, batch_idx: BatchIndex):
        """
        ## Training/validation step

        A custom step, to include distillation.
        """
        # Training/evaluation mode for the small model; the large one is always in evaluation mode
        self.network.train(self.engine.is_train)
        # Data and labels; they are on the device already
        data, target = batch.images, batch.labels

        with self.engine.autocast():
            # Get the output logits, $v_i$, from the large model. A table of its outputs finds
            # them by sample and view.
            large = self.large[self.engine.split]
            large_logits = large(data, sample=batch.sample, view=batch.view)
            # Get the output logits, $z_i$, from the small model
            output = self.network(data)
        large_logits, output = large_logits.float(), output.float()

        # Soft targets
        # $$p_i = \frac{\exp(v_i / T)}{\sum_j \exp(v_j / T)}$$
        soft_targets = log_softmax(large_logits / self.temperature, dim=-1)
        # Temperature adjusted probabilities of the small model
        # $$q_i = \frac{\exp(z_i / T)}{\sum_j \exp(z_j / T)}$$
        soft_prob = log_softmax(output / self.temperature, dim=-1)

        # Calculate the soft targets loss
        soft_targets_loss = self.loss(soft_prob, soft_targets)
        # Calculate the true label loss
        label_loss = self.loss_func(output, target)
        # Weighted sum of the two losses
        loss = self.soft_targets_weight * soft_targets_loss + self.label_loss_weight * label_loss

        # Log the losses, the accuracy, and how often student and teacher say the same
        choice = output.argmax(dim=-1)
        self.track(
            {
                "loss.kl_div": soft_targets_loss,
                "loss.nll": label_loss,
                "loss": loss,
                "accuracy": (choice == target).float().mean(),
                "agreement": (choice == large_logits.argmax(dim=-1)).float().mean(),
            },
            len(target),
        )
        # Measure what the student [has taken over](../evaluation.html), on images that it does not
        # train on
        if not self.engine.is_train:
            self.evaluation.add(output, target, large_logits)

        # Train the model
        if self.engine.is_train:
            # Calculate gradients
            self.engine.backward(loss)
            # Take optimizer step
            self.engine.optimizer_step()
            # Log the model parameters and gradients on last batch of every epoch
            if batch_idx.is_last:
                self.engine.log_parameters()
            # Clear the gradients
            self.engine.zero_grad()


@option(Configs.loss, "kl")
def _kl(c: Configs):
    r"""
    <a id="kl"></a>

    ### KL divergence

    Summed over the classes, mean over the batch, times $T^2$:

    $$
    \begin{aligned}
    &T^2 \cdot \operatorname{KL}(p \| q) \\
    &\quad = \frac{T^2}{N} \sum_{n,i} p_{n,i} (\log p_{n,i} - \log q_{n,i})
    \end{aligned}
    $$
    """
    return lambda soft_prob, soft_targets: (
        kl_from_log_probabilities(soft_prob, soft_targets) * c.temperature**2
    )


@option(Configs.loss, "labml")
def _labml(c: Configs):
    r"""
    ### The original's KL divergence

    It is a mean over the batch *and* the classes, without $T^2$. With $T = 5$, ten classes and the
    weight of 100 it is $100 / (10 \cdot 25) = 0.4$ of the loss above, that is $0.4 \cdot T^2$ of
    the plain divergence.
    """
    # The mean is taken by hand: torch warns that `reduction="mean"` will change its meaning
    kl_div = nn.KLDivLoss(reduction="none", log_target=True)
    return lambda soft_prob, soft_targets: kl_div(soft_prob, soft_targets).mean()


@option(Configs.large)
def _large_outputs(c: Configs):
    """
    ### The large model's outputs

    In training each view of an image has its own entry in the table, so what the student learns
    from is exact: the large model's own logits for the very picture it sees, rounded to fp16.

    Images to evaluate on are always the same, so the large model sees each of them once a run.
    """
    sources = with_tables(
        c.teacher,
        c.teacher_table,
        {"train": c.train_loader, **c.valid_loaders},
        root=c.session.root,
        execution=Execution.beside(
            c.session.accelerator.mixed_precision, channels_last=c.channels_last
        ),
        device=c.session.device,
        say=print if c.session.is_main else None,
    )
    once = {name: ComputedOnce(sources[name], loader) for name, loader in c.valid_loaders.items()}
    return {**sources, **once}


@option(Configs.model)
def _small_student_model(c: Configs):
    """
    ### Create small model
    """
    return build_model(c, SmallModel)


def main(arguments: list[str] | None = None):
    """
    ## Train a small model with distillation
    """
    # Read and check the command line
    options = parse(
        Configs,
        arguments,
        title="Distil the large model into the small one on CIFAR-10.",
        has_teacher=True,
    )
    # Find the large model's run
    teacher = find_teacher(options)
    # Open a run of the store, or go on with one
    with open_session(options, NAME, "distill", teacher=teacher, evaluation=EVALUATION) as session:
        # Create configurations
        conf = Configs()
        # Set the run, and the large model as it was saved
        conf.session = session
        conf.teacher = load_teacher(teacher, session, options)
        # Load configurations
        experiment.configs(conf, options.values)
        # The large model must know more than nothing
        check_teacher(conf, teacher, options)
        # Start the experiment and run the training loop
        with experiment.start():
            conf.run()


#
if __name__ == "__main__":
    run_main(main)
