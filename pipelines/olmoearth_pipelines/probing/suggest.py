"""Where the next labels would help most: cells that the probe is unsure of or knows nothing like, spread out.

A cell is worth a label by the larger of two figures, each from 0 to 1: how close its decision is (one minus the
margin of the calibrated probabilities), and how unlike every labelled vector it is (kNN). Among the cells most worth
it, a greedy k-centre choice on the sphere of directions (Sener and Savarese 2018, doi:10.48550/arXiv.1708.00489) takes
the one of the largest worth times distance from the labelled vectors and from what was chosen before, and keeps a
distance on the ground.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_cli.maps.files import read_json, write_json
from olmoearth_cli.maps.footprint import to_lonlat
from olmoearth_cli.maps.reading import Cells, blocks_of, read_cells
from olmoearth_cli.maps.tile_files import TileEntry
from olmoearth_pipelines.probing.class_layout import check_probe
from olmoearth_pipelines.probing.class_tile import STEP

if TYPE_CHECKING:
    from olmoearth_cli.core.probe.saved import SavedProbe

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
SAMPLE_CELLS = 50_000
"""Cells looked at, evenly spread over the map."""
SAMPLE_BLOCKS = 400
"""Blocks of tiles that are read for them; a block decodes to a few MB."""
POOL_SHARE = 0.1
"""Share of the sample, most worth a label, among which the spread-out choice is made."""
POOL_PER_POINT = 20
"""At least so many cells per suggestion are in that pool."""
SPACING = 0.25
"""Least distance of two suggestions, as a share of the distance they would have on a regular grid."""
LEAST = 1e-3
"""Added to worth and to distance: where one is zero for all cells, the other decides."""
EARTH_M = 6_371_008.8
"""Mean radius."""
OWN_FIELDS = frozenset({"rank", "predicted", "confidence", "score", "reason", "fid", "id"})
"""What a suggestion holds before anyone labels it, and the numbers that a GIS adds."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A place to label."""

    lon: float
    lat: float
    """Centre of the cell, degrees (WGS84)."""
    predicted: str
    """Class, classes or value that the probe sees there."""
    confidence: float | None
    """Calibrated probability of what is predicted; None for regression."""
    score: float
    """0 to 1: how much a label is worth there."""
    reason: str
    """`close decision`, `unlike any label`, `labels disagree` (regression) or `spread` (nothing else is known)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sample:
    vectors: npt.NDArray[np.float32]
    """[N, D], finite."""
    lonlat: Floats
    """[N, 2]."""
    km2: float
    """Area with data, as the sampled blocks tell."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """What the probe says of a sample."""

    predicted: list[str]
    confidence: Floats | None
    worth: Floats
    """[N] from 0 to 1."""
    reasons: list[str]


def where_to_label(
    emap: EmbeddingMap, saved: SavedProbe, count: int, *, avoid_lonlat: npt.ArrayLike | None, seed: int = 42
) -> list[Suggestion]:
    """Choose places to label, the most useful first.

    Args:
        emap: the map that the probe fits.
        saved: the probe.
        count: places wanted.
        avoid_lonlat: [M, 2] places that have a label; suggestions keep their distance. None for none.
        seed: of the sample of cells.

    Returns:
        At most `count`; fewer where the map has no more cells far enough apart.

    Raises:
        InputError: the probe belongs to another model, or a tile cannot be read.
    """
    check_probe(saved, emap.spec)
    sample = _sample(emap, seed)
    if not len(sample.vectors):
        return []
    judged = _judge(saved, sample.vectors)
    labelled = np.zeros((0, 2)) if avoid_lonlat is None else np.asarray(avoid_lonlat, dtype=np.float64).reshape(-1, 2)
    apart_m = max(SPACING * 1000 * np.sqrt(sample.km2 / max(count, 1)), 1.5 * emap.spec.cell_m)
    known = _directions(_known_vectors(emap, saved, labelled))
    chosen = _spread(_directions(sample.vectors), judged.worth, known, count, _Apart(sample.lonlat, labelled, apart_m))
    return [
        Suggestion(
            lon=round(float(sample.lonlat[i, 0]), 7),
            lat=round(float(sample.lonlat[i, 1]), 7),
            predicted=judged.predicted[i],
            confidence=None if judged.confidence is None else round(float(judged.confidence[i]), 4),
            score=round(float(judged.worth[i]), 4),
            reason=judged.reasons[i],
        )
        for i in chosen
    ]


def check_not_filled_in(path: Path, *, label_field: str) -> None:
    """Refuse to write suggestions over labels: earlier ones that were filled in since, or another file.

    Raises:
        InputError: says how many labels would be lost.
    """
    if not path.exists():
        return
    own = OWN_FIELDS - {label_field}
    try:
        rows = [feature["properties"].items() for feature in read_json(path)["features"]]
        filled = sum(any(name not in own and value not in (None, "") for name, value in row) for row in rows)
    except (InputError, AttributeError, KeyError, TypeError):
        raise InputError(f"{path}: is not what --where-to-label wrote. Move or rename it.") from None
    if filled:
        raise InputError(
            f"{path}: {filled} of its {len(rows)} places have been labelled; --where-to-label would overwrite them. "
            "Rename the file, for example to more-labels.geojson."
        )


def write_suggestions(path: Path, suggestions: list[Suggestion], *, label_field: str) -> None:
    """Write GeoJSON points, ordered by use, with an empty `label_field` to fill in.

    Raises:
        OutputError: the system refused.
    """
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [s.lon, s.lat]},
            "properties": {
                "rank": rank,
                label_field: None,
                "predicted": s.predicted,
                "confidence": s.confidence,
                "score": s.score,
                "reason": s.reason,
            }
            | {label_field: None},  # empty even where it has the name of one of the others
        }
        for rank, s in enumerate(suggestions, start=1)
    ]
    write_json(path, {"type": "FeatureCollection", "features": features})


def _sample(emap: EmbeddingMap, seed: int) -> _Sample:
    """Cells with data, drawn evenly from evenly spread blocks."""
    spec, rng = emap.spec, np.random.default_rng(seed)
    blocks = [(t, cells) for t in emap.tiles if t.status == "done" for cells in blocks_of(spec, t.box)]
    chosen = blocks[:: -(-len(blocks) // SAMPLE_BLOCKS)]
    quota = -(-SAMPLE_CELLS // len(chosen))
    vectors, places, valid = [], [], 0
    for tile, cells in chosen:
        block = read_cells(spec, _path(tile), cells)  # y x D
        rows, cols = np.nonzero(np.isfinite(block).all(axis=-1))
        valid += len(rows)
        drawn = np.sort(rng.permutation(len(rows))[:quota])
        vectors.append(block[rows[drawn], cols[drawn]])
        places.append(_centres(tile, cells, rows[drawn], cols[drawn], spec.cell_m))
    return _Sample(
        vectors=np.concatenate(vectors),
        lonlat=np.concatenate(places),
        km2=valid * spec.cell_m**2 / 1e6 * len(blocks) / len(chosen),
    )


def _path(tile: TileEntry) -> Path:
    assert tile.path is not None, f"{tile.id} is a gap"
    return tile.path


def _centres(tile: TileEntry, cells: Cells, rows: Array, cols: Array, cell_m: int) -> Floats:
    """[N, 2] longitude and latitude of cells of a block."""
    west, _, _, north = tile.box.bounds_m
    x = west + (cells[1].start + cols + 0.5) * cell_m
    y = north - (cells[0].start + rows + 0.5) * cell_m
    return np.column_stack(to_lonlat(tile.box.epsg).transform(x, y))


def _judge(saved: SavedProbe, vectors: npt.NDArray[np.float32]) -> _Judged:
    unlike = _unlike(saved, vectors)
    if saved.kind == "regression":
        values = saved.probe.scores(vectors)
        doubt, why = _disagreement(saved, vectors), "labels disagree"
        predicted, confidence = [f"{value:.6g}" for value in values], None
    else:
        parts = [_decisions(saved, vectors[at : at + STEP]) for at in range(0, len(vectors), STEP)]
        predicted = [name for part in parts for name in part[0]]
        confidence = np.concatenate([part[1] for part in parts])
        doubt, why = np.concatenate([part[2] for part in parts]), "close decision"
    worth = np.maximum(doubt, unlike)
    names = np.where(worth == 0, "spread", np.where(doubt > unlike, why, "unlike any label"))
    return _Judged(predicted=predicted, confidence=confidence, worth=worth, reasons=[str(name) for name in names])


def _decisions(saved: SavedProbe, vectors: npt.NDArray[np.float32]) -> tuple[list[str], Floats, Floats]:
    """Names, confidence [n] and doubt [n] (one minus the margin) of vectors [n, D]."""
    shares = saved.probabilities(vectors).astype(np.float64)  # n C | n C P P
    if saved.kind == "multilabel":
        names = [", ".join(saved.class_names[c] for c in np.flatnonzero(row > 0.5)) or "none" for row in shares]
        sure = np.abs(2 * shares - 1)  # n C
        return names, ((1 + sure) / 2).min(axis=1), 1 - sure.min(axis=1)
    flat = shares.reshape(*shares.shape[:2], -1)  # n C pixels
    ranked = np.sort(flat, axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if flat.shape[1] > 1 else np.ones_like(flat[:, 0])
    voted = [np.bincount(row, minlength=flat.shape[1]).argmax() for row in flat.argmax(axis=1)]
    return [saved.class_names[c] for c in voted], ranked[:, -1].mean(axis=1), 1 - margin.mean(axis=1)


def _unlike(saved: SavedProbe, vectors: npt.NDArray[np.float32]) -> Floats:
    """[N] one minus the cosine to the nearest labelled vector, as a share of the sample's 99th percentile.

    Zeros for a probe that keeps no labelled vectors.
    """
    if saved.method != "knn":
        return np.zeros(len(vectors))
    known = _directions(saved.probe.state()["vectors"].numpy())
    steps = (_directions(vectors[at : at + STEP]) @ known.T for at in range(0, len(vectors), STEP))
    far = np.clip(1 - np.concatenate([cosine.max(axis=1) for cosine in steps]), 0, None)
    far[far < 1e-6] = 0  # rounding, not distance
    return np.clip(far / max(float(np.percentile(far, 99)), 1e-9), 0, 1)


def _disagreement(saved: SavedProbe, vectors: npt.NDArray[np.float32]) -> Floats:
    """[N] spread of the neighbours' values as a share of the labels' own; zeros for a linear probe."""
    from olmoearth_cli.core.probe.knn import Knn

    probe = saved.probe
    if not isinstance(probe, Knn):
        return np.zeros(len(vectors))
    centred = probe.targets - probe.targets.mean()
    mean = replace(probe, targets=centred).scores(vectors).astype(np.float64)
    squares = replace(probe, targets=centred**2).scores(vectors).astype(np.float64)
    spread = np.sqrt(np.clip(squares - mean**2, 0, None))
    return np.clip(spread / max(float(centred.std(correction=0)), 1e-9), 0, 1)


def _known_vectors(emap: EmbeddingMap, saved: SavedProbe, labelled: Floats) -> npt.NDArray[np.float32]:
    """[M, D] vectors that have a label: the probe's own, or those at the labelled places."""
    if saved.method == "knn":
        return saved.probe.state()["vectors"].numpy()
    found = emap.read_points(labelled)
    return found[np.isfinite(found).all(axis=1)]


def _directions(vectors: Array) -> npt.NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-8), dtype=np.float32)


class _Apart:
    """Which cells are far enough on the ground from all labels and from what was chosen."""

    def __init__(self, lonlat: Floats, labelled: Floats, apart_m: float) -> None:
        self._at = _on_sphere(lonlat)
        self._apart_m = apart_m
        self.open = np.ones(len(lonlat), dtype=bool)
        from scipy.spatial import cKDTree

        if len(labelled) and len(lonlat):
            near, _ = cKDTree(_on_sphere(labelled)).query(self._at)
            self.open &= near >= apart_m

    def choose(self, cell: int) -> None:
        """Close the cell and its surroundings."""
        self.open &= np.linalg.norm(self._at - self._at[cell], axis=1) >= self._apart_m


def _on_sphere(lonlat: Floats) -> Floats:
    """[N, 3] metres from the Earth's centre: distances hold over zones and the dateline."""
    lon, lat = np.radians(lonlat).T
    return EARTH_M * np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def _spread(directions: Array, worth: Floats, known: Array, count: int, apart: _Apart) -> list[int]:
    """Greedy k-centre, weighted by worth: cells of the pool, then of the rest."""
    size = min(len(worth), max(int(POOL_SHARE * len(worth)), POOL_PER_POINT * count))
    pool = np.zeros(len(worth), dtype=bool)
    pool[np.argsort(-worth, kind="stable")[:size]] = True
    nearest = _nearest(directions, known)  # N
    chosen: list[int] = []
    for candidates in (pool, ~pool):
        while len(chosen) < count and (candidates & apart.open).any():
            gain = (worth + LEAST) * (nearest + LEAST)
            cell = int(np.where(candidates & apart.open, gain, -np.inf).argmax())
            chosen.append(cell)
            apart.choose(cell)
            nearest = np.minimum(nearest, 1 - directions @ directions[cell])
    return chosen


def _nearest(directions: Array, known: Array) -> Array:
    """[N] one minus the cosine to the nearest known vector; 2 (the opposite) where nothing is known."""
    steps: Iterator[Array] = (directions[at : at + STEP] for at in range(0, len(directions), STEP))
    if not len(known):
        return np.full(len(directions), 2.0, dtype=np.float32)
    return np.concatenate([1 - (step @ known.T).max(axis=1) for step in steps])
