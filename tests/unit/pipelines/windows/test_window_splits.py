"""Training, validation and test: blocks of land apart, every class in each where that can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.windows.label_set import TEST, TRAIN, VAL, LabelSet, read_label_set
from olmoearth_pipelines.windows.plan import WindowPlan, plan_windows
from olmoearth_pipelines.windows.splits import deal, divide

ROW, COL = -8768 * 64, 1032 * 64


def labelled(
    path: Path, header: str, points: list[tuple[int, int, str]], **options: str
) -> tuple[LabelSet, WindowPlan]:
    """Labels at (row, column) of the grid of 64 px windows, one in each, and their plan."""
    to_lonlat = Transformer.from_crs(32631, 4326, always_xy=True)
    lines = [f"lon,lat,{header}"]
    for row, col, text in points:
        lon, lat = to_lonlat.transform((COL + col * 64 + 30) * 10, -(ROW + row * 64 + 30) * 10)
        lines.append(f"{lon:.9f},{lat:.9f},{text}")
    path.write_text("\n".join(lines))
    labels = read_label_set(str(path), field=header.partition(",")[0], **options)
    return labels, plan_windows(labels, window_px=64, patch_px=4)


def chequered(side: int, classes: str = "ab") -> list[tuple[int, int, str]]:
    return [(r, c, classes[(r + c) % len(classes)]) for r in range(side) for c in range(side)]


def test_blocks_go_whole_to_one_split(tmp_path) -> None:
    labels, plan = labelled(tmp_path / "p.csv", "c", chequered(20))
    made = divide(plan, labels, block_km=2.6)
    assert made.block_km == 2.56  # four windows
    squares = (plan.place[:, 1:] // 256).tolist()
    splits: dict[tuple[int, int], set[int]] = {}
    groups: dict[tuple[int, int], set[int]] = {}
    for square, split, group in zip(squares, made.split.tolist(), made.group.tolist(), strict=True):
        splits.setdefault(tuple(square), set()).add(split)
        groups.setdefault(tuple(square), set()).add(group)
    assert len(splits) == 25
    assert all(len(found) == 1 for found in (*splits.values(), *groups.values()))
    assert len(set.union(*groups.values())) == 25
    share = np.bincount(made.split) / len(plan)
    np.testing.assert_allclose(share, [0.6, 0.2, 0.2], atol=0.05)
    assert made.warnings == ()


def test_the_same_seed_divides_alike_and_another_otherwise(tmp_path) -> None:
    labels, plan = labelled(tmp_path / "p.csv", "c", chequered(12))
    one, again, other = (divide(plan, labels, block_km=1.28, seed=seed) for seed in (42, 42, 7))
    np.testing.assert_array_equal(one.split, again.split)
    assert (one.split != other.split).any()


def test_a_rare_class_in_three_blocks_is_in_every_split(tmp_path) -> None:
    points = [(r, c, "rare" if (r, c) in {(1, 1), (5, 9), (13, 2)} else "common") for r, c, _ in chequered(16)]
    labels, plan = labelled(tmp_path / "p.csv", "c", points)
    for seed in range(5):
        made = divide(plan, labels, block_km=1.28, seed=seed)
        rare = plan.strata[:, labels.class_names.index("rare")] > 0
        assert sorted(made.split[rare].tolist()) == [TRAIN, VAL, TEST]


def test_blocks_shrink_until_every_class_can_be_everywhere(tmp_path) -> None:
    points = [(r, c, "rare" if (r, c) in {(0, 0), (0, 4), (4, 0)} else "common") for r, c, _ in chequered(30)]
    labels, plan = labelled(tmp_path / "p.csv", "c", points)
    made = divide(plan, labels)
    rare = plan.strata[:, 1] > 0
    assert made.block_km is not None and made.block_km <= 4 * 0.64
    assert len(np.unique(made.group[rare])) == 3
    assert len(np.unique(made.split[rare])) == 3


def test_a_class_of_one_place_is_learned_and_its_absence_elsewhere_said(tmp_path) -> None:
    points = [*chequered(6), *[(7, 7, "lone")] * 3]
    labels, plan = labelled(tmp_path / "p.csv", "c", points, kind="classification")
    made = divide(plan, labels)
    assert made.warnings == (
        "no val window holds lone: not judged there",
        "no test window holds lone: not judged there",
    )


def test_too_few_labels_of_a_class_are_refused_by_name(tmp_path) -> None:
    labels, plan = labelled(tmp_path / "p.csv", "c", [*chequered(6), (9, 9, "vine"), (9, 8, "vine"), (8, 9, "rye")])
    with pytest.raises(InputError, match=r"Too few labels of rye \(1\), vine \(2\): each class needs 3 or more"):
        divide(plan, labels)
    with pytest.raises(InputError, match=r"rye \(1\), vine \(2\)"):
        divide(plan, labels, how="random")


def test_a_class_whose_labels_all_lie_under_others_is_too_rare(tmp_path) -> None:
    under = [(r, c, "vine") for r, c, _ in chequered(2)]  # four labels, each in a cell of another class
    labels, plan = labelled(tmp_path / "p.csv", "c", [*chequered(6), *under])
    with pytest.raises(InputError, match=r"Too few labels of vine \(0\): .* another class is labelled as well"):
        divide(plan, labels)


def test_pixels_that_are_learned_and_judged_are_counted(tmp_path) -> None:
    points = [(r, c, f"{name},{('train', 'val')[c % 2]}") for r, c, name in chequered(4)]
    again = [(r, c, f"{name},test") for r, c, name in chequered(4) if (r, c) in {(0, 0), (2, 2), (1, 1)}]
    labels, plan = labelled(tmp_path / "p.csv", "c,use", [*points, *again], split="field:use")
    made = divide(plan, labels, how="field:use")  # (1, 1) is for validation and test, and not learned
    assert "3 windows are in two splits" in made.notes[0]
    assert made.warnings[-1].startswith("32 labelled pixels of validation and test are labelled for training too")
    options = {"split": "field:use", "kind": "classification"}
    labels, plan = labelled(tmp_path / "p.csv", "c,use", [*points, *again], **options)
    assert divide(plan, labels, how="field:use").warnings[-1].startswith("2 labelled places of validation and test")


def test_labels_in_too_few_blocks_are_refused(tmp_path) -> None:
    labels, plan = labelled(tmp_path / "p.csv", "c", chequered(4))
    with pytest.raises(InputError, match=r"lie in \d blocks of 20 km: too few for train, val, test"):
        divide(plan, labels, block_km=20)
    with pytest.raises(InputError, match="--block-km -1"):
        divide(plan, labels, block_km=-1)


def test_a_random_deal_is_balanced_and_says_what_it_is_worth(tmp_path) -> None:
    labels, plan = labelled(tmp_path / "p.csv", "c", chequered(10))
    made = divide(plan, labels, how="random")
    for column in plan.strata.T:
        np.testing.assert_array_equal(np.bincount(made.split[column > 0]), [30, 10, 10])
    assert "overstate" in made.warnings[0]
    assert (made.group == -1).all()


def test_a_field_that_names_all_splits_is_obeyed(tmp_path) -> None:
    points = [(r, c, f"{name},{('train', 'val', 'test')[r % 3]}") for r, c, name in chequered(6)]
    labels, plan = labelled(tmp_path / "p.csv", "c,use", points, split="field:use")
    made = divide(plan, labels, how="field:use")
    np.testing.assert_array_equal(made.split, (plan.place[:, 1] - ROW) // 64 % 3)


def test_without_validation_labels_some_training_windows_choose_the_epoch(tmp_path) -> None:
    points = [(r, c, f"{name},{'test' if r >= 8 else 'train'}") for r, c, name in chequered(10)]
    labels, plan = labelled(tmp_path / "p.csv", "c,use", points, split="field:use")
    made = divide(plan, labels, how="field:use")
    test = (plan.place[:, 1] - ROW) // 64 >= 8
    np.testing.assert_array_equal(made.split == TEST, test)
    assert (made.split == VAL).sum() == pytest.approx(16, abs=2)
    assert "training windows choose the epoch" in made.notes[0]


def test_a_field_without_training_labels_is_refused(tmp_path) -> None:
    points = [(r, c, f"{name},test") for r, c, name in chequered(3)]
    labels, plan = labelled(tmp_path / "p.csv", "c,use", points, split="field:use")
    with pytest.raises(InputError, match="None of the labels is for training"):
        divide(plan, labels, how="field:use")


def test_places_whose_windows_overlap_across_splits_are_counted(tmp_path) -> None:
    points = [(r, c, f"{name},{'test' if c == 3 else 'val' if c == 0 else 'train'}") for r, c, name in chequered(4)]
    labels, plan = labelled(tmp_path / "p.csv", "c,use", points, split="field:use", kind="classification")
    assert divide(plan, labels, how="field:use").notes == ()  # side by side, 64 px apart
    near = [(r, c, f"{name},{'test' if c % 2 else 'val' if r else 'train'}") for r, c, name in chequered(2)]
    labels = read_label_set(shifted(tmp_path / "q.csv", near), field="c", split="field:use", kind="classification")
    plan = plan_windows(labels, window_px=64, patch_px=4)
    made = divide(plan, labels, how="field:use")
    assert made.notes == ("3 validation and test windows share some ground with training windows",)


def shifted(path: Path, points: list[tuple[int, int, str]]) -> str:
    """Labels eight pixels apart."""
    to_lonlat = Transformer.from_crs(32631, 4326, always_xy=True)
    lines = ["lon,lat,c,use"]
    for row, col, text in points:
        lon, lat = to_lonlat.transform((COL + col * 8 + 2) * 10, -(ROW + row * 8 + 2) * 10)
        lines.append(f"{lon:.9f},{lat:.9f},{text}")
    path.write_text("\n".join(lines))
    return str(path)


def test_numbers_are_spread_by_size(tmp_path) -> None:
    points = [(r, c, str(round(r + c + 0.5, 1))) for r, c, _ in chequered(12)]
    labels, plan = labelled(tmp_path / "p.csv", "v", points)
    made = divide(plan, labels, how="random")
    means = [np.mean([np.nanmean(plan.target(int(n))) for n in np.flatnonzero(made.split == k)]) for k in range(3)]
    assert max(means) - min(means) < 1  # of values from 0.5 to 22.5


def test_dealt_units_stay_whole_and_shares_are_met() -> None:
    unit = np.repeat(np.arange(30), 4)
    columns = np.eye(3)[np.repeat(np.arange(30) % 3, 4)]
    split = deal(columns, unit, np.array([0.6, 0.2, 0.2]), seed=1)
    assert (split.reshape(30, 4) == split[::4, None]).all()
    for column in columns.T:
        np.testing.assert_array_equal(np.bincount(split[column > 0]), [24, 8, 8])
