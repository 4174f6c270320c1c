"""One acquisition as the program sees it, whatever catalogue it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One acquisition of one product. Small and picklable: it travels to workers and into `scenes.json`."""

    id: str
    """The catalogue's item id. Text from outside: never part of a path that we write."""
    modality: str
    """`sentinel2_l2a`, `sentinel1` or `landsat`."""
    product: str
    """Key of the provider table row, for example `planetary-computer/sentinel-2-l2a`."""
    collection: str
    """STAC collection id."""
    acquired: datetime
    """Acquisition time, timezone aware (UTC)."""
    footprint_wkb: bytes
    """Footprint polygon in WGS84 lon/lat."""
    assets: Mapping[str, str]
    """Band name of the model (`B02`, `vv`, ...; `SCL`, `qa_pixel` for class layers) -> unsigned href."""
    epsg: int | None
    """The scene's own CRS, where the catalogue states it."""
    offset_dn: int
    """Sentinel-2: digital numbers to subtract (1000 or 0). 0 for other products."""
    cloud_cover_percent: float
    """Scene-level cloud cover; 100 where a catalogue has none."""
    key: str
    """Identity of the acquisition (platform, day, orbit, tile); equal keys are duplicates."""
    self_href: str | None
    """Link to the catalogue's item, for `derived_from`."""
    version: tuple[str, str] = ("", "")
    """(processing baseline, generation time); of duplicates the larger is kept."""


@dataclass(frozen=True)
class Selection:
    """The ordered scenes of one period and modality for one scene-selection cell of the grid."""

    epsg: int
    cell: tuple[int, int]
    """(i, j) of the `CELL_PX` square."""
    period: int
    """Index of the period, 0 = oldest."""
    modality: str
    scenes: tuple[Scene, ...]
    """Best first. The value of a pixel is that of the first scene that has one there."""
    accepted: int
    """How many of them the coverage rule accepted; the rest only fill what those leave open."""
