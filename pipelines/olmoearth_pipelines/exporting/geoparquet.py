"""GeoParquet 1.1 files of vectors, written row group by row group (spec/outputs.md 1.4)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import CRS

from olmoearth_cli.maps.embedding_map import MapSpec
from olmoearth_cli.maps.files import output_error
from olmoearth_cli.maps.stac_items import lineage, quantization, runtime_parameters

EMBEDDING, GEOMETRY, BBOX = "embedding", "geometry", "bbox"
EDGES = ("xmin", "ymin", "xmax", "ymax")
ROW_GROUP_BYTES = 32_000_000
"""Plain size of a row group, about: a reader of a small area fetches little, and writing takes ten times as much memory
(measured: 0.4 GB more for 32 MB, 1.1 GB for 128 MB)."""
_ARROW = {"int8": pa.int8(), "float32": pa.float32()}


class VectorFile:
    """A GeoParquet file that grows by row groups, in EPSG:4326. A context: whole only when it is left in peace."""

    def __init__(self, path: Path, spec: MapSpec, columns: Mapping[str, pa.DataType], *, what: str) -> None:
        """Open.

        Args:
            path: of the new file.
            spec: of the vectors.
            columns: that stand before the embedding, the bounding box and the geometry.
            what: `cell` or `polygon`: what a row is.
        """
        vector = pa.list_(_ARROW[spec.dtype], spec.dimensions)
        box = pa.struct([(edge, pa.float64()) for edge in EDGES])
        self.schema = pa.schema([*columns.items(), (EMBEDDING, vector), (BBOX, box), (GEOMETRY, pa.binary())])
        self.rows = 0
        self._path, self._spec, self._what = path, spec, what
        self._kinds: set[str] = set()
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        # Bytes of vectors repeat too seldom for a dictionary.
        self._writer = pq.ParquetWriter(
            path, self.schema, compression="zstd", use_dictionary=list(columns), write_page_index=True
        )

    def __enter__(self) -> VectorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._writer.add_key_value_metadata({"geo": json.dumps(self._geo()), "emb": json.dumps(self._emb())})
        try:
            self._writer.close()
        except OSError as problem:
            if kind is None:
                raise output_error(self._path, problem) from problem

    def write(
        self,
        columns: Mapping[str, Any],
        vectors: npt.NDArray[Any],
        shapes: Iterable[npt.NDArray[np.object_]],
    ) -> None:
        """Add a row group.

        Args:
            columns: [N] values of each column.
            vectors: [N, D] in the spec's number type.
            shapes: geometries in longitude and latitude, N in all, in parts.

        Raises:
            OutputError: the system refused.
        """
        bounds, geometry = self._stored(shapes)
        flat = pa.array(np.ascontiguousarray(vectors, dtype=self._spec.dtype).reshape(-1))
        arrays = [pa.array(columns[name], type=self.schema.field(name).type) for name in self.schema.names[:-3]]
        arrays += [
            pa.FixedSizeListArray.from_arrays(flat, self._spec.dimensions),
            pa.StructArray.from_arrays([pa.array(edge) for edge in bounds.T], names=list(EDGES)),
            geometry,
        ]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        try:
            self._writer.write_table(table, row_group_size=max(1, len(table)))
        except OSError as problem:
            raise output_error(self._path, problem) from problem
        self.rows += len(table)
        self._bounds[:2] = np.minimum(self._bounds[:2], bounds[:, :2].min(axis=0))
        self._bounds[2:] = np.maximum(self._bounds[2:], bounds[:, 2:].max(axis=0))

    def _stored(self, shapes: Iterable[npt.NDArray[np.object_]]) -> tuple[npt.NDArray[np.float64], pa.ChunkedArray]:
        """[N, 4] bounding boxes, and the geometries as WKB."""
        bounds, geometry = [], []
        for some in shapes:
            bounds.append(shapely.bounds(some))
            geometry.append(pa.array(shapely.to_wkb(some), type=pa.binary()))
            self._kinds |= set(shapely.get_type_id(some).tolist())
        return np.concatenate(bounds), pa.chunked_array(geometry)

    def _geo(self) -> dict[str, Any]:
        names = {0: "Point", 3: "Polygon", 6: "MultiPolygon"}
        return {
            "version": "1.1.0",
            "primary_column": GEOMETRY,
            "columns": {
                GEOMETRY: {
                    "encoding": "WKB",
                    "geometry_types": sorted(names[int(kind)] for kind in self._kinds),
                    "crs": CRS.from_epsg(4326).to_json_dict(),
                    "bbox": self._bounds.tolist() if self.rows else [-180.0, -90.0, 180.0, 90.0],
                    "covering": {"bbox": {edge: [BBOX, edge] for edge in EDGES}},
                }
            },
        }

    def _emb(self) -> dict[str, Any]:
        """The embeddings extension's fields: the file explains itself."""
        spec = self._spec
        return {
            "row": self._what,
            "column": EMBEDDING,
            "emb:type": "pixel",
            "emb:dimensions": spec.dimensions,
            "emb:quantization": quantization(spec),
            "emb:runtime_parameters": runtime_parameters(spec),
            "data_type": spec.dtype,
            "gsd": spec.cell_m,
            "processing:lineage": lineage(spec),
            "processing:software": dict(spec.software),
        }


def row_bytes(spec: MapSpec) -> int:
    """Plain size of a row with a point."""
    return spec.dimensions * np.dtype(spec.dtype).itemsize + 80
