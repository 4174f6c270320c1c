"""Models as users hold them: load, encode, pool, save."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from olmoearth_cli.core import hub
from olmoearth_cli.core.architecture import EncoderConfig, encoder_section
from olmoearth_cli.core.checkpoint import (
    load_encoder_weights,
    sha256_of_file,
    sha256_of_tensors,
    weights_file,
    write_folder,
)
from olmoearth_cli.core.checks import VISIBLE, check_inputs, check_normalised, visible_tokens
from olmoearth_cli.core.nn.encoder import Encoder, initialise
from olmoearth_cli.core.nn.pooling import pool_cells
from olmoearth_cli.core.nn.sequence import flatten_tokens, split_tokens
from olmoearth_cli.core.spec import (
    CONFIG_FILE,
    ModelSpec,
    find_spec,
    parse_encoder_config,
    read_config,
    released_spec,
    spec_of_config,
)
from olmoearth_cli.errors import ModelError

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class OlmoEarthModel:
    """An encoder with its weights."""

    spec: ModelSpec
    """What it is."""
    encoder: Encoder
    """The network, in evaluation mode."""
    weights_sha256: str
    """SHA-256 of the weights file; of the values for a model that came from no file."""
    name: str
    """Short name, for people and records."""
    demo: bool = False
    """True for weights that only show how things work."""
    reference_quirks: bool = False
    """True reproduces the reference's evaluation of ragged batches (spec/model.md G2), for parity tests."""

    def __post_init__(self) -> None:
        self._dropped: set[frozenset[str]] = set()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.encoder.norm.weight.dtype

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        timestamps: Tensor,
        masks: Mapping[str, Tensor] | None = None,
        patch_size: int = 4,
        *,
        input_res: float = 10.0,
    ) -> dict[str, Tensor]:
        """Encode a batch of samples.

        Each sample's tokens depend on that sample alone: its visible tokens are gathered, samples with as
        many are batched, and no attention mask is needed. With `reference_quirks` shorter samples are filled
        with zero tokens that take part in attention, as in the reference.

        Args:
            inputs: {modality: [B, H, W, T, C]} normalised (core.normalize); T = 1 for a static map.
            timestamps: [B, T, 3] int (day 1-31, month 0-11, year).
            masks: {modality: [B, H, W, T, S]} codes: 0 visible, 1 and 2 hidden, 3 missing. None: all visible.
            patch_size: patch side in pixels, 1 to 8; divides H and W.
            input_res: pixel size in metres.

        Returns:
            {modality: [B, Y, X, T, S, D]}, exact zeros where a token is not visible.

        Raises:
            ValueError: shapes, codes or values that the model would misread.
        """
        kept = self._readable(inputs)
        timestamps = torch.as_tensor(timestamps).to(self.device)
        check_inputs(self.spec.encoder, kept, timestamps, patch_size)
        if masks is None:
            check_normalised(kept)
        masks = {name: torch.as_tensor(mask) for name, mask in (masks or {}).items()}
        visible = visible_tokens(self.spec.encoder, kept, masks, patch_size)
        tokens, coords = self.encoder.embed_patches(kept, timestamps, patch_size, input_res)
        sequence, seen, places = flatten_tokens(tokens, visible, coords)
        run = self._padded if self.reference_quirks else self._by_count
        return split_tokens(run(sequence, seen, places), tokens)

    def pool(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """One vector per map cell: mean over visible tokens per modality, then over modalities with data.

        Args:
            tokens: {modality: [B, Y, X, T, S, D]} from `encode`.
            masks: the masks given to `encode`; None: all visible.

        Returns:
            [B, Y, X, D]; zeros where no modality has data. With `reference_quirks` a modality without data
            at a cell counts as a zero vector.
        """
        visible = {}
        for name, values in tokens.items():
            if masks is None or name not in masks:
                visible[name] = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
                continue
            mask = torch.as_tensor(masks[name]).to(values.device)
            y = values.shape[1]
            step = mask.shape[1] // y if mask.ndim == 5 else 0
            if step == 0 or tuple(mask[:, ::step, ::step].shape) != tuple(values.shape[:-1]):
                raise ValueError(
                    f"mask of {name}: shape {list(mask.shape)} does not fit tokens {list(values.shape)}; "
                    "give the [B, H, W, T, S] mask that encode got."
                )
            visible[name] = mask[:, ::step, ::step] == VISIBLE
        return pool_cells(dict(tokens), visible, absent_as_zero=self.reference_quirks)

    def output_affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of the final LayerNorm, float32 [D]: the affine image of standard values."""
        norm = self.encoder.norm
        weight, bias = (p.detach().float().cpu().numpy().copy() for p in (norm.weight, norm.bias))
        return weight, bias

    def _readable(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs that the encoder was trained to read, in the model's order, on its device."""
        config = self.spec.encoder
        unknown = [name for name in inputs if name not in config.modalities]
        if unknown:
            raise ValueError(
                f"{self.name} has no modality {', '.join(unknown)}; it has {', '.join(config.modalities)}."
            )
        dropped = frozenset(name for name in inputs if name not in config.input_modalities)
        if dropped and dropped not in self._dropped:
            self._dropped.add(dropped)
            logger.warning("%s was not trained to read %s: left out", self.name, ", ".join(sorted(dropped)))
        kept = {
            name: torch.as_tensor(inputs[name]).to(self.device, self.dtype)
            for name in config.input_modalities
            if name in inputs
        }
        if not kept:
            raise ValueError(f"nothing to encode: {self.name} reads {', '.join(config.input_modalities)}.")
        return kept

    def _by_count(self, x: Tensor, seen: Tensor, coords: Tensor | None) -> Tensor:
        """Encode visible tokens only, samples of equal count together; [B, N, D] with zeros elsewhere."""
        out = torch.zeros_like(x)
        counts = seen.sum(dim=1)
        for count in counts.unique().tolist():
            if count == 0:
                continue
            rows = (counts == count).nonzero()  # R 1
            index = seen[rows[:, 0]].nonzero()[:, 1].view(len(rows), count)
            places = None if coords is None else coords[rows, index]
            out[rows, index] = self.encoder.transform(x[rows, index], places).to(out.dtype)  # autocast may widen
        return out

    def _padded(self, x: Tensor, seen: Tensor, coords: Tensor | None) -> Tensor:
        """As the reference in evaluation mode: zero tokens up to the longest sample, and no mask (G2)."""
        counts = seen.sum(dim=1)
        if int(counts.min()) == 0:
            raise ValueError("a sample has no visible token: the reference cannot encode it (spec/model.md G19).")
        longest = int(counts.max())
        order = (~seen).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]  # B L
        rows = torch.arange(len(x), device=x.device)[:, None]
        filler = torch.arange(longest, device=x.device)[None] >= counts[:, None]  # B L
        compact = x[rows, order].masked_fill(filler[..., None], 0)
        places = None if coords is None else coords[rows, order].masked_fill(filler[..., None], 0)
        encoded = self.encoder.transform(compact, places).masked_fill(filler[..., None], 0)
        out = torch.zeros_like(x)
        out[rows, order] = encoded.to(out.dtype)
        return out


def load_model(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    reference_quirks: bool = False,
) -> OlmoEarthModel:
    """Load a published model by name, or one in the published layout from a folder.

    Args:
        name: `v1.2-tiny`, `allenai/OlmoEarth-v1_2-Tiny`, or a folder with `config.json` and weights.
        device: where to compute.
        dtype: what to compute in; float32 matches the reference to 1e-5.
        reference_quirks: reproduce the reference's evaluation of ragged batches, for parity tests.

    Raises:
        ModelError: unknown, unsupported, damaged, foreign, or not to be had.
    """
    spec = find_spec(name)
    _refuse_pooler(spec)
    released = released_spec(str(name))
    if released is not None:
        weights = hub.fetch(released.repo)
        folder = weights.parent
        config = read_config(folder)
        spec = replace(spec, encoder=parse_encoder_config(config, f"{released.repo}/{CONFIG_FILE}"))
    else:
        folder = Path(name).expanduser()
        weights = weights_file(folder)
        config = read_config(folder)
    _refuse_pooler(spec)
    encoder = Encoder(spec.encoder)
    load_encoder_weights(encoder, weights)
    about = config.get("olmoearth")
    about = about if isinstance(about, Mapping) else {}
    return OlmoEarthModel(
        spec=spec,
        encoder=_ready(encoder, device, dtype),
        weights_sha256=sha256_of_file(weights),
        name=str(about.get("name") or spec.name),
        demo=about.get("demo") is True,
        reference_quirks=reference_quirks,
    )


def random_model(name: str | EncoderConfig, seed: int) -> OlmoEarthModel:
    """A freshly initialised encoder of a released architecture (or one's own), the same for the same seed.

    Channel codes start from a small normal distribution, not from zero, so that the modalities differ.
    """
    if isinstance(name, EncoderConfig):
        spec = spec_of_config({"model": {"encoder_config": encoder_section(name)}}, origin="config", folder_name="own")
        spec = replace(spec, encoder=name)
    else:
        spec = find_spec(name)
    _refuse_pooler(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(spec.encoder)
        initialise(encoder)
        for code in encoder.composite_encodings.per_modality_channel_embeddings.values():
            torch.nn.init.normal_(code, std=0.02)
    return OlmoEarthModel(
        spec=spec,
        encoder=_ready(encoder, "cpu", torch.float32),
        weights_sha256=sha256_of_tensors(encoder.state_dict()),
        name=spec.name,
    )


def save_model(
    model: OlmoEarthModel,
    folder: str | Path,
    demo: Mapping[str, Any] | None = None,
    *,
    weights: str = "model.safetensors",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model in the published layout, for `load_model(folder)`.

    Args:
        model: what to write.
        folder: made if absent.
        demo: facts about demo weights; marks the folder as demo where not None.
        weights: `model.safetensors` or `weights.pth`.
        dtype: what values are stored as; float16 halves the file and loads as float32.

    Returns:
        The folder.

    Raises:
        OutputError: it cannot be written.
    """
    config = model.spec.encoder
    decode_only = [name for name in config.modalities if name not in config.input_modalities]
    content: dict[str, Any] = {
        "model": {"encoder_config": encoder_section(config)},
        "train_module": {"masking_config": {"strategy_config": {"only_decode_modalities": decode_only}}},
    }
    if demo is not None:
        content["olmoearth"] = {"demo": True, **demo}
    write_folder(Path(folder), content, model.encoder.state_dict(), weights=weights, dtype=dtype)
    return Path(folder)


def _ready(encoder: Encoder, device: str | torch.device, dtype: torch.dtype) -> Encoder:
    try:
        return encoder.to(device=device, dtype=dtype).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ModelError(f"device {device}: the model cannot be put there ({reason}). Use cpu or cuda.") from None


def _refuse_pooler(spec: ModelSpec) -> None:
    if spec.encoder.pooler is not None:
        raise ModelError(
            f"{spec.name}: the attention pooler of release v1.3 is not part of this version. Use v1.2-base, "
            "which has the same width and depth."
        )
