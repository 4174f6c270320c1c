"""What a sample shows and what it asks for: mask codes per token (spec/pretraining.md section 3).

Data are missing per modality and period only, so masks are made at token resolution; a pixel mask would repeat
them within a patch. Every draw comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.checks import DECODE, MISSING, TARGET_ONLY, VISIBLE
from olmoearth_cli.core.modality import MODALITIES

MAPS = tuple(name for name, modality in MODALITIES.items() if not modality.multitemporal)
"""Predicted, never encoded, in the published recipes."""
STRATEGIES = ("updated", "v1")
Codes = dict[str, npt.NDArray[np.uint8]]
"""{modality: [Y, X, T, S]}."""
Pair = tuple[str, int]
"""A modality and one of its band sets."""
_V1_ORDER = (
    "sentinel2_l2a",
    "sentinel1",
    "worldcover",
    "openstreetmap_raster",
    "srtm",
    "landsat",
    "cdl",
    "worldcereal",
    "wri_canopy_height_map",
)
"""Decides which of two pairs is encoded, where a sample has no more."""
_V1_FEWEST_ENCODED = 2


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How masks are drawn."""

    strategy: str = "updated"
    """`updated` (v1.1, v1.2; spec section 3.1) or `v1` (section 3.2)."""
    time_mask_prob: float = 0.5
    """Share of samples whose periods are hidden whole; 0 to 1, `updated` only."""
    encode_ratio: float = 0.5
    """Share of pairs that are encoded, and of tokens or periods visible in them."""
    decode_ratio: float = 0.5
    """Share of tokens predicted in the other pairs."""
    decode_only: tuple[str, ...] = MAPS
    """Modalities that are never visible."""

    def __post_init__(self) -> None:
        """Refuse what no strategy can do."""
        if self.strategy not in STRATEGIES:
            raise ValueError(f"masking strategy {self.strategy!r} is not one of {', '.join(STRATEGIES)}")
        if not 0 <= self.time_mask_prob <= 1:
            raise ValueError(f"time_mask_prob {self.time_mask_prob} is not a probability")
        if min(self.encode_ratio, self.decode_ratio) < 0 or self.encode_ratio + self.decode_ratio > 1:
            raise ValueError(f"ratios {self.encode_ratio} + {self.decode_ratio} must be positive and at most 1 in sum")


def sample_generator(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The generator of one view of one sample: the same on any worker, at any time, after any resume."""
    return np.random.default_rng([seed, epoch, index, view])


def draw_codes(
    present: Mapping[str, npt.NDArray[np.bool_]],
    band_sets: Mapping[str, int],
    side: int,
    masking: Masking,
    rng: np.random.Generator,
) -> Codes:
    """Draw one view's codes for one sample.

    Args:
        present: {modality: [T]} True where the period has data ([1] for static maps).
        band_sets: {modality: S}.
        side: patches per side of the crop.
        masking: the strategy.
        rng: source of all draws.

    Returns:
        {modality: uint8 [Y, X, T, S]}: 0 visible, 1 hidden and not predicted, 2 to predict, 3 missing.

    Raises:
        ValueError: no patches, or periods that disagree between modalities.
    """
    lengths = {len(seen) for name, seen in present.items() if MODALITIES[name].multitemporal}
    if side < 1 or len(lengths) > 1:
        raise ValueError(f"side {side}, periods {sorted(lengths)}: at least one patch and one number of periods")
    codes = {}
    for name, seen in present.items():
        codes[name] = np.full((side, side, len(seen), band_sets[name]), DECODE, dtype=np.uint8)
        codes[name][:, :, ~np.asarray(seen, dtype=bool)] = MISSING
    if masking.strategy == "v1":
        return _v1(codes, masking, rng)
    return _updated(codes, present, masking, rng)


def _updated(
    codes: Codes, present: Mapping[str, npt.NDArray[np.bool_]], masking: Masking, rng: np.random.Generator
) -> Codes:
    """Each sample's pairs are either encoded or predicted, in random tokens or in whole periods."""
    usable = [name for name in codes if name not in masking.decode_only and present[name].any()]
    pairs = [(name, s) for name in usable for s in range(codes[name].shape[3])]
    if len(pairs) == 1:
        _fill(_tokens(codes, pairs[0]), masking.encode_ratio, masking.decode_ratio, rng)
    if len(pairs) <= 1:
        return codes
    temporal = [present[name] for name in usable if MODALITIES[name].multitemporal]
    periods = np.flatnonzero(np.any(temporal, axis=0)) if temporal else np.arange(0)
    by_time = len(periods) > 1 and rng.random() < masking.time_mask_prob
    if by_time:
        periods = rng.permutation(periods)
    shown = math.ceil(len(periods) * masking.encode_ratio)
    shuffled = [pairs[i] for i in rng.permutation(len(pairs))]
    encoded = math.ceil(len(pairs) * masking.encode_ratio)
    for i, pair in enumerate(shuffled):
        encode = i < encoded
        tokens = _tokens(codes, pair)
        chosen = periods[:shown] if encode else periods[shown:]
        if by_time and MODALITIES[pair[0]].multitemporal and present[pair[0]][chosen].any():
            _fill_periods(tokens, chosen, VISIBLE if encode else DECODE)
        else:
            _fill(tokens, masking.encode_ratio if encode else 0.0, 0.0 if encode else masking.decode_ratio, rng)
    return codes


def _v1(codes: Codes, masking: Masking, rng: np.random.Generator) -> Codes:
    """Half of every modality visible and half predicted, then roles per pair take parts of that away."""
    missing = {name: values == MISSING for name, values in codes.items()}
    for name, values in codes.items():
        # The base draw counts missing tokens too; they are taken out after it.
        drawn = np.zeros_like(values)
        _fill(drawn, masking.encode_ratio, masking.decode_ratio, rng)
        values[...] = np.where(missing[name], MISSING, drawn)
    pairs = _available(codes, masking)
    encoded, decoded = _roles(pairs, masking, rng)
    for name, values in codes.items():
        for s in range(values.shape[3]):
            tokens = values[..., s]
            if (name, s) not in encoded:
                tokens[tokens == VISIBLE] = TARGET_ONLY  # targets stay, decoded or not (section 3.2 step 4)
            elif (name, s) not in decoded:
                tokens[tokens == DECODE] = TARGET_ONLY
    for code in (VISIBLE, DECODE):
        if not any((values == code).any() for values in codes.values()):
            for name, values in codes.items():
                if name not in masking.decode_only:
                    _fill(values, masking.encode_ratio, masking.decode_ratio, rng)
    return codes


def _available(codes: Codes, masking: Masking) -> list[Pair]:
    """Pairs that can take a role: satellite pairs with a visible token, maps with data."""
    pairs = []
    for name in sorted(codes, key=_V1_ORDER.index):
        for s in range(codes[name].shape[3]):
            tokens = codes[name][..., s]
            if (tokens != MISSING).any() if name in masking.decode_only else (tokens == VISIBLE).any():
                pairs.append((name, s))
    return pairs


def _roles(pairs: Sequence[Pair], masking: Masking, rng: np.random.Generator) -> tuple[set[Pair], set[Pair]]:
    """Encoded and decoded pairs; both at once is allowed."""
    if len(pairs) <= 2:
        return set(pairs[:1]), set(pairs[1:])
    satellites = [pair for pair in pairs if pair[0] not in masking.decode_only]
    encoded = _subset(satellites, min(_V1_FEWEST_ENCODED, len(satellites)), rng)
    return encoded, _subset(pairs, 1, rng)


def _subset(pairs: Sequence[Pair], fewest: int, rng: np.random.Generator) -> set[Pair]:
    """A subset whose size is uniform from `fewest` to all."""
    size = int(rng.integers(fewest, len(pairs) + 1))
    return {pairs[i] for i in rng.permutation(len(pairs))[:size]}


def _tokens(codes: Codes, pair: Pair) -> npt.NDArray[np.uint8]:
    """A pair's codes [Y, X, T], writable."""
    return codes[pair[0]][..., pair[1]]


def _fill(tokens: npt.NDArray[np.uint8], encode: float, decode: float, rng: np.random.Generator) -> None:
    """Draw random tokens visible and to predict among those with data, in place; a lone one is visible (G6)."""
    free = tokens != MISSING
    n = int(free.sum())
    visible, predicted = int(n * encode), int(n * decode)
    drawn = np.full(n, TARGET_ONLY, dtype=np.uint8)
    drawn[:visible] = VISIBLE
    drawn[visible : visible + predicted] = DECODE
    tokens[free] = VISIBLE if n == 1 else rng.permutation(drawn)


def _fill_periods(tokens: npt.NDArray[np.uint8], periods: npt.NDArray[np.intp], code: int) -> None:
    """Give whole periods a code and hide the rest, in place; what is missing stays missing."""
    timeline = np.full(tokens.shape[2], TARGET_ONLY, dtype=np.uint8)
    timeline[periods] = code
    tokens[...] = np.where(tokens == MISSING, MISSING, timeline)
