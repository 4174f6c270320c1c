"""Sizes, places and symmetries of crops: the published table, and statistics of the draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrain_data import BAND_SETS, S1, S2, STAMPS

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.samples.crops import Grid, counted_groups, draw_grid, draw_window, longest_series, turned
from olmoearth_pipelines.samples.sample_file import OpenSample

V1_SETS = {name: len(modality.band_sets) for name, modality in MODALITIES.items()}
TABLE = [  # section 2.3: s, T_max, tokens of v1, tokens of v1.2, T_max with single groups
    (1, 12, 78, 42, 12),
    (2, 12, 312, 168, 12),
    (3, 12, 702, 378, 12),
    (4, 12, 1248, 672, 12),
    (5, 12, 1950, 1050, 12),
    (6, 9, 2160, 1188, 12),
    (7, 6, 2058, 1176, 12),
    (8, 4, 1920, 1152, 9),
    (9, 3, 1944, 1215, 7),
    (10, 2, 1800, 1200, 5),
    (11, 2, 2178, 1452, 4),
    (12, 1, 1728, 1296, 3),
]


def opened(present: dict[str, np.ndarray], side_px: int = 128) -> OpenSample:
    length = len(next(iter(present.values())))
    return OpenSample(
        path=Path("sample_0.h5"),
        side_px=side_px,
        timestamps=STAMPS[:length],
        present=present,
        stored={},
        requested=tuple(present),
    )


@pytest.mark.parametrize(("s", "v1", "tokens_v1", "tokens_v12", "single"), TABLE)
def test_the_token_budget_gives_the_published_table(s, v1, tokens_v1, tokens_v12, single) -> None:
    names = tuple(MODALITIES)
    assert counted_groups(names, BAND_SETS, "v1") == (6, 6)
    assert counted_groups(names, BAND_SETS, "model") == (3, 6)
    assert counted_groups(names, V1_SETS, "model") == (6, 6)
    assert longest_series(s, 6, 6) == v1
    assert longest_series(s, 3, 6) == single
    assert s * s * (6 * v1 + 6) == tokens_v1 <= 2250
    assert s * s * (3 * v1 + 6) == tokens_v12


def test_mean_lengths_are_the_published_ones() -> None:
    lengths = [longest_series(s, 6, 6) for s in range(1, 13)]
    assert np.mean(lengths) == 7.25
    assert np.mean([s * s * (6 * t + 6) for s, t in enumerate(lengths, 1)]) == 1506.5  # printed as 1507
    assert round(np.mean([s * s * (3 * t + 6) for s, t in enumerate(lengths, 1)])) == 916


def test_a_budget_without_room_for_one_timestep_is_an_error() -> None:
    assert longest_series(12, 6, 6, budget=1728) == 1
    with pytest.raises(InputError, match="1727"):
        longest_series(12, 6, 6, budget=1727)
    assert longest_series(12, 0, 6) == 1
    assert counted_groups((S2, S1), BAND_SETS, "v1") == (4, 0)


def test_patch_and_grid_sizes_are_uniform_and_independent() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_grid(rng, 128) for _ in range(20_000)]
    table = np.zeros((9, 13), dtype=int)
    for grid in drawn:
        table[grid.patch_px, grid.side] += 1
    assert table[1:, 1:].sum() == 20_000
    expected = 20_000 / 96
    chi_squared = ((table[1:, 1:] - expected) ** 2 / expected).sum()
    assert chi_squared < 149  # 99.97 % quantile for 95 degrees of freedom
    assert max(g.side_px for g in drawn) == 96


def test_grids_fit_into_small_samples() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_grid(rng, 32) for _ in range(2000)]
    assert max(g.side_px for g in drawn) == 32
    assert {g.side for g in drawn if g.patch_px == 8} == {1, 2, 3, 4}


def test_places_and_starts_are_uniform_over_what_is_allowed() -> None:
    present = {
        S2: np.array([1, 0, 0, 1, 0, 1, 1, 0, 0, 1], dtype=bool),
        S1: np.array([0, 0, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool),
    }
    rng = np.random.default_rng(1)
    windows = [draw_window(opened(present, 16), Grid(patch_px=2, side=6), 4, rng) for _ in range(6000)]
    starts = np.bincount([w.start for w in windows], minlength=10)
    assert np.flatnonzero(starts).tolist() == [0, 2, 3, 5, 6]  # k + 4 <= 10, and something is present at k
    assert np.abs(starts[[0, 2, 3, 5, 6]] - 1200).max() < 5 * np.sqrt(960)
    corners = np.zeros((5, 5))
    for w in windows:
        corners[w.row, w.column] += 1
    assert np.abs(corners - 240).max() < 5 * np.sqrt(240)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=12),
    st.integers(1, 12),
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(0, 2**32),
)
def test_a_crop_lies_inside_and_begins_with_data(seen, periods, patch_px, side, seed) -> None:
    mask = np.array([True, *seen[1:-1], True][: len(seen)], dtype=bool)  # cut: data at both ends
    grid = Grid(patch_px=patch_px, side=side)
    window = draw_window(opened({S2: mask}), grid, periods, np.random.default_rng(seed))
    assert 0 <= window.row <= 128 - window.side_px and 0 <= window.column <= 128 - window.side_px
    assert window.side_px == patch_px * side and window.periods == periods
    assert mask[window.start]
    assert window.start == 0 if len(mask) <= periods else window.start + periods <= len(mask)


def test_the_symmetries_are_the_eight_of_the_square() -> None:
    """Their corner orders by hand: a b / c d, quarter turns counter-clockwise."""
    square = np.array([["a", "b"], ["c", "d"]])
    seen = ["".join(turned(square, k).ravel()) for k in range(8)]
    assert seen == ["abcd", "bdac", "dcba", "cadb", "badc", "cdab", "dbca", "acbd"]


def test_the_symmetries_form_a_group_and_move_nothing_else() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 4, 3, 2))
    images = [turned(values, k) for k in range(8)]
    assert len({image.tobytes() for image in images}) == 8
    known = {image.tobytes() for image in images}
    assert all(turned(image, k).tobytes() in known for image in images for k in range(8))
    for image in images:
        pixels = {tuple(pixel.ravel()) for pixel in image.reshape(16, 6)}
        assert pixels == {tuple(pixel.ravel()) for pixel in values.reshape(16, 6)}
