"""Cells as integers, and how many of each class a sample takes."""

import numpy as np

from olmoearth_cli.maps.cell_keys import cells_from, keys_of
from olmoearth_cli.maps.cell_pool import quotas


def test_quotas_add_up_and_never_exceed_what_there_is():
    assert quotas(np.array([5, 0, 7]), 100).tolist() == [5, 0, 7]
    assert quotas(np.array([10**6, 10**6, 3]), 1000).tolist() == [499, 498, 3]
    assert quotas(np.array([300, 100]), 40).tolist() == [20, 20]
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = rng.integers(0, 2000, 6)
        size = int(rng.integers(1, 5000))
        quota = quotas(count, size)
        assert (quota <= count).all()
        assert quota.sum() == min(size, count.sum())


def test_cell_keys_round_trip_and_sort_as_cells():
    cells = np.array([[32601, -900000, 16600], [32601, 5, 99999], [32760, 1000000, -3], [32760, 1000000, 4]])
    keys = keys_of(cells)
    assert (np.diff(keys) > 0).all()
    assert np.array_equal(cells_from(keys), cells)
