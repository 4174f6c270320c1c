"""How many windows fit in memory at a time, and the word to the user when they do not.

A GPU says when its memory is full, and smaller numbers are tried then. A CPU's memory is overcommitted: the system
kills the process without a word. So there the tensors that a window's pass keeps for its gradients are added up first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from olmoearth_cli.core.finetune.batch import FinetuneBatch
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.errors import InputError

_CPU_REFUSALS = ("can't allocate memory", "not enough memory", "alloc_cpu")
"""In the RuntimeError that torch raises on a CPU."""


def is_shortage(error: BaseException) -> bool:
    """True where an error says that memory is full."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _CPU_REFUSALS)


def largest(size: int, attempt: Callable[[int], object]) -> int:
    """The largest number of windows, halved from `size` on, for which an attempt succeeds; 0 for none."""
    count = size // 2
    while count:
        try:
            attempt(count)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
        else:
            return count
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        count //= 2
    return 0


def shortage(size: int, fits: int, where: str, *, batch_size: int) -> InputError:
    """The message.

    Args:
        size: windows that were computed at a time.
        fits: windows that fit.
        where: whose memory it is.
        batch_size: windows of an update.
    """
    if not fits:
        return InputError(
            f"out of memory: not even one window fits in the memory of {where} while the encoder learns. Choose a "
            "smaller --model, smaller windows, fewer modalities, --precision bfloat16, or --recipe head."
        )
    parts = math.ceil(batch_size / fits)
    return InputError(
        f"out of memory: {size} windows at a time do not fit in the memory of {where}; {fits} would. Give "
        f"--accumulate {parts} (the same updates in parts of at most {math.ceil(batch_size / parts)}), or "
        f"--batch-size {fits}."
    )


def bytes_per_window(network: FinetuneModel, batch: FinetuneBatch) -> int:
    """What the forward pass keeps of a window for its gradients.

    Args:
        network: in training mode.
        batch: one window or more.
    """
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(batch)  # alive until the sum is taken, so that no address is used twice
        total = sum(kept.values())
    del outputs
    return total // len(batch)


def available_bytes() -> int:
    """Memory that this process can still take: of the machine, and of its container."""
    from distributed.system import MEMORY_LIMIT

    return int(min(psutil.virtual_memory().available, MEMORY_LIMIT - psutil.Process().memory_info().rss))


def check_fits(network: FinetuneModel, batch: FinetuneBatch, size: int, *, batch_size: int, available: int) -> None:
    """Refuse, on a CPU, what would not fit.

    Args:
        network: that is to learn, in training mode.
        batch: one window.
        size: windows computed at a time.
        batch_size: windows of an update.
        available: bytes.

    Raises:
        InputError: says how many would fit.
    """
    each = max(1, bytes_per_window(network, batch))
    if size * each > available:
        fits = max(2 ** int(math.log2(available / each)), 1) if available >= each else 0
        raise shortage(size, fits, f"this machine ({available / 2**30:.1f} GiB free)", batch_size=batch_size)
