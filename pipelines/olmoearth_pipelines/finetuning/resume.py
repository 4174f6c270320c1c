"""What is kept after every epoch, so that a run that was killed ends with the weights of one that was not.

One file, written whole or not at all, of tensors and plain data only; it is read without unpickling code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.errors import OutputError
from olmoearth_cli.maps.files import write_bytes
from olmoearth_pipelines.finetuning.run_folder import RESUME

FORMAT = 1


def learned(network: FinetuneModel) -> dict[str, Tensor]:
    """What training has made of a network: its head, and of its encoder what learns now; copies on the CPU."""
    head = {f"head.{name}": value for name, value in network.head.state_dict().items()}
    encoder = {f"encoder.{name}": p for name, p in network.encoder.named_parameters() if p.requires_grad}
    return {name: value.detach().to("cpu", copy=True) for name, value in {**head, **encoder}.items()}


def restore(network: FinetuneModel, weights: Mapping[str, Tensor]) -> None:
    """Put into a fresh network what `learned` took out of another.

    Raises:
        ValueError: weights of another network.
    """
    there = network.state_dict(keep_vars=True)
    strange = [name for name, value in weights.items() if name not in there or there[name].shape != value.shape]
    if strange:
        raise ValueError(f"no place for {', '.join(strange)}")
    with torch.no_grad():
        for name, value in weights.items():
            there[name].copy_(value)


def write_resume(folder: Path, state: Mapping[str, Any]) -> None:
    """Keep a state in place of the one before.

    Raises:
        OutputError: the system refused; the one before is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_bytes(folder / RESUME, buffer.getbuffer())


def read_resume(folder: Path) -> dict[str, Any] | None:
    """The state that was kept last; None where there is none.

    Raises:
        OutputError: it is damaged.
    """
    path = folder / RESUME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}, this program reads {FORMAT}")
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutputError(
            f"{path}: cannot be gone on from ({reason}). Delete it and run again to start from the first epoch."
        ) from error
    return state
