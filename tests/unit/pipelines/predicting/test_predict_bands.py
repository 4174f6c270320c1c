"""Answers as a raster's bands, worked out by hand."""

from __future__ import annotations

import numpy as np
from predict_models import finetuned

from olmoearth_pipelines.predicting.prediction import bands_of, layout_of_task, shares_of

SHARES = np.array([[[0.2, 0.7, 0.1], [np.nan] * 3, [0.5, 0.5, 0.0]]], np.float32)


def test_a_pixel_holds_its_likeliest_class_and_the_probability_in_percent():
    layout = layout_of_task(finetuned().task)
    bands = bands_of(layout, SHARES)
    assert bands.dtype == np.uint8
    assert bands.tolist() == [[[1, 255, 0]], [[70, 255, 50]]], "no data is 255 on both bands, a tie is the lower id's"
    assert layout.bands == ("class", "confidence")
    assert (layout.pixel_m, layout.kind) == (10, "segmentation")


def test_probabilities_are_a_band_per_class():
    shares = shares_of(layout_of_task(finetuned().task))
    assert bands_of(shares, SHARES).tolist() == [[[20, 255, 50]], [[70, 255, 50]], [[10, 255, 0]]]
    assert shares.bands == ("water", "forest", "crops")
    assert shares.pixel_m == 10


def test_one_answer_per_window_is_drawn_on_map_cells():
    layout = layout_of_task(finetuned("classification").task)
    assert (layout.pixel_m, layout.cell_px) == (40, 1)
    assert shares_of(layout).pixel_m == 40


def test_values_are_kept_as_they_are():
    layout = layout_of_task(finetuned("pixel_regression").task)
    bands = bands_of(layout, np.array([[[18.25], [np.nan]]], np.float32))
    assert bands.dtype == np.float32
    assert bands[0, 0, 0] == 18.25 and np.isnan(bands[0, 0, 1])
    assert layout.bands == ("height",)
    assert layout.pixel_m == 10
