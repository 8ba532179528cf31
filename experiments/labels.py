r"""
# Train on the labels alone

The step that a large model and a small one share when they are trained without a teacher.
"""

from typing import Any

from labml.configs import option
from labml_helpers.train_valid import BatchIndex
from torch import nn

from experiments.classification import ClassificationConfigs


class LabelConfigs(ClassificationConfigs):
    """
    ## Configurations

    This extends from [`ClassificationConfigs`](classification.html), which has the images, the
    optimizer and the loop.
    """

    # Share of the label that is spread over all classes, $\epsilon$
    label_smoothing: float = 0.0
    # Cross entropy loss
    loss_func: nn.Module = "_label_loss"

    def step(self, batch: Any, batch_idx: BatchIndex):
        """
        ## Training/validation step
        """
        # Training/evaluation mode
        self.network.train(self.engine.is_train)
        # Data and labels
        data, target = batch.images, batch.labels

        # Get the output logits, $v_i$
        with self.engine.autocast():
            output = self.network(data)
        output = output.float()

        # Cross entropy with the labels
        loss = self.loss_func(output, target)

        # Log the loss and the accuracy
        accuracy = (output.argmax(dim=-1) == target).float().mean()
        self.track({"loss": loss, "accuracy": accuracy}, len(target))
        # Measure the [calibration](evaluation.html) too, on images that it does not train on
        if not self.engine.is_train:
            self.evaluation.add(output, target)

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


@option(LabelConfigs.loss_func)
def _label_loss(c: LabelConfigs):
    r"""
    ### Cross entropy

    $$- \sum_i \Big((1 - \epsilon) [i = y] + \frac{\epsilon}{C}\Big) \log p_i$$

    with the label $y$, $C$ classes and the smoothing $\epsilon$.
    """
    return nn.CrossEntropyLoss(label_smoothing=c.label_smoothing)
