"""A model to export: its files, checked against each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from olmoearth_cli.core import hub
from olmoearth_cli.core.checkpoint import read_tensors, weights_file
from olmoearth_cli.core.finetune.saved import DESCRIPTION, Finetuned, load_finetuned
from olmoearth_cli.core.finetune.task import Limits
from olmoearth_cli.core.model import OlmoEarthModel, load_model
from olmoearth_cli.core.nn.decoder import DEPTH
from olmoearth_cli.core.normalize import band_range
from olmoearth_cli.core.pretrain_step import PretrainModel
from olmoearth_cli.core.spec import read_config, released_spec
from olmoearth_cli.errors import ModelError

ENCODER, DECODER, TARGET = "encoder.", "decoder.", "target_encoder."
TARGET_PATCHES = TARGET + "patch_embeddings."
LEGACY = "composite_encodings.pos_embed"
SHOWN = 3
"""Names in a message."""
LICENCE = "https://github.com/allenai/olmoearth_pretrain/blob/main/LICENSE"
ALONE = "Use the two files of one model, or export the encoder alone with --encoder-only."


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSource:
    """A model folder that has been read."""

    weights: Path
    """The file."""
    config: Mapping[str, Any]
    """The whole of `config.json`."""
    tensors: Mapping[str, Tensor]
    """Encoder, and decoder and target where it has them, under the published keys."""
    model: OlmoEarthModel
    """The encoder."""
    dropped: tuple[str, ...]
    """Entries of other parts, such as heads that were trained along."""
    tuned: Finetuned | None = None
    """What a fine-tuned model was taught; None for others."""

    @property
    def own_limits(self) -> Mapping[str, Limits]:
        """{modality: limits} of a model that was fine-tuned with its data's own statistics."""
        return (self.tuned.task.normalisation or {}) if self.tuned else {}

    def limits(self, modality: str) -> Limits:
        """[C] values that become 0 and [C] that become 1 before the encoder sees them."""
        known = band_range(modality)
        return self.own_limits.get(modality) or (tuple(map(float, known.lo)), tuple(map(float, known.hi)))

    @property
    def licence(self) -> str:
        """Whose the weights are, as far as it is known."""
        recorded, training = self.about.get("licence"), self.about.get("pretraining")
        if isinstance(recorded, str):
            return recorded
        if self.model.spec.repo:
            return f"The weights are the Allen Institute for AI's, under the OlmoEarth Artifact License: {LICENCE}"
        if self.tuned is not None:
            names = (str(self.tuned.base.get("name")), str(self.tuned.base.get("id")))
            return f"Fine-tuned from {names[0]} ({names[1]}), whose licence holds here too. OlmoEarth's own: {LICENCE}"
        start = training.get("init_sha256") if isinstance(training, Mapping) else None
        if start:
            return f"Trained on from the weights with SHA-256 {start}, whose licence holds here too."
        return "The weights are those of whoever trained them, who is not recorded here."

    @property
    def has_decoder(self) -> bool:
        """True where pretraining could go on from it."""
        return any(key.startswith(DECODER) for key in self.tensors)

    @property
    def whole_target(self) -> bool:
        """True where the target is a copy of the whole encoder, as in published releases up to v1.2."""
        return any(key.startswith(TARGET) and not key.startswith(TARGET_PATCHES) for key in self.tensors)

    @property
    def decoder_depth(self) -> int:
        """Blocks of the decoder.

        Raises:
            ModelError: the configuration gives another number than the weights have.
        """
        section = self.config["model"].get("decoder_config")
        depth = section.get("depth", DEPTH) if isinstance(section, Mapping) else DEPTH
        found = len({key.split(".")[2] for key in self.tensors if key.startswith(DECODER + "blocks.")})
        if depth != found:
            raise ModelError(
                f"{self.weights.parent}: decoder_config.depth is {depth!r}, and the weights have {found} blocks of a "
                f"decoder. {ALONE}"
            )
        return found

    @property
    def name(self) -> str:
        """What it is called: the published id, or a name; an architecture's own name gets the weights' checksum."""
        spec, name = self.model.spec, self.model.name
        if spec.repo:
            return spec.id
        return f"{name}-{self.model.weights_sha256[:8]}" if name == spec.name else name

    @property
    def about(self) -> dict[str, Any]:
        """What the configuration records besides the architecture."""
        about = self.config.get("olmoearth")
        return dict(about) if isinstance(about, Mapping) else {}


def open_source(checkpoint: str) -> ModelSource:
    """Read a model: a folder in the published layout (a training checkpoint is one), or a published name.

    Raises:
        ModelError: not there, damaged, holding code, or of another architecture than its configuration says.
    """
    released = released_spec(checkpoint)
    folder = Path(checkpoint).expanduser() if released is None else hub.fetch(released.repo).parent
    tuned = load_finetuned(folder) if (folder / DESCRIPTION).is_file() else None
    model = tuned.model if tuned else load_model(checkpoint)  # checks the encoder's keys, shapes and values
    weights = weights_file(folder)
    tensors, dropped = _published(read_tensors(weights))
    return ModelSource(
        weights=weights,
        config=read_config(folder),
        tensors=tensors,
        model=model,
        dropped=dropped,
        tuned=tuned,
    )


def _published(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The entries of a model, and the names of others."""
    if all(key.startswith("model.") for key in tensors):  # saved through a wrapper
        tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
    kept, dropped = {}, []
    for key, value in tensors.items():
        if key.endswith(LEGACY):
            continue  # computed now
        if key.startswith((ENCODER, DECODER, TARGET)):
            kept[key] = value
        else:
            dropped.append(key)
    return kept, tuple(dropped)


def check_pretraining_parts(source: ModelSource) -> None:
    """Compare decoder and target with what the configuration says; the encoder has been compared.

    Raises:
        ModelError: they belong to another architecture, or are damaged.
    """
    config = source.model.spec.encoder
    with torch.device("meta"):  # shapes alone
        whole = PretrainModel(config, source.decoder_depth)
    expected = {key: value.shape for key, value in whole.state_dict().items()}
    if source.whole_target:
        expected |= {TARGET + key: value.shape for key, value in whole.encoder.state_dict().items()}
    found = {key: value.shape for key, value in source.tensors.items()}
    faults = [key for key in expected if found.get(key) != expected[key]] + [k for k in found if k not in expected]
    if faults:
        raise ModelError(
            f"{source.weights}: decoder or target do not belong to the config.json beside them; missing, unknown or "
            f"of another shape: {_some(faults)}. {ALONE}"
        )
    broken = [key for key, value in source.tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(f"{source.weights}: values that are no finite numbers in {_some(broken)}. {ALONE}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
