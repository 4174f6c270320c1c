"""Windows on their way into the model: read ahead by threads, kept where they are few, in an order that can be drawn
again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from olmoearth_cli.core.finetune.augment import Augmentation, augment
from olmoearth_cli.core.finetune.batch import FinetuneBatch
from olmoearth_cli.core.finetune.heads import HeadSpec
from olmoearth_cli.core.spec import ModelSpec
from olmoearth_pipelines.windows.arrays import collate, usable
from olmoearth_pipelines.windows.window import Window, WindowSource

Numbers = npt.NDArray[np.int64]
KEPT_BYTES = 2**30
"""Of windows that stay in memory."""
IGNORED = {True: float("nan"), False: -1}
"""Target that is not learned: of values, and of classes."""


class WindowReader:
    """Windows of a source as batches. Threads may share one."""

    def __init__(
        self,
        source: WindowSource,
        spec: ModelSpec,
        *,
        patch_px: int,
        modalities: tuple[str, ...],
        threads: int = 2,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """Read for a model.

        Args:
            source: where windows lie.
            spec: the model that reads them.
            patch_px: patch side p.
            modalities: what is read.
            threads: that read ahead.
            kept_bytes: windows are kept in memory up to this size, first come first kept.
        """
        self.source, self.patch_px, self.modalities, self._spec = source, patch_px, modalities, spec
        self.threads, self._free = max(1, threads), kept_bytes
        self._kept: dict[int, Window] = {}
        self._lock = threading.Lock()

    def window(self, number: int) -> Window:
        """A window, from memory where it is there.

        Raises:
            InputError: its file is gone or damaged.
        """
        found = self._kept.get(number)
        if found is None:
            found = self.source.read(number)
            size = sum(values.nbytes for part in (found.images, found.valid) for values in part.values())
            with self._lock:
                if number not in self._kept and size <= self._free:
                    self._kept[number], self._free = found, self._free - size
        return found

    def shows(self, window: Window, *, centre: bool) -> bool:
        """True where the model sees something of a window; with `centre`, of its middle patch."""
        return usable(window, self._spec, patch_px=self.patch_px, modalities=self.modalities, centre=centre)

    def batch(self, numbers: Numbers) -> FinetuneBatch:
        """Windows, normalised and joined."""
        return collate(
            [self.window(int(number)) for number in numbers],
            self._spec,
            patch_px=self.patch_px,
            normalisation=self.source.task.normalisation,
            modalities=self.modalities,
        )

    def batches(self, parts: Iterable[Numbers]) -> Generator[FinetuneBatch]:
        """One batch after the other; the next ones are read meanwhile."""
        waiting: deque[Future[FinetuneBatch]] = deque()
        todo = iter(parts)
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                while True:
                    while len(waiting) <= self.threads and (part := next(todo, None)) is not None:
                        waiting.append(pool.submit(self.batch, part))
                    if not waiting:
                        return
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def updates(numbers: Numbers, *, seed: int, epoch: int, batch_size: int, accumulate: int = 1) -> list[list[Numbers]]:
    """The windows of an epoch's updates, each in parts; every window once, the last update may be smaller.

    Args:
        numbers: of the training windows.
        seed: of the order.
        epoch: from 0; each has an order of its own.
        batch_size: windows of an update.
        accumulate: parts of an update, at most one per window.
    """
    order = np.random.default_rng([seed, epoch]).permutation(numbers)
    groups = np.split(order, range(batch_size, len(order), batch_size))
    return [np.array_split(group, min(accumulate, len(group))) for group in groups]


def in_order(numbers: Numbers, size: int) -> list[Numbers]:
    """Windows in the order of the set, so many at a time."""
    return np.split(numbers, range(size, len(numbers), size))


def drawn(seed: int, epoch: int, update: int, what: int) -> torch.Generator:
    """The generator of one update: the same after any resumption, and for every rate of a sweep."""
    mixed = np.random.SeedSequence([seed, epoch, update, what]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


def vary(batch: FinetuneBatch, augmentation: Augmentation, head: HeadSpec, generator: torch.Generator) -> FinetuneBatch:
    """Vary a batch so that every label can still be learned from something.

    What dropout hides must not leave a label without data: a label map loses the labels of patches that show nothing
    any more, and a sample whose middle patch is all that is read keeps its data where that would be empty.
    """
    hidden = augment(batch, replace(augmentation, symmetries=False), generator)
    if head.centre:
        hidden = _keeping_middle(batch, hidden)
    if not head.per_window and hidden.targets is not None:
        hidden = replace(hidden, targets=_seen_only(hidden.targets, hidden, IGNORED[head.regresses]))
    return augment(hidden, Augmentation(symmetries=True), generator) if augmentation.symmetries else hidden


def seen_patches(batch: FinetuneBatch) -> Tensor:
    """bool [B, Y, X], True where any token is visible."""
    return torch.stack([flags.flatten(3).any(dim=3) for flags in batch.visible.values()]).any(dim=0)


def _keeping_middle(before: FinetuneBatch, after: FinetuneBatch) -> FinetuneBatch:
    seen = seen_patches(after)
    lost = ~seen[:, seen.shape[1] // 2, seen.shape[2] // 2]  # B
    pairs = {name: (flags, before.visible[name]) for name, flags in after.visible.items()}
    mixed = {name: torch.where(lost[:, None, None, None, None], old, new) for name, (new, old) in pairs.items()}
    return replace(after, visible=mixed)


def _seen_only(targets: Tensor, batch: FinetuneBatch, ignored: float) -> Tensor:
    seen = seen_patches(batch)
    shown = seen.repeat_interleave(batch.patch_px, dim=1).repeat_interleave(batch.patch_px, dim=2)  # B H W
    return torch.where(shown, targets, torch.full_like(targets, ignored))
