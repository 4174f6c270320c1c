"""What fine-tuning minimises, by kind of target (spec/evaluation.md 5.3 and 8.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from olmoearth_cli.core.probe.heads import KINDS
from olmoearth_cli.core.probe.losses import dice
from olmoearth_cli.core.probe.metrics import IGNORE

ERRORS = ("squared", "absolute", "huber")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss, as a mean over what is labelled; -1 (classes) and NaN (values) are not."""

    kind: str
    """Kind of target, as in `HeadSpec`."""
    classes: int
    """C; 1 for regression."""
    dice: bool = False
    """True adds the dice term (segmentation)."""
    class_weights: tuple[float, ...] | None = None
    """[C] weights of the classes; None for equal ones."""
    error: str = "squared"
    """Of regression, in standard deviations of the training values: `squared`, `absolute` or `huber` (absolute
    beyond one)."""
    target: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training values (regression)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.error not in ERRORS:
            raise ValueError(f"kind {self.kind!r} and error {self.error!r}: known are {KINDS} and {ERRORS}")
        if self.dice and self.kind != "segmentation":
            raise ValueError(f"the dice term is for segmentation, not {self.kind}")
        if self.class_weights is not None:
            if len(self.class_weights) != self.classes or self.regresses:
                raise ValueError(f"{len(self.class_weights)} class weights for {self.classes} classes of {self.kind}")
            if not all(0 <= w < float("inf") for w in self.class_weights):
                raise ValueError(f"class weights must be finite and not below 0: {self.class_weights}")
        if not self.target[1] > 0:
            raise ValueError(f"the standard deviation of the targets must be above 0, not {self.target[1]}")

    @property
    def regresses(self) -> bool:
        """True where targets are values."""
        return self.kind in {"regression", "pixel_regression"}

    def weight(self, targets: Tensor) -> float:
        """How much is labelled: the denominator of the mean. 0 means that there is no loss to speak of.

        Raises:
            ValueError: class ids that the head does not have.
        """
        if self.regresses:
            return float(torch.isfinite(targets).sum())
        largest = 1 if self.kind == "multilabel" else self.classes - 1
        if targets.numel() and (int(targets.min()) < IGNORE or int(targets.max()) > largest):
            raise ValueError(f"targets run {int(targets.min())}..{int(targets.max())}; -1..{largest} are known")
        labelled = targets != IGNORE
        if self.class_weights is None or self.kind == "multilabel":
            return float(labelled.sum())
        return float(torch.tensor(self.class_weights)[targets[labelled].cpu().long()].sum())

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch in which something is labelled.

        Args:
            outputs: float32, as of `Head.forward`.
            targets: as in `FinetuneBatch`, on the same device.

        Returns:
            A float32 scalar.
        """
        if self.regresses:
            return self._error(outputs, targets.float())
        weights = None if self.class_weights is None else outputs.new_tensor(self.class_weights)
        if self.kind == "multilabel":
            labelled = targets != IGNORE
            losses = F.binary_cross_entropy_with_logits(outputs, targets.clamp(min=0).float(), reduction="none")
            losses = losses if weights is None else losses * weights
            return torch.where(labelled, losses, 0).sum() / labelled.sum()
        targets = targets.long()
        loss = F.cross_entropy(outputs, targets, weight=weights, ignore_index=IGNORE)
        return loss + dice(outputs[None], targets) if self.dice else loss

    def _error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        finite = torch.isfinite(targets)
        wanted = (targets.nan_to_num(posinf=0, neginf=0) - self.target[0]) / self.target[1]
        difference = torch.where(finite, outputs - wanted, 0)
        if self.error == "squared":
            losses = difference.square()
        elif self.error == "absolute":
            losses = difference.abs()
        else:
            losses = F.huber_loss(difference, torch.zeros_like(difference), reduction="none")
        return losses.sum() / finite.sum()


def balanced_weights(counts: Tensor) -> tuple[float, ...]:
    """Class weights N / (C n_c) from the label counts [C]; 1 for a class without any."""
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return tuple(torch.where(counts > 0, weights, 1.0).tolist())
