"""Writers of tiny files in exactly the layouts in which the benchmark tasks are published."""

from __future__ import annotations

import datetime
import json
import pickle
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import rasterio
import torch
from affine import Affine

EUROSAT_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""EuroSAT's own file order; GEO-Bench named its channels 1 to 13 by ESA's order instead."""
S2_NAMES = (
    "01 - Coastal aerosol",
    "02 - Blue",
    "03 - Green",
    "04 - Red",
    "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge",
    "07 - Vegetation Red Edge",
    "08 - NIR",
    "08A - Vegetation Red Edge",
    "09 - Water vapour",
    "10 - SWIR - Cirrus",
    "11 - SWIR",
    "12 - SWIR",
)
L8_NAMES = ("04 - Red", "03 - Green", "02 - Blue", "05 - NIR", "06 - SWIR1", "07 - SWIR2")


def foreign_class(module: str, name: str) -> type:
    """A class that pickles under a module that is not installed here, as GEO-Bench's own classes do."""
    made = type(name, (), {"__module__": module})
    for part in [".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 2)]:
        sys.modules.setdefault(part, types.ModuleType(part))
    setattr(sys.modules[module], name, made)
    return made


def forget_foreign_modules() -> None:
    """Take the modules away again, so that a reader that imported them would fail."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("geobench", "ccb")]:
        del sys.modules[name]


def geobench_attribute(label: object, bands: list[str]) -> str:
    """The attribute `pickle` of a sample: the text of the pickle's bytes, with the benchmark's own objects in it."""
    band_info = foreign_class("ccb.io.dataset", "Sentinel2")()
    band_info.name, band_info.wavelength = "02 - Blue", 0.49
    about = {
        "date": datetime.date(2019, 11, 5),
        "date_id": 1,
        "spatial_resolution": np.float64(10.0),
        "band_info": band_info,
        "meta_info": None,
        "transform": Affine(10.0, 0.0, 331040.0, 0.0, -10.0, -3714560.0),
        "crs": None,
    }
    content = {band: about for band in bands} | {"bands_order": bands}
    if label is not None:
        content["label"] = label
    text = str(pickle.dumps(content))
    forget_foreign_modules()
    return text


def geobench_sample(folder: Path, name: str, planes: dict[str, np.ndarray], label: object = None) -> None:
    """One HDF5 sample; a segmentation label is among the planes."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.hdf5", "w") as file:
        for band, values in planes.items():
            file.create_dataset(band, data=values)
        file.attrs["pickle"] = geobench_attribute(label, list(planes))


def geobench_tables(folder: Path, stats: dict[str, float], splits: dict[str, list[str]], partitions: dict) -> None:
    """`band_stats.json` (mean m, std m/2, min 0, max 2m) and the partition files."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {name: {"mean": m, "std": m / 2, "min": 0.0, "max": 2 * m, "median": m} for name, m in stats.items()}
    (folder / "band_stats.json").write_text(json.dumps(table))
    for name, listed in {"default": splits, **partitions}.items():
        (folder / f"{name}_partition.json").write_text(json.dumps(listed))


def breizhcrops_region(root: Path, region: str, fields: list[tuple[str, np.ndarray]]) -> None:
    """Index and HDF5 file of a region from (crop code, series [N, 17])."""
    (root / "2017" / "L1C").mkdir(parents=True, exist_ok=True)
    mapping = pd.DataFrame({"id": [0, 1, 1], "classname": ["barley", "wheat", "wheat"], "code": ["ORH", "BTH", "BTP"]})
    mapping.to_csv(root / "classmapping.csv")
    rows = []
    with h5py.File(root / "2017" / "L1C" / f"{region}.h5", "w") as file:
        for number, (code, series) in enumerate(fields):
            path = f"{region}/csv/{number}.csv"
            file.create_dataset(path, data=series)
            rows.append((number, code, path, 0.0, len(series), number))
    columns = ["idx", "CODE_CULTU", "path", "meanQA60", "sequencelength", "id"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "2017" / "L1C" / f"{region}.csv", index=False)


def nanoseconds(date: str) -> float:
    return float(np.datetime64(date, "ns").astype(np.int64))


def cropharvest(root: Path, labels: list[dict], arrays: dict[str, np.ndarray], test: dict[str, tuple]) -> None:
    """Labels, training arrays and test files."""
    features = [
        {
            "type": "Feature",
            "properties": row,
            "geometry": {"type": "Point", "coordinates": [row["lon"], row["lat"]]},
        }
        for row in labels
    ]
    (root / "features" / "arrays").mkdir(parents=True)
    (root / "test_features").mkdir()
    (root / "labels.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    for name, array in arrays.items():
        with h5py.File(root / "features" / "arrays" / f"{name}.h5", "w") as file:
            file.create_dataset("array", data=array)
    for name, (x, y) in test.items():
        with h5py.File(root / "test_features" / f"{name}.h5", "w") as file:
            file.create_dataset("x", data=x)
            file.create_dataset("y", data=y)
            file.create_dataset("lats", data=np.zeros(len(y)))
            file.create_dataset("lons", data=np.zeros(len(y)))


def pastis_split(root: Path, split: str, months: list[list[int]], targets: np.ndarray, series: list[tuple]) -> None:
    """One split from (s2 [T, 13, H, W], s1 [T, 2, H, W]) pairs."""
    home = root / f"pastis_r_{split}"
    for folder in ("s2_images", "s1_images"):
        (home / folder).mkdir(parents=True)
    torch.save(torch.tensor(months, dtype=torch.long), home / "months.pt")
    torch.save(torch.as_tensor(targets), home / "targets.pt")
    for number, (s2, s1) in enumerate(series):
        torch.save(torch.as_tensor(s2), home / "s2_images" / f"{number}.pt")
        torch.save(torch.as_tensor(s1), home / "s1_images" / f"{number}.pt")


def rslearn_window(group: Path, name: str, options: dict, side: int, label: dict) -> Path:
    """A window with its metadata and label; its layers are written with `rslearn_raster`."""
    home = group / name
    (home / "layers" / "label").mkdir(parents=True)
    about = {
        "group": group.name,
        "name": name,
        "projection": {"crs": "EPSG:32736", "x_resolution": 10, "y_resolution": -10},
        "bounds": [100, 200, 100 + side, 200 + side],
        "time_range": ["2022-09-01T00:00:00+00:00", "2023-09-01T00:00:00+00:00"],
        "options": options,
    }
    (home / "metadata.json").write_text(json.dumps(about))
    (home / "items.json").write_text("[]")
    feature = {"type": "Feature", "properties": label, "geometry": {"type": "Point", "coordinates": [0, 0]}}
    collection = {"type": "FeatureCollection", "features": [feature]}
    (home / "layers" / "label" / "data.geojson").write_text(json.dumps(collection))
    return home


def rslearn_raster(window: Path, layer: str, bands: str, values: np.ndarray) -> None:
    """One band set of one layer, [C, H, W]."""
    folder = window / "layers" / layer / bands
    folder.mkdir(parents=True)
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    transform = Affine(10, 0, 1000, 0, -10, 2000)
    with rasterio.open(
        folder / "geotiff.tif", "w", dtype=values.dtype, crs=32736, transform=transform, **profile
    ) as out:
        out.write(values)
