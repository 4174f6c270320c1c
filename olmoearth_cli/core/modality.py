"""Satellite products and maps that the models know: bands, their order and their grouping into tokens.

The one table of spec/model.md section 1.1. Names and order are part of the file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MISSING_VALUE = -99999.0
"""Marks a missing value in data that is not normalised yet."""

BandSet = tuple[str, ...]
"""Bands that become one token, in the modality's own order."""


@dataclass(frozen=True, kw_only=True)
class Modality:
    """A satellite product or a map layer on the 10 m grid."""

    name: str
    """Name in configurations, weights and folders."""
    bands: tuple[str, ...]
    """Bands in canonical order: the order of the last axis of every array."""
    band_sets: tuple[BandSet, ...]
    """Default grouping of the bands into tokens (release v1); a configuration may override it."""
    multitemporal: bool
    """True for products with one image per period, False for static maps."""
    missing_raw: float | None = None
    """No-data value of the product's own files, where it has one."""

    def indices(self, band_set: BandSet) -> list[int]:
        """Positions of a band set's bands on the band axis.

        Raises:
            ValueError: a band does not belong to this modality.
        """
        unknown = [band for band in band_set if band not in self.bands]
        if unknown:
            raise ValueError(f"{self.name} has no band {', '.join(unknown)}; it has {', '.join(self.bands)}.")
        return [self.bands.index(band) for band in band_set]


_OSM_BANDS = (
    "aerialway_pylon aerodrome airstrip amenity_fuel building chimney communications_tower crane flagpole "
    "fountain generator_wind helipad highway leisure lighthouse obelisk observatory parking petroleum_well "
    "power_plant power_substation power_tower river runway satellite_dish silo "
    "storage_tank taxiway water_tower works"
)
_CEREAL_BANDS = (
    "tc-annual-temporarycrops-classification tc-maize-main-irrigation-classification "
    "tc-maize-main-maize-classification tc-maize-second-irrigation-classification "
    "tc-maize-second-maize-classification tc-springcereals-springcereals-classification "
    "tc-wintercereals-irrigation-classification tc-wintercereals-wintercereals-classification"
)


def _product(name: str, *groups: str, missing_raw: float | None = None) -> Modality:
    """A product with one image per period; its bands are its groups' bands in order."""
    sets = tuple(tuple(group.split()) for group in groups)
    bands = tuple(band for band_set in sets for band in band_set)
    return Modality(name=name, bands=bands, band_sets=sets, multitemporal=True, missing_raw=missing_raw)


def _map(name: str, bands: str) -> Modality:
    """A static map layer; one band set."""
    names = tuple(bands.split())
    return Modality(name=name, bands=names, band_sets=(names,), multitemporal=False)


_ALL = (
    _product("sentinel2_l2a", "B02 B03 B04 B08", "B05 B06 B07 B8A B11 B12", "B01 B09", missing_raw=0.0),
    _product("sentinel1", "vv vh", missing_raw=-32768.0),
    _product("landsat", "B8", "B1 B2 B3 B4 B5 B6 B7 B9 B10 B11", missing_raw=0.0),
    _map("worldcover", "B1"),
    _map("srtm", "srtm"),
    _map("openstreetmap_raster", _OSM_BANDS),
    _map("wri_canopy_height_map", "B1"),
    _map("cdl", "cdl"),
    _map("worldcereal", _CEREAL_BANDS),
)

MODALITIES: Mapping[str, Modality] = MappingProxyType({modality.name: modality for modality in _ALL})
"""All modalities of the published models, in the order of their configurations."""

ENCODER_INPUTS = ("sentinel2_l2a", "sentinel1", "landsat")
"""What the published encoders were trained to read; the maps were decoded only (spec/model.md 8.4)."""
