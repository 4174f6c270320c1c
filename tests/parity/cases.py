"""The cases of spec/model.md section 12 that every model is compared on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from olmoearth_cli.core.model import OlmoEarthModel, load_model
from tests.parity import oracle
from tests.parity.oracle import LANDSAT, S1, S2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison."""

    name: str
    modalities: tuple[str, ...] = (S2,)
    b: int = 2
    h: int = 16
    w: int = 16
    t: int = 3
    patch_px: int = 8
    masked: str = ""
    """Empty: fast pass; `equal` or `ragged` visible counts otherwise."""
    input_res: int = 10


CASES = (
    Case(name="S2 p8 T12", t=12),
    Case(name="S2 p4 T1", t=1, patch_px=4),
    Case(name="S2 p2", h=8, w=8, patch_px=2),
    Case(name="S2 p1", h=4, w=4, t=1, patch_px=1),
    Case(name="S2 p3 at 20 m", h=9, w=9, patch_px=3, input_res=20),
    Case(name="S2 p4 half masked", patch_px=4, masked="equal"),
    Case(name="S2 p8 ragged", b=3, h=24, w=24, masked="ragged"),
    Case(name="three sensors p8", modalities=(S2, S1, LANDSAT), t=4),
    Case(name="three sensors p4 ragged", modalities=(S2, S1, LANDSAT), b=3, patch_px=4, masked="ragged"),
)
NOT_SQUARE = (
    Case(name="S2 16x32 p8", w=32),
    Case(name="S2+S1 15x10 p5 ragged", modalities=(S2, S1), h=15, w=10, patch_px=5, masked="ragged"),
)
"""Only where the oracle accepts them: not with absolute positions (G13)."""
DEEP = tuple(case for case in CASES if case.name in ("S2 p4 half masked", "three sensors p4 ragged"))
"""For the large models."""


def cases_for(name: str) -> tuple[Case, ...]:
    """All cases that a model and its oracle can both do."""
    return CASES + NOT_SQUARE if name.startswith("v1.2") else CASES


def difference(ours: OlmoEarthModel, theirs: object, case: Case) -> float:
    """Max abs difference between our tokens and the oracle's."""
    inputs, stamps = oracle.sample(case.modalities, b=case.b, h=case.h, w=case.w, t=case.t)
    masks = None
    if case.masked:
        sets = oracle.sets_of(theirs)
        masks = oracle.random_masks(inputs, sets, case.patch_px, seed=3, equal=case.masked == "equal")
    expected = oracle.encode(theirs, inputs, stamps, masks, case.patch_px, case.input_res)
    found = ours.encode(inputs, stamps, masks, case.patch_px, input_res=case.input_res)
    return oracle.largest_difference(found, expected)


def pair(name: str) -> tuple[OlmoEarthModel, object]:
    """Our model and the oracle with the same weights, ours read from a published folder."""
    theirs = oracle.build(name)
    with TemporaryDirectory() as folder:
        oracle.save_published(theirs, name, Path(folder))
        return load_model(folder, reference_quirks=True), theirs
