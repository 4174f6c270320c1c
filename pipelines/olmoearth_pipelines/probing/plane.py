"""Samples on a plane: metres instead of degrees, square blocks, and distances as people say them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def to_plane(lonlat: Array) -> Array:
    """Metres on the Lambert equal-area plane that touches the Earth amid the samples.

    Args:
        lonlat: [N, 2] degrees (WGS84); the samples may lie on both sides of the antimeridian.

    Returns:
        [N, 2] metres east and north of the middle.
    """
    from pyproj import CRS, Transformer

    lon, lat = np.radians(lonlat).T
    x, y, z = (np.cos(lat) * np.cos(lon)).mean(), (np.cos(lat) * np.sin(lon)).mean(), np.sin(lat).mean()
    lon_0, lat_0 = np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y)))
    plane = CRS.from_dict({"proj": "laea", "datum": "WGS84", "lon_0": float(lon_0), "lat_0": float(lat_0)})
    east, north = Transformer.from_crs(4326, plane, always_xy=True).transform(lonlat[:, 0], lonlat[:, 1])
    return np.stack([east, north], axis=1)


def group_means(values: Array, group: npt.NDArray[np.int64]) -> Array:
    """Mean of [N, F] values over the samples of each group 0 to G - 1: [G, F]."""
    size = np.bincount(group)
    return np.stack([np.bincount(group, weights=column) / size for column in values.T], axis=1)


def blocks_of(xy: Array, side_m: float) -> npt.NDArray[np.int64]:
    """Number (from 0, without gaps) of the square of a grid that each of the [N, 2] places lies in."""
    square = np.floor((xy - xy.min(axis=0)) / side_m).astype(np.int64)
    return numbered(square[:, 0] * (square[:, 1].max() + 1) + square[:, 1])


def numbered(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Numbers from 0 without gaps for the distinct entries (or rows) of `values`."""
    return np.unique(values, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def kilometres(metres: float) -> str:
    """Two significant digits, never in powers of ten: `0.35`, `12`, `1200`."""
    rounded = float(f"{metres / 1000:.2g}")
    return f"{rounded:.0f}" if rounded >= 10 else f"{rounded:.6f}".rstrip("0").rstrip(".")
