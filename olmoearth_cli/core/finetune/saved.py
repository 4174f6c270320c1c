"""A fine-tuned model as a folder: the published layout, the head beside it, and what both were taught.

    config.json, model.safetensors      the encoder, for `load_model`
    head.safetensors                    the head
    finetuned.json                      the task and the checksums of the three files, written last

A folder is a checkpoint when `finetuned.json` is there; nothing is ever unpickled.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from olmoearth_cli.core.checkpoint import read_tensors, sha256_of_file
from olmoearth_cli.core.finetune.heads import Head
from olmoearth_cli.core.finetune.lora import merge_lora
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.task import TaskDescription
from olmoearth_cli.core.model import OlmoEarthModel, load_model, save_model
from olmoearth_cli.core.probe.saved import write_whole
from olmoearth_cli.core.spec import CONFIG_FILE
from olmoearth_cli.errors import InputError, ModelError, OutputError

FORMAT = 1
"""Raised when the meaning of a stored field changes."""
DESCRIPTION = "finetuned.json"
_ENCODER, _HEAD = "model.safetensors", "head.safetensors"
_FILES = (CONFIG_FILE, _ENCODER, _HEAD)
_AGAIN = "Fetch the folder again, or fine-tune again."


@dataclass(frozen=True, kw_only=True, eq=False)
class Finetuned:
    """A fine-tuned model with what must be known to use it."""

    model: OlmoEarthModel
    """The encoder, as `load_model` gives it; before it is saved, with LoRA layers or without."""
    head: Head
    """The head."""
    task: TaskDescription
    """What they were taught."""
    base: Mapping[str, Any]
    """`id`, `name` and `sha256` of the model that training began with."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Whatever else is worth keeping, as plain JSON: recipe, metrics, software."""

    def network(self, precision: str = "float32") -> FinetuneModel:
        """Encoder and head joined, in evaluation mode and at rest, for `scores_of`."""
        network = FinetuneModel(self.model, self.head, precision=precision)
        return network.eval().requires_grad_(False)


def save_finetuned(folder: str | Path, finetuned: Finetuned) -> Path:
    """Write a checkpoint; until all of it is there the folder is not one. What else lies in it stays.

    Args:
        folder: made if absent.
        finetuned: LoRA layers are merged in the copy that is written.

    Returns:
        The folder.

    Raises:
        ValueError: head and task do not belong together.
        OutputError: the system refused.
    """
    folder = Path(folder)
    if finetuned.task.head != finetuned.head.spec:
        raise ValueError(f"the task describes {finetuned.task.head}, the head is {finetuned.head.spec}")
    try:
        (folder / DESCRIPTION).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}). Choose another --out.") from None
    model = finetuned.model
    encoder = copy.deepcopy(model.encoder)
    merge_lora(encoder)
    demo = {"name": model.name} if model.demo else None
    save_model(dataclasses.replace(model, encoder=encoder), folder, demo, weights=_ENCODER)
    tensors = {key: value.detach().cpu().contiguous() for key, value in finetuned.head.state_dict().items()}
    write_whole(folder / _HEAD, save(tensors))
    content = {
        "format": FORMAT,
        "task": finetuned.task.to_json(),
        "base": dict(finetuned.base),
        "facts": dict(finetuned.facts),
        "sha256": {name: sha256_of_file(folder / name) for name in _FILES},
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / DESCRIPTION, f"{text}\n".encode())
    return folder


def load_finetuned(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> Finetuned:
    """Read what `save_finetuned` wrote.

    Args:
        folder: of the checkpoint.
        device: where to compute.

    Raises:
        InputError: no such folder, or no checkpoint in it.
        ModelError: damaged, mixed from several checkpoints, or of a newer format.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise InputError(
            f"{folder}: no {DESCRIPTION}, so this is no finished fine-tuned model. Give the folder that "
            "`olmoearth finetune --out` wrote; run it again if it was interrupted."
        )
    content = _read(folder)
    for name, wanted in content["sha256"].items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != wanted:
            raise ModelError(f"{folder / name}: not the file that {DESCRIPTION} describes. {_AGAIN}")
    model = load_model(folder, device)
    try:
        task = TaskDescription.from_json(content["task"])
        if task.head.width != model.spec.embedding_size:
            raise ValueError(f"a head for {task.head.width} dimensions, a model with {model.spec.embedding_size}")
        with torch.device("meta"):  # no memory for sizes that the file may claim
            head = Head(task.head)
        head.load_state_dict(_finite(read_tensors(folder / _HEAD)), assign=True)
        base, facts = dict(content["base"]), dict(content["facts"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{folder}: the fine-tuned model in it is damaged ({reason}). {_AGAIN}") from None
    head = head.to(model.device).eval().requires_grad_(False)
    return Finetuned(model=model, head=head, task=task, base=base, facts=facts)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, names = int(content["format"]), set(dict(content["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read ({error!r}). {_AGAIN}") from None
    if version > FORMAT:
        raise ModelError(f"{path}: in format {version}, this program reads up to {FORMAT}. Install a newer olmoearth.")
    if names != set(_FILES):  # file names come from us, never from the file
        raise ModelError(f"{path}: checksums of other files than {', '.join(_FILES)}. {_AGAIN}")
    return content


def _finite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"values that are not finite in {', '.join(broken)}")
    return state
