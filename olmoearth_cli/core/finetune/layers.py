"""Learning rates by depth (spec/evaluation.md 8.4), and the optimiser of the recipes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from olmoearth_cli.core.finetune.model import FinetuneModel

Group = dict[str, Any]
"""A parameter group: `params`, `lr`, and what `LearningRates` reads: `base_lr`, `part` (`encoder` or `head`)."""


def parameter_groups(model: FinetuneModel, lr: float, llrd: float | None = None) -> list[Group]:
    """The parameters with their learning rates.

    Args:
        model: encoder and head.
        lr: of the head.
        llrd: decay r per layer; None for the same rate everywhere.

    Returns:
        Without decay the encoder and the head. With it L + 1 groups: r^(L - i) for block i = 0 ... L - 1, the
        embeddings with block 0; the full rate for the head, the final norm and the projection.

    Raises:
        ValueError: a rate or decay out of range, or a parameter in no group or in several.
    """
    if not lr > 0 or (llrd is not None and not 0 < llrd <= 1):
        raise ValueError(f"the learning rate must be above 0 and its decay in (0, 1], not {lr} and {llrd}")
    head = list(model.head.parameters())
    if llrd is None:
        groups = [_group(list(model.encoder.parameters()), lr, "encoder"), _group(head, lr, "head")]
    else:
        *blocks, end = [list(layer.parameters()) for layer in model.encoder.layers_in_order()]
        depth = len(blocks)
        groups = [_group(params, lr * llrd ** (depth - i), "encoder") for i, params in enumerate(blocks)]
        groups.append(_group([*end, *head], lr, "head"))
    _check_complete(model, groups)
    return groups


def adamw(groups: list[Group], *, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW as in the recipes: everything decays that has a gradient, norms and biases included.

    What is frozen, or not reached by a batch, has no gradient and stays as it is.
    """
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True)


def _group(params: list[torch.nn.Parameter], lr: float, part: str) -> Group:
    return {"params": params, "lr": lr, "base_lr": lr, "part": part}


def _check_complete(model: FinetuneModel, groups: list[Group]) -> None:
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    wrong = [name for name, parameter in model.named_parameters() if counts[id(parameter)] != 1]
    if wrong or sum(counts.values()) != sum(1 for _ in model.parameters()):
        raise ValueError(f"parameters that are not in exactly one group: {', '.join(wrong) or 'foreign ones'}")
