from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from task_files import breizhcrops_region, nanoseconds

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.registry import open_task

ALPHABETICAL = ("B1", "B10", "B11", "B12", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9")
BY_NUMBER = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
VALUES = {band: 1000.0 + 100 * i for i, band in enumerate(BY_NUMBER)} | {"B10": 30.0}
CANONICAL = ("B2", "B3", "B4", "B8", "B5", "B6", "B7", "B8A", "B11", "B12", "B1", "B9")


def series(order, *acquisitions) -> np.ndarray:
    """[N, 17] from (date, added to every band)."""
    rows = [[*(VALUES[b] + more for b in order), 0, 0, 1024, nanoseconds(date)] for date, more in acquisitions]
    return np.array(rows, dtype=np.float64)


def write(root, order=ALPHABETICAL, regions=("frh01", "frh02", "frh03")) -> None:
    year = series(order, ("2017-01-03", 0), ("2017-01-23", 10), ("2017-12-31T23:59:59", 4), ("2017-03-01", 2))
    one = series(order, ("2017-06-15", 0))
    for region in regions:
        breizhcrops_region(root, region, [("BTH", year), ("XXX", one), ("ORH", one)])


@pytest.mark.parametrize("order", [ALPHABETICAL, BY_NUMBER])
def test_acquisitions_become_monthly_means_in_the_models_band_order(tmp_path, order) -> None:
    write(tmp_path, order)
    first = next(open_task("breizhcrops", tmp_path).read("train"))
    image = first.inputs["sentinel2_l2a"]
    assert image.shape == (1, 1, 12, 12)
    assert image.dtype == np.float32
    assert image[0, 0, 0].tolist() == [VALUES[band] + 5 for band in CANONICAL]  # mean of +0 and +10
    assert image[0, 0, 2].tolist() == [VALUES[band] + 2 for band in CANONICAL]
    assert image[0, 0, 11].tolist() == [VALUES[band] + 4 for band in CANONICAL]
    assert first.missing["sentinel2_l2a"].tolist() == [month not in (0, 2, 11) for month in range(12)]
    assert not image[0, 0, 1].any()
    assert first.timestamps.tolist() == [[1, month, 2017] for month in range(12)]
    assert first.target == 1
    assert first.id == "frh01/csv/0.csv"


def test_regions_make_the_splits_and_unmapped_crops_are_left_out(tmp_path) -> None:
    write(tmp_path)
    reader = open_task("breizhcrops", tmp_path)
    assert dict(reader.splits()) == {"train": 4, "val": 2}
    assert [(sample.id, int(sample.target)) for sample in reader.read("train")] == [
        ("frh01/csv/0.csv", 1),
        ("frh01/csv/2.csv", 0),
        ("frh02/csv/0.csv", 1),
        ("frh02/csv/2.csv", 0),
    ]
    assert reader.statistics("sentinel2_l2a") is None
    with pytest.raises(InputError, match="no test split"):
        next(reader.read("test"))
    with pytest.raises(InputError, match="published without label fractions"):
        next(reader.read("train", "0.10"))


def test_the_package_order_is_taken_when_asked_for_whatever_the_values_say(tmp_path) -> None:
    write(tmp_path, ALPHABETICAL)
    sample = next(open_task("breizhcrops", tmp_path, reference=True).read("train"))
    # Column 1 is taken for B2: in this file it is B10.
    assert sample.inputs["sentinel2_l2a"][0, 0, 2, 0] == VALUES["B10"] + 2


def test_an_order_that_the_values_do_not_tell_is_refused(tmp_path) -> None:
    flat = np.full((3, 17), 500.0)
    flat[:, 16] = nanoseconds("2017-05-05")
    for region in ("frh01", "frh02"):
        breizhcrops_region(tmp_path, region, [("BTH", flat)])
    with pytest.raises(InputError, match=r"cannot tell the order of the bands: .* 500 and 500"):
        next(open_task("breizhcrops", tmp_path).read("train"))


def test_a_field_that_the_region_file_lacks_is_named(tmp_path) -> None:
    write(tmp_path)
    index = tmp_path / "2017" / "L1C" / "frh01.csv"
    table = pd.read_csv(index)
    table.loc[2, "path"] = "frh01/csv/none.csv"
    table.to_csv(index, index=False)
    with pytest.raises(InputError, match=r"frh01\.h5: 'frh01/csv/none\.csv' is no series"):
        list(open_task("breizhcrops", tmp_path).read("train"))


def test_fields_without_acquisitions_are_left_out(tmp_path) -> None:
    write(tmp_path)
    index = tmp_path / "2017" / "L1C" / "frh03.csv"
    table = pd.read_csv(index)
    table.loc[0, "sequencelength"] = 0
    table.to_csv(index, index=False)
    assert open_task("breizhcrops", tmp_path).splits()["val"] == 1
