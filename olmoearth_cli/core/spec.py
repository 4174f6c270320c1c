"""The released models as data, and how a name, a repository or a folder leads to one. No torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from olmoearth_cli.core.architecture import (
    EncoderConfig,
    PoolerConfig,
    PositionEncoding,
    parse_encoder_config,
)
from olmoearth_cli.core.modality import MODALITIES, BandSet
from olmoearth_cli.errors import ModelError

__all__ = ["RELEASED", "EncoderConfig", "ModelSpec", "find_spec", "gmacs_per_window", "parse_encoder_config"]

CONFIG_FILE = "config.json"
MICRO_BATCH_TOKENS = {"cpu": 3072, "cuda": 49152}
"""Tokens encoded at once that suit a device (spec/performance.md section 2)."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: what it is called, where it lives and how its encoder is built."""

    name: str
    """Short name, for example `v1.2-tiny`; a folder's own name for an architecture of one's own."""
    id: str
    """Published id, for example `OlmoEarth-v1_2-Tiny`."""
    repo: str
    """Hugging Face repository; empty for a folder."""
    release: str
    """`v1`, `v1.1`, `v1.2` or `v1.3`: decides how missing bands are filled (core.normalize)."""
    size: str
    """`nano`, `tiny`, `small`, `base` or `large`."""
    encoder: EncoderConfig
    """The encoder's architecture."""
    encoder_params: int
    """Parameters of the encoder, with its frozen month table and contrastive head."""
    decoder_params: int = 0
    """Parameters of the decoder, which embeddings do not use."""

    @property
    def embedding_size(self) -> int:
        """Width D of a token and of an embedding."""
        return self.encoder.embedding_size

    @property
    def depth(self) -> int:
        """Transformer blocks."""
        return self.encoder.depth

    @property
    def supported(self) -> bool:
        """False for the attention pooler of v1.3, which `load_model` refuses."""
        return self.encoder.pooler is None

    def band_sets(self, modality: str) -> tuple[BandSet, ...]:
        """The band sets of a modality: one token each per patch and period."""
        return self.encoder.band_sets(modality)


_SIZES = {
    "nano": (128, 4, 8),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Size -> (D, depth, heads)."""
_PARAMETERS = {
    "v1-nano": (1_361_024, 827_520),
    "v1-tiny": (6_202_560, 1_855_680),
    "v1-base": (88_953_600, 29_541_120),
    "v1-large": (307_770_368, 52_495_360),
    "v1.1-nano": (1_697_328, 827_424),
    "v1.1-tiny": (12_461_296, 1_855_536),
    "v1.1-base": (113_973_952, 29_540_544),
    "v1.2-nano": (1_698_096, 828_192),
    "v1.2-tiny": (12_464_752, 1_856_688),
    "v1.2-small": (35_615_200, 7_399_776),
    "v1.2-base": (113_987_776, 29_545_152),
    "v1.3-base": (128_266_048, 30_131_136),
}
"""Name -> parameters of (encoder, decoder): spec/model.md section 0."""


def _released(name: str) -> ModelSpec:
    release, size = name.split("-")
    width, depth, heads = _SIZES[size]
    config = EncoderConfig(embedding_size=width, depth=depth, num_heads=heads, mlp_ratio=4.0)
    if release != "v1":
        one_set = tuple((m, (MODALITIES[m].bands,)) for m in ("sentinel2_l2a", "landsat"))
        config = replace(
            config,
            band_groups=one_set,
            linear_patch_embed=True,
            pixel_hidden=(12,) if size == "nano" else (64,),
            band_dropout_rate=0.2,
            band_dropout_modalities=("sentinel2_l2a", "landsat"),
        )
    if release in ("v1.2", "v1.3"):
        config = replace(
            config,
            position_encoding=PositionEncoding.ROPE_3D_MIXED,
            rope_mixed_base=10000.0,
            rope_temporal_coordinate_scale=1 / 30,
        )
    if release == "v1.3":
        config = replace(config, pooler=PoolerConfig(pooler_dim=width, student_dims=(128, 64)))
    model_id = f"OlmoEarth-{release.replace('.', '_')}-{size.capitalize()}"
    encoder_params, decoder_params = _PARAMETERS[name]
    return ModelSpec(
        name=name,
        id=model_id,
        repo=f"allenai/{model_id}",
        release=release,
        size=size,
        encoder=config,
        encoder_params=encoder_params,
        decoder_params=decoder_params,
    )


RELEASED: tuple[ModelSpec, ...] = tuple(_released(name) for name in _PARAMETERS)
"""The published family, oldest release first, small to large."""


def find_spec(name: str | Path) -> ModelSpec:
    """The model that a name, a published id, a repository or a folder means. Nothing is downloaded.

    Args:
        name: `v1.2-tiny`, `OlmoEarth-v1_2-Tiny`, `allenai/OlmoEarth-v1_2-Tiny`, or a folder.

    Raises:
        ModelError: no such model, or the folder's configuration cannot be used.
    """
    released = released_spec(str(name))
    if released is not None:
        return released
    folder = Path(name).expanduser()
    if folder.is_dir():
        return spec_of_config(read_config(folder), origin=str(folder / CONFIG_FILE), folder_name=folder.resolve().name)
    known = [spec.name for spec in RELEASED]
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ModelError(
        f"{name}: no such model, and no folder of that name.{hint} Known: {', '.join(known)}; "
        "or give a folder with config.json and weights."
    )


def released_spec(name: str) -> ModelSpec | None:
    """The published model of that short name, id or repository; None where there is none."""
    wanted = name.strip().lower()
    for spec in RELEASED:
        if wanted in (spec.name, spec.id.lower(), spec.repo.lower()):
            return spec
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's `config.json`.

    Raises:
        ModelError: there is none, or it is not JSON.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder}: no {CONFIG_FILE}. A model folder holds it beside weights.pth or model.safetensors."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}). Fetch the file again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a JSON object is expected, not a {type(config).__name__}. Fetch the file again.")
    return config


def spec_of_config(config: Mapping[str, Any], *, origin: str, folder_name: str) -> ModelSpec:
    """The model that a configuration describes: a released architecture, or one of its own.

    Args:
        config: the whole of `config.json`.
        origin: where it came from, for messages.
        folder_name: what to call an architecture that was never released.
    """
    encoder = parse_encoder_config(config, origin)
    for spec in RELEASED:
        if _shape(spec.encoder) == _shape(encoder):
            return replace(spec, repo="", encoder=encoder)
    return ModelSpec(
        name=folder_name,
        id=folder_name,
        repo="",
        release=_release_like(encoder),
        size="custom",
        encoder=encoder,
        encoder_params=count_encoder_params(encoder),
    )


def _shape(encoder: EncoderConfig) -> tuple[object, ...]:
    """What tells released architectures apart: widths, tokens, positions."""
    sets = tuple((m, encoder.band_sets(m)) for m in encoder.modalities)
    return (
        sets,
        encoder.embedding_size,
        encoder.depth,
        encoder.num_heads,
        encoder.mlp_ratio,
        encoder.linear_patch_embed,
        encoder.pixel_hidden,
        encoder.position_encoding,
        encoder.pooler is None,
    )


def _release_like(encoder: EncoderConfig) -> str:
    """The release whose rules for missing bands fit an architecture: band dropout came with v1.1."""
    if encoder.pooler is not None:
        return "v1.3"
    if encoder.position_encoding.rotary:
        return "v1.2"
    return "v1.1" if encoder.linear_patch_embed else "v1"


def count_encoder_params(encoder: EncoderConfig) -> int:
    """Parameters of an encoder without an attention pooler."""
    d, hidden = encoder.embedding_size, int(encoder.embedding_size * encoder.mlp_ratio)
    block = 4 * (d * d + d) + 2 * d * hidden + hidden + d + 4 * d
    if encoder.position_encoding.mixed:
        block += encoder.position_encoding.axes * d // 2
    if encoder.qk_norm:
        block += 4 * encoder.head_dim
    total = encoder.depth * block + 2 * d + encoder.num_projection_layers * (d * d + d) + 12 * (d // 4)
    for modality in encoder.modalities:
        for band_set in encoder.band_sets(modality):
            widths = (len(band_set), *encoder.pixel_hidden)
            total += sum(a * b + b for a, b in pairwise(widths))
            total += widths[-1] * encoder.base_patch_px**2 * d + d + d // 4
    return total


def gmacs_per_window(spec: ModelSpec, tokens: float) -> float:
    """Multiply-accumulates of one window in 10^9, attention counted (spec/performance.md section 2).

    The patch size is in the number of tokens; patches are resized before the projection, so that the
    projection costs the same per token at any patch size.

    Args:
        spec: the model.
        tokens: tokens of the window: (side / patch)^2 x periods x band sets.

    Returns:
        10^9 multiply-accumulates.
    """
    encoder = spec.encoder
    d = encoder.embedding_size
    sets = [s for m in encoder.input_modalities for s in encoder.band_sets(m)]
    # Sentinel-2's first band set stands for all: the projection is a small part either way.
    widths = (len(sets[0]), *encoder.pixel_hidden)
    pixel = sum(a * b for a, b in pairwise(widths)) + widths[-1] * d
    blocks = tokens * (4 + 2 * encoder.mlp_ratio) * d * d + 2 * tokens**2 * d
    return (blocks * encoder.depth + tokens * encoder.base_patch_px**2 * pixel) / 1e9
