"""The processes that share a batch: one alone, or several through Hugging Face accelerate.

Gradients are averaged by one reduction per step, as the fastest official variant does (spec/pretraining.md 6.1 and
8); a wrapper that reduces while it goes backward cannot tell which map weights a batch leaves out. Every process
holds all weights: the largest model of the family, with its moments, takes 6 GB.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from olmoearth_cli.errors import InputError

Any_ = TypeVar("Any_")


class Team(Protocol):
    """The processes of a run, as one of them sees them."""

    rank: int
    """Of this process."""
    size: int
    """Processes."""
    device: torch.device
    """Of this process."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over the processes, in place."""

    def gather(self, value: Any_) -> list[Any_]:
        """Everyone's value (plain data), in the order of the ranks."""

    def copy_from_first(self, model: nn.Module) -> None:
        """Give all processes the first one's weights."""

    def wait(self) -> None:
        """Until all are here."""

    def leave(self) -> None:
        """At the end."""


class Alone:
    """One process; nothing to agree on."""

    def __init__(self, device: str) -> None:
        self.rank, self.size, self.device = 0, 1, torch.device(device)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def gather(self, value: Any_) -> list[Any_]:
        """Its own value."""
        return [value]

    def copy_from_first(self, model: nn.Module) -> None:
        """Nothing to do."""

    def wait(self) -> None:
        """Nothing to do."""

    def leave(self) -> None:
        """Nothing to do."""


class Several:
    """One of the processes that `torchrun` or `launch` started."""

    def __init__(self, device: str) -> None:
        """Join the others.

        Raises:
            InputError: accelerate is not installed.
        """
        check_accelerate()
        from accelerate import PartialState

        on_cpu = device == "cpu"
        if on_cpu:  # the cores are shared, and accelerate would warn while it takes one each
            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // local)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._state = PartialState(cpu=on_cpu)
        self.rank, self.size = self._state.process_index, self._state.num_processes
        self.device = torch.device("cpu") if on_cpu else self._state.device

    def average(self, tensors: Sequence[Tensor]) -> None:
        """One reduction for all of them."""
        from accelerate.utils import reduce

        flat = reduce(torch.cat([t.flatten() for t in tensors]), "mean")
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def gather(self, value: Any_) -> list[Any_]:
        """Everyone's value."""
        from accelerate.utils import gather_object

        found: list[Any_] = gather_object([value])
        return found

    def copy_from_first(self, model: nn.Module) -> None:
        """The first process's parameters and buffers."""
        from accelerate.utils import broadcast

        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.copy_(broadcast(tensor.detach().clone()))

    def wait(self) -> None:
        """Until all are here."""
        self._state.wait_for_everyone()

    def leave(self) -> None:
        """End the group; a process that ends without it warns."""
        self._state.destroy_process_group()


def place() -> tuple[int, int]:
    """Rank and number of processes, as whoever started this one says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str) -> Team:
    """This process and the others."""
    return Several(device) if place()[1] > 1 else Alone(device)


def check_accelerate() -> None:
    """Refuse several processes where what connects them is missing.

    Raises:
        InputError: accelerate is not installed.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError:
        raise InputError(
            "more than one device needs Hugging Face accelerate, which is not installed. "
            "Install it with: pip install 'olmoearth[distributed]'."
        ) from None
