"""Which samples are tested on which: folds that do not flatter a probe (spec/evaluation.md sections 5 and 6).

Neighbouring samples look alike and are labelled alike, so a random split tests a probe on what it has all but seen.
By default whole blocks of land are held out, about as large as the labels stay alike. The cells of one label feature
are never divided, whatever the split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.probing.autocorrelation import label_range_m
from olmoearth_pipelines.probing.leakage import Sides, balance_warnings, leakage_messages
from olmoearth_pipelines.probing.plane import blocks_of, group_means, kilometres, numbered, to_plane
from olmoearth_pipelines.probing.samples import Array, Samples
from olmoearth_pipelines.probing.strata import check_labels, class_columns, deal, likeness_columns

ROLES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Values of a split field that mean a fixed split."""
MISSING = frozenset({"", "none", "nan", "null", "<na>"})
FIELD_FOLDS_AT_MOST = 10
"""Distinct values of a field that each become a fold; more of them are dealt into `folds` folds."""
EXTENT_SHARE = 10
"""Blocks along the extent where the labels show no range of their own."""
BLOCKS_AT_LEAST = 10
"""Occupied blocks that a chosen side leaves where it can: fewer say nothing about the spread between them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Folds:
    """A division of N samples into what is learnt from and what is tested."""

    how: str
    """`spatial`, `random` or `field`: what was done, which may be less than what was asked (see `notes`)."""
    fold: npt.NDArray[np.int64]
    """[N]: the fold in which a sample is tested; -1 for the samples of a fixed split that never are."""
    count: int
    """Number of folds; 1 for a fixed split."""
    unit: npt.NDArray[np.int64]
    """[N]: what the bootstrap draws whole: a spatial block, a value of the field or a label feature. In one fold."""
    block_km: float | None = None
    """Side of the blocks held out; None where none were."""
    role: npt.NDArray[np.object_] | None = None
    """[N] `train`, `val` or `test` of a fixed split; None in cross-validation."""
    range_km: float | None = None
    """Distance up to which the labels are alike; None where it is not known."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """True where the field named training, validation and test samples."""
        return self.role is not None

    def sides(self, fold: int) -> Sides:
        """[N] True for the samples to learn from when `fold` is tested, [N] True for those tested.

        The samples to learn from include what `validation` takes out of them in cross-validation.
        """
        return (self.role == "train" if self.role is not None else self.fold != fold), self.fold == fold

    def validation(self, fold: int) -> npt.NDArray[np.bool_] | None:
        """[N] True for the samples that choose rate and epoch when `fold` is tested; None where none are set apart.

        In a fixed split its own, in cross-validation the next fold.
        """
        if self.role is not None:
            return self.role == "val" if (self.role == "val").any() else None
        return self.fold == (fold + 1) % self.count if self.count > 2 else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Land:
    """Label features and where they lie."""

    group: npt.NDArray[np.int64]
    """[N], the label feature of each sample, from 0 without gaps: G of them."""
    xy: npt.NDArray[np.float64] | None
    """[G, 2] mean position, metres."""
    range_m: float | None
    """Distance up to which labels are alike."""


def make_folds(
    samples: Samples, *, how: str = "spatial", folds: int = 5, block_km: float | None = None, seed: int = 42
) -> Folds:
    """Divide samples.

    Args:
        samples: with `split` where `how` is `field`.
        how: `spatial` (blocks of land), `random` (stratified by class) or `field` (the values of `samples.split`).
        folds: wanted number of folds; fewer, with a warning, where there is less to deal.
        block_km: side of the blocks; None takes the range of the labels.
        seed: of the deal and of the subsample that the range is measured on.

    Raises:
        InputError: one class only, values that are not finite, too few samples or blocks, or a field that does not
            divide the samples.
        ValueError: an unknown `how`, or no split field given.
    """
    if folds < 2:
        raise InputError(f"--folds {folds}: at least 2 are needed to test on what was not learnt from.")
    if block_km is not None and not (np.isfinite(block_km) and block_km > 0):
        raise InputError(f"--block-km {block_km}: the side of a block must be a positive number of kilometres.")
    check_labels(samples)
    land, columns = _land(samples, seed), class_columns(samples)
    if how == "field":
        made = _by_field(samples.split, land, columns, folds, seed)
    elif how == "random":
        made = _at_random(land, columns, folds, seed)
    elif how == "spatial":
        made = _in_blocks(land, columns, folds, block_km, seed)
    else:
        raise ValueError(f"split {how!r}; it is spatial, random or field")
    return _with_doubts(made, samples, columns, land.range_m)


def _land(samples: Samples, seed: int) -> _Land:
    group = numbered(samples.group)
    if samples.lonlat is None:
        return _Land(group=group, xy=None, range_m=None)
    xy = group_means(to_plane(samples.lonlat), group)
    range_m = label_range_m(group_means(likeness_columns(samples), group), xy, seed=seed)
    return _Land(group=group, xy=xy, range_m=range_m)


def _with_doubts(made: Folds, samples: Samples, columns: Array, range_m: float | None) -> Folds:
    """Add what is to be said about classes and leakage."""
    sides = [made.sides(fold) for fold in range(made.count)]
    xy = None if samples.lonlat is None else to_plane(samples.lonlat)
    blocks = made.block_km is not None
    notes, leaks = leakage_messages(samples, xy, sides, blocks=blocks, range_m=range_m)
    warnings = (*made.warnings, *leaks, *balance_warnings(samples, columns, sides, made.unit))
    return replace(made, range_km=range_m / 1000 if range_m else None, notes=(*made.notes, *notes), warnings=warnings)


def _in_blocks(land: _Land, columns: Array, folds: int, block_km: float | None, seed: int) -> Folds:
    """Square blocks on an equal-area plane; a label feature belongs to the block of its mean position."""
    if land.xy is None:
        made = _at_random(land, columns, folds, seed)
        return replace(made, notes=("The samples have no place: the folds are random, not spatial.", *made.notes))
    side_m, why = (block_km * 1000, "as asked by --block-km") if block_km else _block_side(land, folds)
    side = kilometres(side_m)
    block = blocks_of(land.xy, side_m)[land.group]
    blocks = int(block.max()) + 1
    if blocks < 2:
        raise InputError(
            f"All samples lie in one block of {side} km, so no block can be held out. "
            "Give a smaller --block-km, or use --split random and read its score as an upper bound."
        )
    count, warnings = _fewer(folds, blocks, f"blocks of {side} km")
    if land.range_m and side_m < 0.75 * land.range_m:
        warnings += (
            f"Blocks of {side} km are smaller than the {kilometres(land.range_m)} km up to which labels are alike: "
            "the score may be too good for land far from any label.",
        )
    return Folds(
        how="spatial",
        fold=deal(columns, block, count, seed),
        count=count,
        unit=block,
        block_km=side_m / 1000,
        notes=(f"{blocks} blocks of {side} km in {count} folds ({why}).",),
        warnings=warnings,
    )


def _block_side(land: _Land, folds: int) -> tuple[float, str]:
    """Side in metres and the reason for it; small enough for two blocks per fold, and ten, where that can be."""
    assert land.xy is not None
    if land.range_m:
        asked, why = land.range_m, f"labels are alike up to about {kilometres(land.range_m)} km"
    else:
        asked = max(float(np.ptp(land.xy, axis=0).max()) / EXTENT_SHARE, 1.0)
        why = "the labels show no distance up to which they are alike: a tenth of the extent"
    places = len(np.unique(land.xy, axis=0))
    wanted = min(max(BLOCKS_AT_LEAST, 2 * folds), places)
    side = asked
    while blocks_of(land.xy, side).max() + 1 < wanted and side > asked / 1000:
        side *= 0.85
    return side, why if side == asked else f"{why}; smaller here, to have {wanted} blocks"


def _at_random(land: _Land, columns: Array, folds: int, seed: int) -> Folds:
    """Stratified by class, label features whole."""
    count, warnings = _fewer(folds, int(land.group.max()) + 1, "label features")
    fold = deal(columns, land.group, count, seed)
    return Folds(how="random", fold=fold, count=count, unit=land.group, warnings=warnings)


def _by_field(split: Array | None, land: _Land, columns: Array, folds: int, seed: int) -> Folds:
    """A fixed split, or folds from the values of a field."""
    if split is None:
        raise ValueError("split `field` needs samples.split")
    text = np.array([str(value).strip() for value in split], dtype=object)
    missing = sum(value.lower() in MISSING for value in text)
    if missing:
        raise InputError(
            f"{missing} of {len(text)} samples have no value in the split field. Fill it in, or remove these labels."
        )
    roles = np.array([ROLES.get(value.lower(), "") for value in text], dtype=object)
    if (roles != "").all():
        return _fixed(roles, land)
    names = np.unique(text.astype(str))
    if len(names) < 2:
        raise InputError(
            f"The split field has the one value {str(names[0])!r}: nothing can be held out. Use --split spatial."
        )
    value = numbered(text.astype(str))
    if len(names) <= FIELD_FOLDS_AT_MOST:
        note = f"{len(names)} folds, one per value of the split field: {', '.join(names)}."
        unit, doubts = _units(land, value, np.ones(len(value), dtype=bool))
        return Folds(how="field", fold=value, count=len(names), unit=unit, notes=(note, *doubts))
    count, warnings = _fewer(folds, len(names), "values of the split field")
    note = f"{len(names)} values of the split field in {count} folds."
    fold = deal(columns, value, count, seed)
    return Folds(how="field", fold=fold, count=count, unit=value, notes=(note,), warnings=warnings)


def _fixed(roles: npt.NDArray[np.object_], land: _Land) -> Folds:
    counts = {role: int((roles == role).sum()) for role in ("train", "val", "test")}
    notes = [f"Fixed split: {counts['train']} train, {counts['val']} val, {counts['test']} test."]
    if not counts["test"]:
        roles = np.where(roles == "val", "test", roles)
        notes.append(
            "The split field names no test samples: the validation samples are the test, none choose the rate."
        )
    if not counts["train"] or not (roles == "test").any():
        raise InputError(
            f"The split field names {counts['train']} training, {counts['val']} validation and {counts['test']} test "
            "samples: it takes some to learn from and some to test on."
        )
    fold = np.where(roles == "test", 0, -1).astype(np.int64)
    unit, doubts = _units(land, numbered(roles.astype(str)), fold == 0)
    return Folds(how="field", fold=fold, count=1, unit=unit, role=roles, notes=(*notes, *doubts))


def _units(
    land: _Land, side: npt.NDArray[np.int64], tested: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Bootstrap units within each side of a given split: blocks as large as labels are alike, or label features.

    Drawing single samples would take neighbours for independent evidence and give too narrow an interval.
    """
    features = numbered(np.stack([side, land.group], axis=1))
    if land.xy is None or land.range_m is None:
        return features, ()
    blocks = numbered(np.stack([side, blocks_of(land.xy, land.range_m)[land.group]], axis=1))
    if len(np.unique(blocks[tested])) >= BLOCKS_AT_LEAST:
        return blocks, ()
    note = (
        f"The tested samples fill fewer than {BLOCKS_AT_LEAST} blocks of the {kilometres(land.range_m)} km up to which "
        "labels are alike: the interval takes label features as independent and is too narrow."
    )
    return features, (note,)


def _fewer(folds: int, there: int, what: str) -> tuple[int, tuple[str, ...]]:
    """At most as many folds as there are things to deal."""
    if there < 2:
        raise InputError(f"All samples share {there} of the {what}: nothing can be held out. Add labels elsewhere.")
    if there >= folds:
        return folds, ()
    return there, (f"{there} {what}, so {there} folds instead of {folds}.",)
