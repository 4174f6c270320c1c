"""What describes the whole map, made from its finished tiles alone and so the same after a resume."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from olmoearth_cli.errors import OutputError
from olmoearth_cli.maps.files import output_error, write_bytes, write_json
from olmoearth_cli.maps.map_spec import MapSpec
from olmoearth_cli.maps.mosaic import write_mosaics
from olmoearth_cli.maps.tile_files import GAPS, TileEntry, read_tiles, spec_of


def finish_map(folder: Path, spec: MapSpec) -> Path:
    """Write mosaics, preview, index, model and collection over the finished tiles.

    Returns:
        The path of `preview.png`.

    Raises:
        OutputError: the folder cannot be written, or holds tiles of another model.
        ValueError: no tile is finished.
    """
    from olmoearth_cli.maps.mlm_item import model_item
    from olmoearth_cli.maps.preview import write_preview
    from olmoearth_cli.maps.stac_collection import collection

    folder = Path(folder)
    tiles = read_tiles(folder)
    done = [tile for tile in tiles if tile.status == "done"]
    if not done:
        raise ValueError(f"{folder}: no tile is finished")
    _check_one_map(folder, spec, done)
    with contextlib.suppress(OSError):
        (folder / GAPS).rmdir()  # stays where there are gaps
    preview = write_preview(folder, spec, done)
    mosaics = write_mosaics(folder, spec, done)
    write_index(folder, tiles)
    write_json(folder / "model.json", model_item(spec))
    write_json(folder / "collection.json", collection(spec, done, mosaics=[path.name for path in mosaics]))
    return preview


def _check_one_map(folder: Path, spec: MapSpec, done: Sequence[TileEntry]) -> None:
    """A model folder can change under its name between two runs; its tiles must not be mixed."""
    for tile in done:
        different = spec.differences(spec_of(tile))
        if different:
            raise OutputError(
                f"{folder}: tile {tile.id} was made earlier with another {' and '.join(different)} "
                "than this run has. Run again with --overwrite to make the whole map anew."
            )


def write_index(folder: Path, tiles: Sequence[TileEntry]) -> None:
    """STAC GeoParquet of all items, gaps included (`olmoearth:status`, `olmoearth:reason`)."""
    from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet

    table = parse_stac_items_to_arrow([dict(tile.item) for tile in tiles])
    try:
        with tempfile.TemporaryDirectory(prefix="olmoearth-index-") as scratch:
            path = Path(scratch) / "index.parquet"
            to_parquet(table, path)
            content = path.read_bytes()
    except OSError as error:
        raise output_error(folder / "index.parquet", error) from error
    write_bytes(folder / "index.parquet", content)
