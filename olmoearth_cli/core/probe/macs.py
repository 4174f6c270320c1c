"""Multiply-accumulates of the encoder as the report's figure 1 counts them (spec/evaluation.md 11.1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from olmoearth_cli.core.architecture import EncoderConfig

NORM_MACS = 4
"""Counted per element of a LayerNorm by the profiler behind the published figures."""


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Both conventions for one window."""

    linear_and_norm_only: int
    """Linear layers and layer norms: the published convention, blind to the products of attention."""
    with_attention: int
    """The same with the score and value products."""


def encoder_macs(encoder: EncoderConfig, patches: int, *, modality: str = "sentinel2_l2a") -> Macs:
    """Work of one window of one modality, everything visible, batch of one.

    Args:
        encoder: the architecture.
        patches: (side / patch)^2 x periods.
        modality: what the window holds.
    """
    width, sets = encoder.embedding_size, encoder.band_sets(modality)
    tokens = patches * len(sets)
    blocks = encoder.depth * tokens * (4 * width**2 + 2 * width * int(width * encoder.mlp_ratio))
    norms = NORM_MACS * width * tokens * (2 * encoder.depth + 1)
    embed = 0
    for band_set in sets:
        widths = (len(band_set), *encoder.pixel_hidden, width)
        # Patches are resampled to one size before embedding, so that the patch size does not matter.
        embed += patches * encoder.base_patch_px**2 * sum(a * b for a, b in pairwise(widths))
    counted = blocks + norms + embed + encoder.num_projection_layers * width**2
    return Macs(
        linear_and_norm_only=counted,
        with_attention=counted + 2 * encoder.depth * tokens**2 * width,
    )
