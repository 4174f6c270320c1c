"""Checkpoints: a model folder in the published layout plus what training needs to go on.

    checkpoints/step-00000500/   config.json  model.safetensors  state.pt

`load_model` reads such a folder as it is. `state.pt` holds tensors and plain data only. A folder appears whole or not
at all, under its final name.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from olmoearth_cli import __version__
from olmoearth_cli.core.nn.decoder import DEPTH
from olmoearth_cli.core.pretrain_step import PretrainModel
from olmoearth_cli.core.pretrain_weights import load_published, model_section
from olmoearth_cli.errors import ModelError, OutputError
from olmoearth_cli.maps.files import PART, output_error, write_bytes, write_json
from olmoearth_pipelines.training.run_folder import CHECKPOINTS

WEIGHTS, STATE, CONFIG = "model.safetensors", "state.pt", "config.json"
_NAME = re.compile(r"step-(\d{8,})")


def write_checkpoint(
    folder: Path,
    model: PretrainModel,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    about: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a step.

    Args:
        folder: of the run.
        model: its weights.
        optimizer: its moments.
        state: plain data; `step` names the folder.
        about: what is recorded in `config.json` beside the architecture.

    Returns:
        The checkpoint's folder.

    Raises:
        OutputError: the system refused; earlier checkpoints are untouched.
    """
    final = folder / CHECKPOINTS / f"step-{state['step']:08d}"
    part = final.with_name(final.name + PART)
    content = {
        "model": model_section(model.config, DEPTH),
        "train_module": {
            "masking_config": {
                "strategy_config": {
                    "only_decode_modalities": [
                        m for m in model.config.modalities if m not in model.config.input_modalities
                    ]
                }
            }
        },
        "olmoearth": {"version": __version__, **about},
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        shutil.rmtree(part, ignore_errors=True)
        write_bytes(part / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_bytes(part / STATE, _bytes({"optimizer": optimizer.state_dict(), **state}))
        write_json(part / CONFIG, content)
        shutil.rmtree(final, ignore_errors=True)  # damaged, or the run would have gone on from it
        part.rename(final)
    except OSError as error:
        raise output_error(final, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, newest first."""
    home = folder / CHECKPOINTS
    found = [path for path in home.iterdir() if _NAME.fullmatch(path.name)] if home.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(path.name.removeprefix("step-"))


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints; a deletion that is cut short leaves no half one behind."""
    for path in checkpoints(folder)[keep:]:
        part = path.with_name(path.name + PART)
        with contextlib.suppress(OSError):  # the next rotation tries again
            path.rename(part)
            shutil.rmtree(part)


def read_newest(
    folder: Path, model: PretrainModel, optimizer: torch.optim.Optimizer, warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """Fill model and optimizer from the newest checkpoint that is sound.

    Args:
        folder: of the run.
        model: filled.
        optimizer: filled.
        warn: told of checkpoints that are damaged.

    Returns:
        The state, None where there is no checkpoint.

    Raises:
        OutputError: there are checkpoints, and all are damaged.
    """
    found = checkpoints(folder)
    for path in found:
        try:
            return _read(path, model, optimizer)
        except ModelError as error:
            warn(f"{error} Going on from the checkpoint before it.")
    if found:
        raise OutputError(f"{folder}: all checkpoints are damaged. Start again with --overwrite or another --out.")
    return None


def _read(path: Path, model: PretrainModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
        moments = state.pop("optimizer")
        load_published(model, path / WEIGHTS)
        optimizer.load_state_dict(moments)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: the checkpoint is damaged ({reason}).") from error
    if state.get("step") != step_of(path):
        raise ModelError(f"{path}: the checkpoint is of step {state.get('step')}, not of the one that names it.")
    return state


def _bytes(content: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
