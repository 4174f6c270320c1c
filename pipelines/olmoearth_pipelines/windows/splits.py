"""Which windows are learned from, which choose the epoch and which judge: by default whole blocks of land apart.

Neighbouring windows look alike and are labelled alike; dealt one by one, the test would ask for what training has all
but seen (spec/evaluation.md sections 5 and 6). So blocks go whole to one side, about as large as labels stay alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PIXEL_M
from olmoearth_pipelines.probing.autocorrelation import label_range_m
from olmoearth_pipelines.probing.plane import kilometres, numbered, to_plane
from olmoearth_pipelines.probing.splits import BLOCKS_AT_LEAST, EXTENT_SHARE
from olmoearth_pipelines.windows.label_set import OPEN, TEST, TRAIN, VAL, LabelSet
from olmoearth_pipelines.windows.plan import WindowPlan
from olmoearth_pipelines.windows.window import SPLITS, Array

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
SHARES = {TRAIN: 0.6, VAL: 0.2, TEST: 0.2}
SHARES_OF_TRAINING = {TRAIN: 0.8, VAL: 0.2}
"""Where the user's own division has no validation labels: some of the training labels choose the epoch."""
TRIES, TRIED_AT_MOST = 200, 50_000
"""Deals of which the best is kept; fewer where so many units would take long."""
SHUFFLE = 0.7
"""Largest part by which a unit's rank among the others is lowered at random."""
NAMED_AT_MOST = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Division:
    """The split of every window of a plan."""

    split: Ints
    """[N] place in `SPLITS`."""
    group: Ints
    """[N] number of the block of land that is in one split as a whole; -1 where none was asked."""
    block_km: float | None
    """Side of the blocks; None where none were dealt."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Dealt:
    """Windows that are dealt, and into what."""

    plan: WindowPlan
    members: Ints | None
    """[C] labels of each class; None for numbers and rasters."""
    class_names: tuple[str, ...]
    shares: dict[int, float]


def divide(
    plan: WindowPlan, labels: LabelSet, *, how: str = "spatial", block_km: float | None = None, seed: int = 42
) -> Division:
    """Divide windows into training, validation and test: 60, 20 and 20 %, or as the labels say.

    Where the labels say it, but leave no window for validation, a fifth of the training windows is taken for it.

    Args:
        plan: the windows.
        labels: what they were made from.
        how: `spatial` or `random`; `field:...` where roles are known counts as `spatial`.
        block_km: side of the blocks, rounded to whole windows; None takes the distance up to which labels are alike.
        seed: of the deal.

    Raises:
        InputError: a class has too few labels for so many splits, or there are too few windows or blocks.
    """
    if block_km is not None and not (np.isfinite(block_km) and block_km > 0):
        raise InputError(f"--block-km {block_km}: the side of a block must be a positive number of kilometres.")
    split, group = plan.role.copy(), np.full(len(plan), -1, dtype=np.int64)
    fixed = not (plan.role == OPEN).any()
    if fixed and not (plan.role == TRAIN).any():
        raise InputError("None of the labels is for training: at least some must be. Check the values of the field.")
    if fixed and (plan.role == VAL).any():
        return _checked(Division(split=split, group=group, block_km=None, notes=(), warnings=()), plan, labels)
    chosen = np.flatnonzero(plan.role == TRAIN) if fixed else np.arange(len(plan))
    dealt = _Dealt(
        plan=plan.take(chosen),
        members=labels.labels_per_class(),
        class_names=labels.class_names,
        shares=SHARES_OF_TRAINING if fixed else SHARES,
    )
    made = _at_random(dealt, seed) if how == "random" else _in_blocks(dealt, block_km, seed)
    split[chosen], group[chosen] = made.split, made.group
    notes = made.notes
    if fixed:
        notes = (f"no validation labels: {(made.split == VAL).sum()} training windows choose the epoch", *notes)
    return _checked(replace(made, split=split, group=group, notes=notes), plan, labels)


def deal(columns: Floats, unit: Ints, shares: Floats, seed: int) -> Ints:
    """Deal whole units so that every class, and the number of windows, is divided as `shares`.

    Units with the largest part of some class tend to come first; each goes where least of what it brings is held, by
    the share that is due. Of many such deals the one is kept that leaves fewest classes out of a split.

    Args:
        columns: [N, F] how much of each class a window holds.
        unit: [N] numbers from 0 without gaps.
        shares: [S] parts of the splits; their sum is 1.
        seed: of the order among equals.

    Returns:
        [N] number of the split.
    """
    weights = np.column_stack([columns, np.ones(len(columns))])  # N F+1
    weights /= np.maximum(weights.sum(axis=0), 1e-12)
    part = np.zeros((int(unit.max()) + 1, weights.shape[1]))  # U F+1
    np.add.at(part, unit, weights)
    generator = np.random.default_rng(seed)
    tries = max(1, min(TRIES, TRIED_AT_MOST // len(part)))
    ranks = part.max(axis=1) * (1 - SHUFFLE * generator.random((tries, len(part))))  # tries U
    deals = [_one_deal(part, shares, np.argsort(-rank, kind="stable")) for rank in ranks]
    return min(deals, key=lambda chosen: _fault(chosen, part, shares))[unit]


def _one_deal(part: Floats, shares: Floats, order: npt.NDArray[np.intp]) -> Ints:
    held = np.zeros((len(shares), part.shape[1]))  # S F+1, in parts of what is due
    chosen = np.empty(len(part), dtype=np.int64)
    for index in order:
        chosen[index] = np.argmin(held @ part[index])
        held[chosen[index]] += part[index] / shares[chosen[index]]
    return chosen


def _fault(chosen: Ints, part: Floats, shares: Floats) -> tuple[int, int, float]:
    """Classes that are never learned, classes missing from a split, and how far the deal is from the shares."""
    held = np.stack([part[chosen == k].sum(axis=0) for k in range(len(shares))])  # S F+1
    held = held[:, part.any(axis=0)]
    absent = (held == 0).sum(axis=1)
    return int(absent[TRAIN]), int(absent.sum()), float(np.abs(held - shares[:, None]).sum())


def _at_random(dealt: _Dealt, seed: int) -> Division:
    """Window by window."""
    unit = np.arange(len(dealt.plan))
    _check_enough(dealt, unit, "windows", "Label more places.")
    warning = "random split: windows on both sides may be neighbours, so the scores overstate what to expect elsewhere"
    return Division(
        split=deal(dealt.plan.strata, unit, np.array(list(dealt.shares.values())), seed),
        group=np.full(len(unit), -1),
        block_km=None,
        notes=(),
        warnings=(warning,),
    )


def _in_blocks(dealt: _Dealt, block_km: float | None, seed: int) -> Division:
    """Squares of the zones' grids; a window belongs to the one that holds its centre."""
    plan = dealt.plan
    if block_km:
        windows, why = max(1, round(block_km * 1000 / PIXEL_M / plan.window_px)), "--block-km in whole windows"
    else:
        windows, why = _block_side(dealt, seed)
    side = kilometres(windows * plan.window_px * PIXEL_M)
    block = _blocks(plan, windows)
    advice = "Give a smaller --block-km" if windows > 1 else "Give a smaller --window"
    _check_enough(dealt, block, f"blocks of {side} km", f"{advice}, label other places too, or use --split random.")
    return Division(
        split=deal(plan.strata, block, np.array(list(dealt.shares.values())), seed),
        group=block,
        block_km=windows * plan.window_px * PIXEL_M / 1000,
        notes=(f"{block.max() + 1} blocks of {side} km divided into {', '.join(_names(dealt))} ({why})",),
        warnings=(),
    )


def _blocks(plan: WindowPlan, windows: int) -> Ints:
    """[N] number of the block of so many windows a side."""
    side = windows * plan.window_px
    centre = (plan.place[:, 1:] + plan.window_px // 2) // side
    return numbered(np.column_stack([plan.place[:, :1], centre]))


def _block_side(dealt: _Dealt, seed: int) -> tuple[int, str]:
    """Side in windows and the reason for it; small enough for ten blocks, and for each class in every split."""
    plan = dealt.plan
    xy = to_plane(plan.lonlat())
    shares = plan.strata / np.maximum(plan.strata.sum(axis=1, keepdims=True), 1)
    reach = label_range_m(shares, xy, seed=seed)
    if reach:
        asked, why = reach, f"labels are alike up to about {kilometres(reach)} km"
    else:
        asked = float(np.ptp(xy, axis=0).max()) / EXTENT_SHARE
        why = "the labels show no distance up to which they are alike: a tenth of the extent"
    windows = first = max(1, round(asked / PIXEL_M / plan.window_px))
    while windows > 1 and not _serves(dealt, _blocks(plan, windows)):
        windows = int(windows * 0.85)
    return windows, why if windows == first else f"{why}; smaller here, for all classes to be in every split"


def _serves(dealt: _Dealt, block: Ints) -> bool:
    """True where blocks are many enough to deal."""
    splits = len(dealt.shares)
    windows = (dealt.plan.strata > 0).sum(axis=0)
    enough = min(BLOCKS_AT_LEAST, len(dealt.plan))
    return bool(block.max() + 1 >= enough and (_held(dealt.plan, block) >= np.minimum(windows, splits)).all())


def _held(plan: WindowPlan, block: Ints) -> Ints:
    """[F] in how many blocks each class occurs."""
    window, column = np.nonzero(plan.strata > 0)
    columns = plan.strata.shape[1]
    return np.bincount(np.unique(block[window] * columns + column) % columns, minlength=columns)


def _check_enough(dealt: _Dealt, unit: Ints, what: str, advice: str) -> None:
    """Refuse what cannot be divided.

    Raises:
        InputError: fewer units than splits, or classes with fewer labels than splits.
    """
    names, units = _names(dealt), int(unit.max()) + 1
    if units < len(names):
        raise InputError(f"The labels lie in {units} {what}: too few for {', '.join(names)}. {advice}")
    if dealt.members is None:
        return
    held = _held(dealt.plan, unit)
    most = np.where(held > 0, np.maximum(dealt.members, held), 0)  # where classes meet, no label counts
    few = [f"{name} ({n})" for name, n in zip(dealt.class_names, most.tolist(), strict=True) if n < len(names)]
    if few:
        raise InputError(
            f"Too few labels of {_listed(few)}: each class needs {len(names)} or more, one for each of "
            f"{', '.join(names)}, and none counts where another class is labelled as well. Label more of them, join "
            "them with other classes, or leave them out."
        )


def _names(dealt: _Dealt) -> list[str]:
    return [SPLITS[place] for place in dealt.shares]


def _checked(made: Division, plan: WindowPlan, labels: LabelSet) -> Division:
    """Add what the splits lack, and what they share."""
    notes, warnings = list(made.notes), list(made.warnings)
    present = [place for place in range(len(SPLITS)) if (made.split == place).any()]
    for place in present if labels.class_names else ():
        absent = ~(plan.strata[made.split == place] > 0).any(axis=0)
        if absent.any():
            names = _listed([labels.class_names[c] for c in np.flatnonzero(absent)])
            what = "never learned" if place == TRAIN else "not judged there"
            warnings.append(f"no {SPLITS[place]} window holds {names}: {what}")
    boxes, same = np.unique(plan.place, axis=0, return_inverse=True)
    shared = len({*zip(same.reshape(-1).tolist(), made.split.tolist(), strict=True)}) - len(boxes)
    if shared:
        notes.append(f"{shared} windows are in two splits, with the labels of each: their images were seen in training")
        if repeated := _repeated(plan, made.split, same.reshape(-1)):
            what = "places" if plan.centred else "pixels"
            warnings.append(
                f"{repeated} labelled {what} of validation and test are labelled for training too: there the scores "
                "tell what was remembered, not what to expect elsewhere"
            )
    elif plan.centred and (count := _overlapping(plan, made.split)):
        notes.append(f"{count} validation and test windows share some ground with training windows")
    return replace(made, notes=tuple(notes), warnings=tuple(warnings))


def _repeated(plan: WindowPlan, split: Ints, same: Ints) -> int:
    """How many labelled pixels (or places) outside training are labelled in training as well.

    Args:
        plan: the windows.
        split: [N] place in `SPLITS`.
        same: [N] number of the ground; equal for windows on one ground.
    """
    learned = {ground: number for number, ground in enumerate(same.tolist()) if split[number] == TRAIN}
    judged = [(n, learned[ground]) for n, ground in enumerate(same.tolist()) if split[n] != TRAIN and ground in learned]
    if plan.centred:
        return len(judged)
    return sum(int((_labelled(plan.target(n)) & _labelled(plan.target(train))).sum()) for n, train in judged)


def _labelled(target: Array) -> npt.NDArray[np.bool_]:
    return np.isfinite(target) if target.dtype.kind == "f" else np.asarray(target >= 0)


def _overlapping(plan: WindowPlan, split: Ints) -> int:
    """How many windows outside training overlap one in training."""
    from scipy.spatial import KDTree

    apart = plan.place * (plan.window_px * 10.0**6, 1, 1)  # zones lie far apart
    nearest, _ = KDTree(apart[split == TRAIN]).query(apart[split != TRAIN], p=np.inf)
    return int((nearest < plan.window_px).sum())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more
