"""What all tiles of a map share, and what one tile holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_cli.maps.quantize import Quantizer

DTYPES = ("int8", "float32")


@dataclass(frozen=True, kw_only=True)
class MapSpec:
    """What all tiles of a map share."""

    title: str
    model_name: str
    """As asked for and shown, for example `v1.2-tiny`."""
    model_id: str
    """Published id, for example `allenai/OlmoEarth-v1_2-Tiny`."""
    demo: bool
    """True where the weights are random: the map shows the road, not the land."""
    weights_sha256: str
    dimensions: int
    """Embedding size D."""
    patch_px: int
    """Side of a map cell in 10 m pixels."""
    dtype: str
    """`int8` or `float32`."""
    scale: tuple[float, ...] | None
    """[D] for int8: value = offset + scale * code. None for float32."""
    offset: tuple[float, ...] | None
    start: datetime
    """First day of the first period, timezone aware."""
    end: datetime
    """Day after the last period."""
    modalities: tuple[str, ...]
    software: Mapping[str, str] = field(hash=False)
    """Program or library -> version."""

    def __post_init__(self) -> None:
        for name in ("scale", "offset", "modalities"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        for values in (self.scale, self.offset):
            if (values is None) == (self.dtype == "int8") or (values and len(values) != self.dimensions):
                raise ValueError(f"{self.dtype} with {self.dimensions} dimensions does not fit scale and offset")

    @property
    def cell_m(self) -> int:
        """Side of a map cell in metres."""
        return self.patch_px * PIXEL_M

    @property
    def gsd_m(self) -> int:
        """Side of a pixel of the tiles in metres: that of a cell."""
        return self.cell_m

    @property
    def band_names(self) -> tuple[str, ...]:
        """`e000`, `e001`, ...: the embedding's dimensions in order."""
        return tuple(f"e{i:03d}" for i in range(self.dimensions))

    @property
    def collection_id(self) -> str:
        """Id of the STAC Collection: the title in letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "embeddings"

    @cached_property
    def quantizer(self) -> Quantizer | None:
        """The int8 rule; None for float32."""
        if self.scale is None or self.offset is None:
            return None
        return Quantizer(
            scale=np.asarray(self.scale, dtype=np.float32), offset=np.asarray(self.offset, dtype=np.float32)
        )

    def shape(self, box: PixelBox) -> tuple[int, int]:
        """(rows, columns) of map cells over a box.

        Raises:
            ValueError: the box's edges do not lie on cell borders.
        """
        edges = (box.row0, box.col0, box.row1, box.col1)
        if box.empty or any(edge % self.patch_px for edge in edges):
            raise ValueError(f"{box} is empty or not made of whole {self.patch_px} px cells")
        return box.height // self.patch_px, box.width // self.patch_px

    def differences(self, other: MapSpec) -> list[str]:
        """Names of the fields that make vectors of the two specs incomparable or differ in layout."""
        ignored = {"software", "title"}
        return [
            f.name for f in fields(self) if f.name not in ignored and getattr(self, f.name) != getattr(other, f.name)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` gives an equal spec."""
        plain = asdict(self)
        plain |= {"start": utc_text(self.start), "end": utc_text(self.end), "software": dict(self.software)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MapSpec:
        """The spec that `to_json` described."""
        known = {f.name: content[f.name] for f in fields(cls)}
        known["start"], known["end"] = (datetime.fromisoformat(content[k]) for k in ("start", "end"))
        return cls(**known)


@dataclass(frozen=True, kw_only=True, eq=False)
class TileResult:
    """What a worker computed for one tile."""

    tile_id: str
    """Made by our grid; safe in a path."""
    box: PixelBox
    """The square that the file covers, in 10 m pixels; edges on multiples of the patch size."""
    vectors: npt.NDArray[np.float32]
    """[Y, X, D], NaN where there is no data."""
    quality: Mapping[str, npt.NDArray[Any]]
    """Band name -> [Y, X], NaN where there is no data."""
    sources: Mapping[str, str | None]
    """Scene id -> link to the catalogue's item, for `derived_from`."""
    facts: Mapping[str, Any]
    """Plain JSON figures: timings, tokens, seam sums."""


def utc_text(moment: datetime) -> str:
    """RFC 3339 in UTC, as STAC wants it; a moment without a zone is taken as UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.isoformat(timespec="seconds").replace("+00:00", "Z")
