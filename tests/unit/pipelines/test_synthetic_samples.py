"""Made-up pretraining samples: in the published format, and like the scenes that `embed` would composite."""

from __future__ import annotations

import numpy as np

from olmoearth_pipelines.landscape import CLASSES, landscape
from olmoearth_pipelines.samples.rules import check_sample, odd_dtypes
from olmoearth_pipelines.synthetic_samples import SIZE_PX, make_samples, make_tile


def test_a_tile_keeps_the_rules_of_the_format_and_comes_back_from_its_seed():
    tile = make_tile(1003)
    assert check_sample(tile, 256) == []
    assert odd_dtypes(tile) == []
    again = make_tile(1003)
    assert all(np.array_equal(tile.images[name], again.images[name]) for name in tile.images)
    assert not np.array_equal(tile.images["worldcover"], make_tile(1004).images["worldcover"])


def test_land_cover_lies_under_its_pixels():
    tile = make_tile(1003)
    land = landscape(1003, SIZE_PX).classes[:256, :256]
    water = land == CLASSES.index("water") + 1
    assert (tile.images["worldcover"][..., 0, 0][water] == 80).all()
    near_infrared = tile.images["sentinel2_l2a"][..., 3].astype(float)  # H W t
    forest = np.isin(land, [CLASSES.index("broadleaf") + 1, CLASSES.index("conifer") + 1])
    assert np.median(near_infrared[water]) < 0.5 * np.median(near_infrared[forest])


def test_a_dataset_of_them_has_four_samples_per_tile(tmp_path):
    leaf = make_samples(tmp_path, range(5, 6))
    assert leaf.name == "4"
    assert sorted(path.name for path in leaf.glob("*.h5")) == [f"sample_{i}.h5" for i in range(4)]
    assert make_samples(tmp_path, range(5, 6)) == leaf
