"""How large a crop is and where it lies (spec/pretraining.md sections 2.2 to 2.4), and how it is turned (2.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.samples.sample_file import PERIODS, OpenSample, Window

Array = npt.NDArray[Any]
LARGEST_PATCH = 8
LARGEST_SIDE = 12
TOKEN_BUDGET = 2250
"""Tokens of a sample."""
SYMMETRIES = 8
BUDGET_GROUPS = ("v1", "model")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The patches of a crop; one for all samples of a batch."""

    patch_px: int
    """Side of a patch, p."""
    side: int
    """Patches per side, s."""

    @property
    def side_px(self) -> int:
        """Side of the crop."""
        return self.patch_px * self.side


def draw_grid(rng: np.random.Generator, side_px: int) -> Grid:
    """Patch size and number of patches, both uniform; of samples smaller than 96 px, what fits.

    Args:
        rng: source of the draws.
        side_px: side of the samples, 8 or more.
    """
    patch_px = int(rng.integers(1, LARGEST_PATCH + 1))
    return Grid(patch_px=patch_px, side=int(rng.integers(1, min(LARGEST_SIDE, side_px // patch_px) + 1)))


def counted_groups(modalities: Sequence[str], band_sets: Mapping[str, int], budget_groups: str) -> tuple[int, int]:
    """Band groups of the satellite products and of the maps, as the token budget counts them.

    Every official run counts those of release v1, whatever its own are (G2).

    Args:
        modalities: requested ones.
        band_sets: {modality: groups of the model}.
        budget_groups: `v1` or `model`.
    """
    counts = {
        name: len(MODALITIES[name].band_sets) if budget_groups == "v1" else band_sets[name] for name in modalities
    }
    satellites = sum(count for name, count in counts.items() if MODALITIES[name].multitemporal)
    return satellites, sum(counts.values()) - satellites


def longest_series(side: int, satellite_groups: int, map_groups: int, *, budget: int = TOKEN_BUDGET) -> int:
    """Timesteps of a crop, T_max.

    Args:
        side: patches per side.
        satellite_groups: band groups that every timestep has.
        map_groups: band groups without time.
        budget: tokens of a sample.

    Raises:
        InputError: not even one timestep fits.
    """
    if not satellite_groups:
        return 1
    fitting = (budget - side**2 * map_groups) // (side**2 * satellite_groups)
    if fitting < 1:
        raise InputError(
            f"{side} x {side} patches of {satellite_groups} satellite and {map_groups} map band groups exceed {budget} "
            "tokens at the first timestep. Raise the token budget, or use fewer modalities."
        )
    return min(fitting, PERIODS)


def draw_window(sample: OpenSample, grid: Grid, periods: int, rng: np.random.Generator) -> Window:
    """Place a crop: it starts where some satellite has data and lies inside the sample.

    Args:
        sample: timesteps cut to those with data.
        grid: size of the crop.
        periods: its timesteps T; a shorter sample is padded.
        rng: source of the draws.

    Raises:
        InputError: the sample has no satellite data at all (G19).
    """
    seen = np.any(list(sample.present.values()), axis=0) if sample.present else np.zeros(0, dtype=bool)
    if not seen.any():
        raise InputError(
            f"{sample.path}: no timestep of {', '.join(sample.present)}, although the table lists one. Unpack the file "
            "again, or leave the sample out."
        )
    last = max(len(seen) - periods, 0)
    starts = np.flatnonzero(seen[: last + 1])
    start = int(rng.choice(starts))
    row, column = rng.integers(0, sample.side_px - grid.side_px + 1, size=2)
    return Window(row=int(row), column=int(column), side_px=grid.side_px, start=start, periods=periods)


def turned(values: Array, symmetry: int) -> Array:
    """One of the eight symmetries of the square; a view, exact.

    Args:
        values: [H, W, ...], H = W.
        symmetry: 0-3 quarter turns counter-clockwise; 4 and 5 a horizontal and a vertical flip; 6 and 7 these after
            a quarter turn.
    """
    if symmetry < 4:
        return np.rot90(values, symmetry)
    return np.flip(np.rot90(values, (symmetry - 4) // 2), axis=1 - symmetry % 2)
