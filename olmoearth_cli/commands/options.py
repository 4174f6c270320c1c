"""Option types that several subcommands share."""

from __future__ import annotations

from enum import StrEnum
from functools import partial

import typer

from olmoearth_cli.errors import InputError

option = partial(typer.Option, show_envvar=False)
"""An option; its environment variable (`OLMOEARTH_<COMMAND>_<FLAG>`) follows from its name and clutters the help."""

MODALITY_NAMES = {
    "s2": "sentinel2_l2a",
    "s1": "sentinel1",
    "sentinel2": "sentinel2_l2a",
    "sentinel2_l2a": "sentinel2_l2a",
    "sentinel1": "sentinel1",
    "landsat": "landsat",
}
"""What a user may write -> the models' name."""


class Blend(StrEnum):
    """How overlapping windows become one map."""

    NONE = "none"
    HANN = "hann"


class Precision(StrEnum):
    """Arithmetic inside the encoder."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class MapType(StrEnum):
    """Numbers in the tiles."""

    INT8 = "int8"
    FLOAT32 = "float32"


class Guard(StrEnum):
    """What contradictions between pixels and catalogue lead to."""

    STRICT = "strict"
    WARN = "warn"
    OFF = "off"


def to_modalities(text: str | None) -> tuple[str, ...] | None:
    """`s2,s1` -> the models' names in their fixed order; None where nothing was asked.

    Raises:
        InputError: a name is unknown.
    """
    if not text:
        return None
    asked = set()
    for word in text.split(","):
        name = MODALITY_NAMES.get(word.strip().lower())
        if name is None:
            raise InputError(f"--modalities: unknown modality '{word.strip()}'. Known: s2, s1, landsat.")
        asked.add(name)
    return tuple(m for m in ("sentinel2_l2a", "sentinel1", "landsat") if m in asked)


def to_catalogs(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated catalogues; None where none was given."""
    parts = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    return parts or None
