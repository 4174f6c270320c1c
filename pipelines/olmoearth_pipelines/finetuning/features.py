"""What an encoder at rest makes of windows, computed once and kept for all frozen epochs and all legs of a sweep.

The encoder is in evaluation mode here: without stochastic depth. The research code draws it in frozen epochs too
(spec/evaluation.md 8.1), so that no two epochs see the same features; `Recipe.cache_features` False does the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from olmoearth_cli.core.finetune.batch import FeatureBatch
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_pipelines.finetuning.data import Numbers, WindowReader, in_order

KEPT_BYTES = 4 * 2**30
"""Of features that stay in memory."""


class FeatureStore:
    """Features and targets of windows, by their number."""

    def __init__(
        self, reader: WindowReader, *, batch_size: int, note: Callable[[str], None], kept_bytes: int = KEPT_BYTES
    ) -> None:
        """Begin empty.

        Args:
            reader: of the windows.
            batch_size: windows computed at a time.
            note: told when features are too large to be kept.
            kept_bytes: of all features together.
        """
        self._reader, self._size, self._note, self._free = reader, batch_size, note, kept_bytes
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._refused = False

    def fill(self, network: FinetuneModel, numbers: Numbers) -> bool:
        """Compute what is not there yet.

        Args:
            network: with its encoder as it was before training; left in the mode that it was in.
            numbers: of the windows.

        Returns:
            False where the features are too large to be kept.
        """
        missing = numbers[[int(number) not in self._kept for number in numbers]]
        if self._refused or not len(missing):
            return not self._refused
        mode = network.training
        network.eval()
        try:
            self._compute(network, missing)
        finally:
            network.train(mode)
        return not self._refused

    def batch(self, numbers: Numbers) -> FeatureBatch:
        """Windows that were computed."""
        rows = [self._kept[int(number)] for number in numbers]
        return FeatureBatch(
            features=torch.stack([features for features, _ in rows]),
            targets=torch.stack([target for _, target in rows]),
        )

    @torch.no_grad()
    def _compute(self, network: FinetuneModel, numbers: Numbers) -> None:
        parts = in_order(numbers, self._size)
        for part, batch in zip(parts, self._reader.batches(parts), strict=True):
            features = network.features(batch).cpu()
            if part is parts[0]:
                total = features[0].nbytes * len(numbers)
                if total > self._free:
                    self._refused = True
                    self._note(f"features of {total / 2**30:.1f} GiB are not kept: frozen epochs compute them anew")
                    return
                self._free -= total
            assert batch.targets is not None
            for number, one, target in zip(part, features, batch.targets, strict=True):
                self._kept[int(number)] = (one.clone(), target)
