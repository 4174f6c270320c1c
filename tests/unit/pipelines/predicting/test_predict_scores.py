"""Answers of a tile against the network itself, window by window."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from predict_models import EPSG, MODALITIES, STAMPS, TILE, WINDOWING, cube_over, finetuned, scorer_over

from olmoearth_cli.core.finetune.batch import make_batch
from olmoearth_cli.core.finetune.loop import scores_of
from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.geo.tiles import Tile, pixels_of
from olmoearth_pipelines.model_input import model_values
from olmoearth_pipelines.predicting.prediction import layout_of_task, shares_of
from olmoearth_pipelines.predicting.scores import score_tile

HEADS = [
    ("segmentation", "linear", False),
    ("segmentation", "unet_tapered", False),
    ("segmentation", "conv", False),
    ("pixel_regression", "linear", False),
    ("classification", "linear", False),
    ("classification", "linear", True),
    ("multilabel", "pooling", False),
    ("regression", "mlp", False),
]
AT = (-26, 21)
"""A window in the middle of the tile."""


def by_the_network(model, cube, index, limits=None):
    """[K, ...] answers of `FinetuneModel` for a window, from the cube's pixels by another way than the road's."""
    box = WINDOWING.window(EPSG, *index)
    rows, cols = box.slices_in(cube.box)
    inputs, masks = {}, {}
    for name in MODALITIES:
        raw = cube.values[name][:, :, rows, cols].transpose(2, 3, 0, 1)
        valid = cube.valid[name][:, rows, cols].transpose(1, 2, 0)
        values = model_values(
            name, raw, valid, cube.absent_bands[name], release="v1.2", limits=(limits or {}).get(name)
        )
        inputs[name] = torch.from_numpy(values)[None]
        sets = len(model.model.spec.band_sets(name))
        masks[name] = torch.from_numpy(np.where(valid, 0, 3))[None, ..., None].repeat(1, 1, 1, 1, sets)
    stamps = torch.tensor(STAMPS)[None]
    batch = make_batch(model.model.spec.encoder, inputs, stamps, masks, patch_px=4)
    return scores_of(model.network(), batch, model.task.target)[0].numpy()


def scored(model, cube, *, tile=TILE, windowing=WINDOWING, blend="none", threads=2):
    layout = layout_of_task(model.task)
    layouts = (layout, shares_of(layout)) if layout.has_classes else (layout,)
    with ThreadPoolExecutor(threads) as pool:
        return score_tile(
            tile, scorer_over(model, cube, windowing), windowing=windowing, layouts=layouts, blend=blend, pool=pool
        )


@pytest.mark.parametrize(("kind", "decoder", "centre"), HEADS)
def test_a_windows_answers_are_those_of_the_network(kind, decoder, centre):
    model = finetuned(kind, decoder, centre=centre)
    cube = cube_over(pixels_of(TILE, WINDOWING, "none"))
    found = scorer_over(model, cube).score(AT)
    assert found.windows == [AT]
    wanted = by_the_network(model, cube, AT)
    scores = found.scores[0]  # y x K
    if centre:
        assert np.allclose(scores[2, 2], wanted, atol=1e-5)
        assert scores.shape == (4, 4, 3)
        assert not np.allclose(scores[0, 0], scores[2, 2], atol=1e-3), "each cell answers for itself"
        return
    if model.task.head.per_window:
        assert np.allclose(scores, wanted, atol=1e-4 if kind == "regression" else 1e-5)
        assert scores.shape[:2] == (4, 4)
        return
    wanted = wanted[None] if kind == "pixel_regression" else wanted
    assert scores.shape == (16, 16, len(wanted))
    assert np.allclose(np.moveaxis(scores, -1, 0), wanted, atol=1e-4 if kind == "pixel_regression" else 1e-5)


def test_without_blending_a_pixels_class_is_that_of_the_window_that_owns_it():
    model = finetuned()
    cube = cube_over(pixels_of(TILE, WINDOWING, "none"))
    out = scored(model, cube)
    shares = by_the_network(model, cube, AT)[:, 4:12, 4:12]  # the middle 8 px of the window are its own
    at = (slice(16, 24), slice(8, 16))  # window (-26, 21) owns rows -208 to -200 and columns 168 to 176
    classes, percents = out.rasters
    assert np.array_equal(classes[0][at], shares.argmax(axis=0))
    assert np.abs(classes[1][at] - 100 * shares.max(axis=0)).max() <= 0.51
    assert np.abs(percents[:, *at] - 100 * shares).max() <= 0.51
    assert len(np.unique(classes[0])) > 1


def test_hann_blending_is_the_weighted_mean_of_the_probabilities_of_all_windows_over_a_pixel():
    model = finetuned()
    cube = cube_over(pixels_of(TILE, WINDOWING, "hann"))
    out = scored(model, cube, blend="hann")
    row, col = -204, 171  # of the zone's pixel grid
    total, mass = np.zeros(3), 0.0
    for i in range(-28, -22):
        for j in range(18, 25):
            box = WINDOWING.window(EPSG, i, j)
            y, x = row - box.row0, col - box.col0
            if 0 <= y < 16 and 0 <= x < 16:
                weight = np.sin(np.pi * (y + 0.5) / 16) ** 2 * np.sin(np.pi * (x + 0.5) / 16) ** 2
                total += weight * by_the_network(model, cube, (i, j))[:, y, x]
                mass += weight
    wanted = total / mass
    y, x = row - TILE.box.row0, col - TILE.box.col0
    classes, percents = out.rasters
    assert np.abs(percents[:, y, x] - 100 * wanted).max() <= 0.51
    assert classes[0, y, x] == wanted.argmax()
    assert classes[1, y, x] == percents[:, y, x].max()
    assert out.windows == 36, "the neighbours' windows reach into the tile"


@pytest.mark.parametrize(("kind", "decoder", "centre"), [HEADS[1], HEADS[3], HEADS[4], HEADS[5]])
def test_with_hann_too_neither_tiles_nor_threads_change_a_pixel(kind, decoder, centre):
    model = finetuned(kind, decoder, centre=centre)
    large = cube_over(square(EPSG, 64, -4, 2).grown(16))
    whole = scored(model, large, blend="hann", threads=1).rasters
    side = TILE.box.height // 2
    corner = square(EPSG, side, -14, 11)
    part = Tile(id="p", box=corner, blocks=tuple(b for b in corner.squares(8)))
    # The same pixels, of which a smaller tile reads fewer.
    box = pixels_of(part, WINDOWING, "hann")
    rows, cols = box.slices_in(large.box)
    small = type(large)(
        box=box,
        values={m: v[:, :, rows, cols] for m, v in large.values.items()},
        valid={m: v[:, rows, cols] for m, v in large.valid.items()},
        absent_bands=large.absent_bands,
        clear=None,
        used=(),
        bytes_read=0,
    )
    few = scored(model, small, tile=part, blend="hann", threads=3).rasters
    rows, cols = corner.slices_in(TILE.box)
    px = layout_of_task(model.task).pixel_px
    for a, b in zip(whole, few, strict=True):
        common = a[:, rows.start // px : rows.stop // px, cols.start // px : cols.stop // px]
        assert np.array_equal(common, b, equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("blend", ["none", "hann"])
@pytest.mark.parametrize(("kind", "decoder", "centre"), [HEADS[1], HEADS[4], HEADS[5]])
def test_what_no_period_shows_has_no_answer(kind, decoder, centre, blend):
    model = finetuned(kind, decoder, centre=centre)
    hole = PixelBox(EPSG, -216, 160, -200, 176)  # 4 x 4 cells in the tile, more than a window's own square
    cube = cube_over(pixels_of(TILE, WINDOWING, "hann"), unseen=hole)
    layout = layout_of_task(model.task)
    raster = scored(model, cube, blend=blend).rasters[0]
    px = layout.pixel_px
    wanted = np.ones((32 // px, 32 // px), bool)
    rows, cols = hole.slices_in(TILE.box)
    wanted[rows.start // px : rows.stop // px, cols.start // px : cols.stop // px] = False
    assert np.array_equal(layout.has_data(raster), wanted)


def test_limits_of_the_training_set_replace_those_of_pretraining():
    limits = {
        "sentinel2_l2a": (tuple([0.0] * 12), tuple(1000.0 + 100 * k for k in range(12))),
        "sentinel1": ((-30.0, -35.0), (0.0, -5.0)),
    }
    own, plain = finetuned(normalisation=limits), finetuned()
    cube = cube_over(pixels_of(TILE, WINDOWING, "none"))
    found = np.moveaxis(scorer_over(own, cube).score(AT).scores[0], -1, 0)
    assert np.allclose(found, by_the_network(own, cube, AT, limits), atol=1e-5)
    assert np.abs(found - by_the_network(plain, cube, AT)).max() > 0.01
