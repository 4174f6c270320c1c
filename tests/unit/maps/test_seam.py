import numpy as np
import pytest

from olmoearth_cli.maps.seam import SeamSums, seam_figure


def test_steps_at_borders_are_told_from_steps_inside():
    # Columns 0 1 | 2 3 with stride 2: value 0 1 | 4 5, so inside steps are 1 and the border step 3.
    vectors = np.tile(np.array([0.0, 1.0, 4.0, 5.0])[None, :, None], (3, 1, 1))
    sums = seam_figure(vectors, 0, 0, 2)
    # Three rows of one border and two inside pairs. Rows do not differ: both lines between them add zeros.
    assert (sums.border_sum, sums.inside_sum) == (9.0, 6.0)
    assert (sums.border_count, sums.inside_count) == (3 + 4, 6 + 4)
    assert sums.ratio == pytest.approx((9 / 7) / (6 / 10))


def test_borders_lie_on_the_global_grid_and_not_on_the_tile():
    vectors = np.array([0.0, 1.0, 4.0, 5.0])[None, :, None]
    assert seam_figure(vectors, 0, 7, 2).border_sum == 2.0  # borders before columns 8 and 10
    assert seam_figure(vectors, 0, -2, 2).border_sum == 3.0


def test_the_distance_is_euclidean_over_all_dimensions():
    sums = seam_figure(np.array([[[0.0, 0.0], [3.0, 4.0]]]), 0, 0, 5)
    assert (sums.inside_sum, sums.inside_count, sums.border_count) == (5.0, 1, 0)
    assert sums.ratio is None


def test_pairs_with_a_cell_without_data_are_left_out():
    vectors = np.array([0.0, np.nan, 4.0, 5.0])[None, :, None]
    sums = seam_figure(vectors, 0, 0, 8)
    assert (sums.inside_sum, sums.inside_count) == (1.0, 1)


def test_tiles_add_up_to_the_map_except_for_pairs_between_them():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(80, 24, 3))
    whole = seam_figure(vectors, -160, 48, 8)
    parts = seam_figure(vectors[:40], -160, 48, 8) + seam_figure(vectors[40:], -120, 48, 8)
    across = np.linalg.norm(vectors[40] - vectors[39], axis=-1)
    assert parts.border_count + len(across) == whole.border_count
    assert parts.border_sum + across.sum() == pytest.approx(whole.border_sum)
    assert parts.inside_sum == pytest.approx(whole.inside_sum)


def test_noise_without_windows_is_seamless():
    vectors = np.random.default_rng(0).normal(size=(128, 128, 8))
    assert seam_figure(vectors, 0, 0, 8).ratio == pytest.approx(1.0, abs=0.01)


def test_the_input_may_be_a_single_cell():
    assert seam_figure(np.zeros((1, 1, 2)), 0, 0, 4) == SeamSums()
