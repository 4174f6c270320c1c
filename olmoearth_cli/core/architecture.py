"""What an encoder is built from, and how to read it from a published `config.json`.

spec/model.md section 8.1 lists the keys, their defaults and the tolerances: class paths are ignored but for
nothing at all, unknown keys are ignored, missing keys take the defaults, `spatial_pos_encoding` is the old
name of `position_encoding` and wins where present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES, BandSet
from olmoearth_cli.errors import ModelError


class PositionEncoding(StrEnum):
    """How tokens know their place and time."""

    ABSOLUTE = "absolute"
    ROPE = "rope"
    ROPE_MIXED = "rope_mixed"
    ROPE_3D = "rope_3d"
    ROPE_3D_MIXED = "rope_3d_mixed"
    NONE = "none"

    @property
    def rotary(self) -> bool:
        """True where queries and keys are rotated by their coordinates."""
        return self.value.startswith("rope")

    @property
    def mixed(self) -> bool:
        """True where the rotary frequencies are learned."""
        return self.value.endswith("mixed")

    @property
    def temporal(self) -> bool:
        """True where the rotation includes time; the additive slot code is absent then."""
        return self.value.startswith("rope_3d")

    @property
    def axes(self) -> int:
        """Rotated coordinates: 3 for (time, row, column), 2 for (row, column), else 0."""
        if not self.rotary:
            return 0
        return 3 if self.temporal else 2


@dataclass(frozen=True, kw_only=True)
class PoolerConfig:
    """The attention pooler of release v1.3 (spec/model.md section 11)."""

    pooler_dim: int
    """Width of the location tokens."""
    pooler_depth: int = 1
    """Number of read and self-attention block pairs."""
    student_dims: tuple[int, ...] = ()
    """Widths of the student location tokens, largest first."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder's architecture."""

    modalities: tuple[str, ...] = tuple(MODALITIES)
    """Modalities with a patch embedding, in the configuration's order: the order of the sequence."""
    input_modalities: tuple[str, ...] = ENCODER_INPUTS
    """Modalities that the encoder was trained to read; others are dropped from the input."""
    embedding_size: int = 16
    """Width D of a token."""
    depth: int = 2
    """Transformer blocks."""
    num_heads: int = 2
    """Attention heads."""
    mlp_ratio: float = 1.0
    """Hidden width of a block's MLP over D."""
    base_patch_px: int = 8
    """Side of the patch that the projection sees; smaller patches are resized to it."""
    band_groups: tuple[tuple[str, tuple[BandSet, ...]], ...] = ()
    """(modality, band sets) where they differ from the modality's own."""
    linear_patch_embed: bool = False
    """True: linear projection of flattened patches; False: convolution (spec/model.md section 3)."""
    pixel_hidden: tuple[int, ...] = ()
    """Widths of the per-pixel layers before the projection."""
    position_encoding: PositionEncoding = PositionEncoding.ABSOLUTE
    """How tokens know their place and time."""
    rope_base: float = 10000.0
    """Base of the axial rotary frequencies."""
    rope_mixed_base: float = 10.0
    """Base of freshly initialised learned frequencies; no effect on loaded weights."""
    rope_coordinate_scale: float = 1.0
    """Factor on rows and columns."""
    rope_temporal_base: float | None = None
    """Base of the axial temporal frequencies; `rope_base` where None."""
    rope_temporal_coordinate_scale: float = 1.0
    """Factor on days."""
    temporal_rope_dim_frac: float = 0.25
    """Share of a head that axial 3D rotation gives to time."""
    qk_norm: bool = False
    """True: queries and keys pass a LayerNorm before rotation."""
    drop_path: float = 0.1
    """Rate of stochastic depth in training."""
    num_projection_layers: int = 1
    """Linear layers of the contrastive head."""
    band_dropout_rate: float = 0.0
    """Highest share of bands dropped in training."""
    band_dropout_modalities: tuple[str, ...] = ()
    """Modalities whose bands are dropped in training."""
    pooler: PoolerConfig | None = None
    """Attention pooler of v1.3; None before."""

    def band_sets(self, modality: str) -> tuple[BandSet, ...]:
        """The band sets of a modality: one token each per patch and period."""
        return dict(self.band_groups).get(modality, MODALITIES[modality].band_sets)

    @property
    def head_dim(self) -> int:
        """Width d of an attention head."""
        return self.embedding_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A section of a configuration and where it came from, for messages."""

    section: Mapping[str, Any]
    origin: str
    used: set[str] = field(default_factory=set)

    def get(self, key: str, kind: type, default: Any) -> Any:
        """A value of the expected kind; None counts as absent."""
        value = self.section.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelError(
                f"{self.origin}: encoder_config.{key} is {value!r}, but {kind.__name__} is expected. "
                "Use the config.json that was published next to the weights."
            )
        return value


def parse_encoder_config(config: Mapping[str, Any], origin: str) -> EncoderConfig:
    """Read the encoder's architecture from a published configuration.

    Args:
        config: the whole of `config.json`.
        origin: where it came from, for messages.

    Raises:
        ModelError: the configuration is not one of an OlmoEarth encoder, or asks for what is not supported.
    """
    section = _encoder_section(config, origin)
    source = _Source(section=section, origin=origin)
    _refuse_unsupported(source)
    modalities = tuple(source.get("supported_modality_names", list, list(MODALITIES)))
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown:
        raise ModelError(
            f"{origin}: modalities that olmoearth does not know: {', '.join(map(str, unknown))}. "
            f"Known are {', '.join(MODALITIES)}."
        )
    dropout = tuple(source.get("band_dropout_modalities", list, list(modalities)))
    parsed = EncoderConfig(
        modalities=modalities,
        input_modalities=_input_modalities(config, modalities),
        embedding_size=source.get("embedding_size", int, 16),
        depth=source.get("depth", int, 2),
        num_heads=source.get("num_heads", int, 2),
        mlp_ratio=source.get("mlp_ratio", float, 1.0),
        base_patch_px=source.get("max_patch_size", int, 8),
        band_groups=_band_groups(section.get("tokenization_config"), origin),
        linear_patch_embed=source.get("use_linear_patch_embed", bool, False),
        pixel_hidden=tuple(source.get("patch_embed_hidden_sizes", list, [])),
        position_encoding=_position_encoding(section, origin),
        rope_base=source.get("rope_base", float, 10000.0),
        rope_mixed_base=source.get("rope_mixed_base", float, 10.0),
        rope_coordinate_scale=source.get("rope_coordinate_scale", float, 1.0),
        rope_temporal_base=source.get("rope_temporal_base", float, None),
        rope_temporal_coordinate_scale=source.get("rope_temporal_coordinate_scale", float, 1.0),
        temporal_rope_dim_frac=source.get("temporal_rope_dim_frac", float, 0.25),
        qk_norm=source.get("qk_norm", bool, False),
        drop_path=source.get("drop_path", float, 0.1),
        num_projection_layers=source.get("num_projection_layers", int, 1),
        band_dropout_rate=source.get("band_dropout_rate", float, 0.0),
        band_dropout_modalities=dropout,
        pooler=_pooler(section.get("attention_pooler_config")),
    )
    _check_widths(parsed, origin)
    return parsed


def encoder_section(encoder: EncoderConfig) -> dict[str, Any]:
    """The `encoder_config` section that `parse_encoder_config` reads back as the same architecture."""
    section: dict[str, Any] = {
        "_CLASS_": "olmoearth_pretrain.nn.flexi_vit.EncoderConfig",
        "supported_modality_names": list(encoder.modalities),
        "embedding_size": encoder.embedding_size,
        "max_patch_size": encoder.base_patch_px,
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "depth": encoder.depth,
        "drop_path": encoder.drop_path,
        "use_linear_patch_embed": encoder.linear_patch_embed,
        "band_dropout_rate": encoder.band_dropout_rate,
        "random_band_dropout": encoder.band_dropout_rate > 0,
        "band_dropout_modalities": list(encoder.band_dropout_modalities),
        "num_projection_layers": encoder.num_projection_layers,
        "qk_norm": encoder.qk_norm,
        "position_encoding": encoder.position_encoding.value,
        "rope_base": encoder.rope_base,
        "rope_mixed_base": encoder.rope_mixed_base,
        "rope_coordinate_scale": encoder.rope_coordinate_scale,
        "temporal_rope_dim_frac": encoder.temporal_rope_dim_frac,
        "rope_temporal_coordinate_scale": encoder.rope_temporal_coordinate_scale,
    }
    if encoder.rope_temporal_base is not None:
        section["rope_temporal_base"] = encoder.rope_temporal_base
    if encoder.pixel_hidden:
        section["patch_embed_hidden_sizes"] = list(encoder.pixel_hidden)
    if encoder.band_groups:
        section["tokenization_config"] = _tokenization_section(encoder)
    return section


def _tokenization_section(encoder: EncoderConfig) -> dict[str, Any]:
    """The band groups; the reference rebuilds its objects by the classes' names, and knows no plain table here."""
    of = "olmoearth_pretrain.nn.tokenization."
    overrides = {
        name: {"_CLASS_": of + "ModalityTokenization", "band_groups": [list(s) for s in sets]}
        for name, sets in encoder.band_groups
    }
    return {"_CLASS_": of + "TokenizationConfig", "overrides": overrides}


def _encoder_section(config: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    model = config.get("model")
    section = model.get("encoder_config") if isinstance(model, Mapping) else None
    if not isinstance(section, Mapping):
        raise ModelError(
            f"{origin}: no model.encoder_config section, so this does not configure an OlmoEarth model. "
            "Use a folder with the published config.json and weights, or a name such as v1.2-tiny."
        )
    return section


def _refuse_unsupported(source: _Source) -> None:
    """Options that no published weights use, and that would change the output silently."""
    for key, harmless in (("num_register_tokens", 0), ("post_proj_hidden_sizes", [])):
        value = source.section.get(key)
        if value not in (None, harmless):
            raise ModelError(
                f"{source.origin}: encoder_config.{key} = {value!r} is not supported, for no published model "
                "has it. Use one of the models that `olmoearth models` lists."
            )


def _position_encoding(section: Mapping[str, Any], origin: str) -> PositionEncoding:
    name = section.get("spatial_pos_encoding") or section.get("position_encoding") or "absolute"
    try:
        return PositionEncoding(str(name))
    except ValueError:
        known = ", ".join(PositionEncoding)
        raise ModelError(
            f"{origin}: position encoding {name!r} is not one of {known}. A newer olmoearth may read it."
        ) from None


def _band_groups(section: Any, origin: str) -> tuple[tuple[str, tuple[BandSet, ...]], ...]:
    overrides = section.get("overrides") if isinstance(section, Mapping) else None
    groups = []
    for name, override in (overrides or {}).items():
        if name not in MODALITIES or not isinstance(override, Mapping):
            continue  # `_CLASS_` entries, and modalities of other models
        sets = tuple(tuple(bands) for bands in override.get("band_groups") or ())
        for band_set in sets:
            try:
                MODALITIES[name].indices(band_set)
            except ValueError as error:
                raise ModelError(f"{origin}: tokenization_config: {error}") from None
        if sets:
            groups.append((name, sets))
    return tuple(groups)


def _input_modalities(config: Mapping[str, Any], modalities: tuple[str, ...]) -> tuple[str, ...]:
    """Supported modalities minus the decode-only ones that the masking section names (section 8.4).

    Without that section: those that every published encoder reads.
    """
    for name in ("train_module", "data_loader"):
        section: Any = config
        for key in (name, "masking_config", "strategy_config", "only_decode_modalities"):
            section = section.get(key) if isinstance(section, Mapping) else None
        if section is not None:
            return tuple(m for m in modalities if m not in section)
    return tuple(m for m in modalities if m in ENCODER_INPUTS)


def _pooler(section: Any) -> PoolerConfig | None:
    if not isinstance(section, Mapping):
        return None
    return PoolerConfig(
        pooler_dim=int(section["pooler_dim"]),
        pooler_depth=int(section.get("pooler_depth") or 1),
        student_dims=tuple(section.get("student_dims") or ()),
    )


def _check_widths(encoder: EncoderConfig, origin: str) -> None:
    """Widths that cannot be built end here and not deep in a forward pass."""
    d, heads = encoder.embedding_size, encoder.num_heads
    per_head = 4 if encoder.position_encoding.rotary else 1
    if d < 1 or heads < 1 or encoder.depth < 1 or d % 8 or d % heads or (d // heads) % per_head:
        raise ModelError(
            f"{origin}: embedding_size {d}, num_heads {heads} and depth {encoder.depth} do not make an "
            f"encoder with {encoder.position_encoding} positions. Use the config.json that was published "
            "with the weights."
        )
