"""The published layout on disk: `config.json` with `weights.pth` or `model.safetensors`.

spec/model.md section 8.

Weights are read as tensors only: a pickle that names code is refused and never run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.errors import ModelError, OutputError

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "weights.safetensors", "weights.pth")
"""Names that weights may have in a folder; the first one there is read."""
_PREFIX = "encoder."
_NOT_ENCODER = ("decoder.", "target_encoder.", "supervision_head.", "location_token_distillation_head.")
_LEGACY = "composite_encodings.pos_embed"
"""Slot codes that old checkpoints stored and that are computed now."""
_PICKLE_LOOK = 1_000_000
"""Bytes of a bare pickle that are looked through for names."""
_SHOWN = 4
"""Keys named in a message before it says how many more there are."""


def weights_file(folder: Path) -> Path:
    """The weights in a model folder.

    Raises:
        ModelError: there are none.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder}: no weights; one of {', '.join(WEIGHT_FILES)} is expected beside config.json.")


def load_encoder_weights(encoder: Encoder, path: Path) -> None:
    """Fill an encoder from a published file; stored half precision becomes the encoder's own.

    Raises:
        ModelError: the file is damaged, holds code, or belongs to another architecture.
    """
    state = encoder_state(read_tensors(path), path)
    expected = encoder.state_dict()
    _compare(expected, state, path)
    encoder.load_state_dict({key: value.to(expected[key].dtype) for key, value in state.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a weights file as a flat {key: tensor} mapping on the CPU.

    Raises:
        ModelError: the file cannot be read as such.
    """
    again = "Fetch the file again (delete it from the cache first if it came from the hub)."
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}). {again}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error}). {again}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: truncated, or not a PyTorch weights file ({reason}). {again}") from None
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(
            f"{path}: a flat mapping of names to tensors is expected, but the file holds something else. "
            "Use the weights.pth that was published next to config.json, not a training checkpoint."
        )
    return {str(key): value for key, value in content.items()}


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "GLOBAL" in text or "Unsupported class" in text or _names_code(path):
            raise ModelError(
                f"{path}: holds Python code besides tensors. It was not run. Use weights from a source that "
                "you trust, stored as plain tensors (safetensors, or a state dict saved by torch.save)."
            ) from None
        raise ValueError("no pickle of tensors") from None


def _names_code(path: Path) -> bool:
    """True for a bare pickle that refers to Python objects; looks at its opcodes and runs none of them.

    PyTorch reads old pickle protocols only, and says of newer ones no more than that it cannot.
    """
    try:
        for opcode, _, _ in pickletools.genops(path.read_bytes()[:_PICKLE_LOOK]):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                return True
    except (ValueError, IndexError):
        return False  # not a pickle, or cut off before any name
    return False


def encoder_state(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The encoder's own entries of a published state dict, without prefix and legacy keys.

    Raises:
        ModelError: there are none.
    """
    if all(key.startswith("model.") for key in tensors):  # saved through a wrapper
        tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
    state = {}
    strange = []
    for key, value in tensors.items():
        if key.startswith(_PREFIX):
            if key != _PREFIX + _LEGACY:
                state[key.removeprefix(_PREFIX)] = value
        elif not key.startswith(_NOT_ENCODER):
            strange.append(key)
    if not state:
        raise ModelError(
            f"{path}: no weights of an OlmoEarth encoder (it holds {_some(list(tensors))}). "
            "Use the weights published with this config.json."
        )
    if strange:
        logger.warning("%s: ignored entries that no OlmoEarth model has: %s", path, _some(strange))
    return state


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {list(found[key].shape)} in place of {list(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    faults = [
        f"{what}: {_some(keys)}"
        for what, keys in (("missing", missing), ("unexpected", extra), ("other shape", shapes))
        if keys
    ]
    if faults:
        raise ModelError(
            f"{path}: these weights do not belong to the config.json beside them. {'; '.join(faults)}. "
            "Use the two files of one published model."
        )
    broken = [key for key, value in found.items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(f"{path}: not-a-number or infinite values in {_some(broken)}. Fetch the file again.")


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values, for a model that came from no file."""
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_bytes(tensors: dict[str, Tensor], suffix: str) -> bytes:
    """A weights file's content: `.safetensors`, or what `torch.load` reads.

    Made in memory, for torch's own writer ends the process when a disk is full.
    """
    if suffix == ".safetensors":
        return save(tensors, metadata={"format": "pt"})
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def write_folder(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], *, weights: str, dtype: torch.dtype
) -> Path:
    """Write the published layout; each file appears whole or not at all.

    Args:
        folder: made if absent.
        config: becomes `config.json`.
        state: the encoder's state dict without prefix.
        weights: `model.safetensors` or `weights.pth`.
        dtype: what floating values are stored as.

    Returns:
        The weights file.

    Raises:
        ValueError: another name for the weights.
        OutputError: the folder cannot be written.
    """
    if weights not in ("model.safetensors", "weights.pth"):
        raise ValueError(f"weights must be model.safetensors or weights.pth, not {weights}")
    tensors = {_PREFIX + key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    path, part = folder / weights, folder / f"{weights}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_bytes(weights_bytes(tensors, path.suffix))
        part.replace(path)
        part = folder / "config.json.part"
        part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        part.replace(folder / "config.json")
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OutputError(
            f"{folder}: the model could not be written ({error}). Free space or choose another folder."
        ) from None
    return path
