"""Masks against the reference's statistics and against what section 3 says of every draw."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olmoearth_cli.core.masking import MAPS, Codes, Masking, draw_codes, sample_generator
from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES

S2, S1, LANDSAT = ENCODER_INPUTS
SINGLE = dict.fromkeys(MODALITIES, 1)
GROUPED = {name: len(modality.band_sets) for name, modality in MODALITIES.items()}
DRAWS = 2000
STRATEGIES = {
    "updated": Masking(),
    "updated_pt0": Masking(time_mask_prob=0),
    "updated_pt1": Masking(time_mask_prob=1),
    "v1": Masking(strategy="v1"),
}


def presence(periods: int, missing: dict[str, Any]) -> dict[str, np.ndarray]:
    present = {m: np.ones(periods if m in ENCODER_INPUTS else 1, dtype=bool) for m in MODALITIES}
    for name, what in missing.items():
        present[name][slice(None) if what == "all" else what] = False
    return present


def statistics(draws: list[Codes], missing: dict[str, Any]) -> dict[str, Any]:
    """What golden_masking.json reports, measured on our draws."""
    stacked = {m: np.stack([codes[m] for codes in draws]) for m in draws[0]}  # draws Y X T S
    token: dict[str, list[list[float]]] = defaultdict(list)
    role: dict[str, list[list[float]]] = defaultdict(list)
    for name, values in stacked.items():
        for s in range(values.shape[4]):
            tokens = values[..., s].reshape(len(draws), -1)
            key = name if values.shape[4] == 1 else f"{name}/{s}"
            if name in MAPS:
                key = "maps_missing" if missing.get(name) == "all" else "maps_present"
            token[key].append([float((tokens == code).mean()) for code in range(4)])
            seen, asked = (tokens == 0).any(axis=1), (tokens == 2).any(axis=1)
            kinds = (~seen & ~asked, seen & ~asked, ~seen & asked, seen & asked)
            role[key].append([float(kind.mean()) for kind in kinds])
    constant = [(stacked[m] == stacked[m][:, :1, :1]).all(axis=(1, 2, 3, 4)) for m in ENCODER_INPUTS]
    whole = np.concatenate([values.reshape(len(draws), -1) for values in stacked.values()], axis=1)
    shares = {kind: (whole == code).mean(axis=1) for kind, code in (("encoded", 0), ("predicted", 2))}
    return {
        "token": {key: np.mean(values, axis=0) for key, values in token.items()},
        "role": {key: np.mean(values, axis=0) for key, values in role.items()},
        "constant": float(np.all(constant, axis=0).mean()),
        **{kind: (values.mean(), values.min(), values.max()) for kind, values in shares.items()},
    }


def agrees(found: float, expected: float, tolerance: float = 0.03) -> bool:
    """Shares that are exactly 0 or 1 must be so."""
    return found == expected if expected in (0.0, 1.0) else abs(found - expected) <= tolerance


def test_masks_have_the_references_statistics(spec_folder: Path) -> None:
    golden = json.loads((spec_folder / "golden_masking.json").read_text())
    assert len(golden["results"]) >= 10
    for number, result in enumerate(golden["results"]):
        layout = golden["layouts"][result["layout"]]
        present = presence(layout["timesteps"], layout["missing"])
        sets = SINGLE if result["bandsets"] == "single" else GROUPED
        rng = np.random.default_rng(number + 100)
        masking = STRATEGIES[result["strategy"]]
        draws = [draw_codes(present, sets, layout["grid"], masking, rng) for _ in range(DRAWS)]
        found = statistics(draws, layout["missing"])
        where = (result["layout"], result["strategy"], result["bandsets"])
        for key, shares in result["token_fraction"].items():
            assert all(map(agrees, found["token"][key], shares.values())), (where, key, found["token"][key], shares)
        for key, shares in result["instance_role_fraction"].items():
            assert all(map(agrees, found["role"][key], shares.values())), (where, key, found["role"][key], shares)
        assert agrees(found["constant"], result["instances_with_space_constant_masks"]), where
        whole = result["whole_instance"]
        for kind in ("encoded", "predicted"):
            wanted = [whole[f"{kind}_{what}"] for what in ("mean", "min", "max")]
            # The extremes of two such runs differ where they are rare.
            assert found[kind] == pytest.approx(wanted, abs=0.03), (where, kind)


def test_the_same_seeds_give_the_same_masks_and_another_view_others() -> None:
    present = presence(6, {})
    draw = [draw_codes(present, SINGLE, 4, Masking(), sample_generator(1, 2, 3, view=view)) for view in (0, 0, 1)]
    assert all((draw[0][m] == draw[1][m]).all() for m in present)
    assert any((draw[0][m] != draw[2][m]).any() for m in present)


def test_maps_are_asked_for_whole_and_never_shown() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        codes = draw_codes(presence(4, {"cdl": "all"}), SINGLE, 3, Masking(), rng)
        assert (codes["cdl"] == 3).all()
        assert all((codes[m] == 2).all() for m in MAPS if m != "cdl")


def test_time_masking_shows_the_larger_half_of_an_odd_number_of_periods() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        codes = draw_codes(presence(5, {}), SINGLE, 2, Masking(time_mask_prob=1), rng)
        shown = {m: set(np.unique(np.nonzero(codes[m] == 0)[2])) for m in ENCODER_INPUTS}
        asked = {m: set(np.unique(np.nonzero(codes[m] == 2)[2])) for m in ENCODER_INPUTS}
        encoded = [m for m in ENCODER_INPUTS if shown[m]]
        assert len(encoded) == 2 and len(shown[encoded[0]]) == 3 and shown[encoded[0]] == shown[encoded[1]]
        (decoded,) = (m for m in ENCODER_INPUTS if asked[m])
        assert decoded not in encoded and asked[decoded] == set(range(5)) - shown[encoded[0]]


def test_a_pair_without_data_in_its_periods_is_filled_at_random() -> None:
    rng = np.random.default_rng(0)
    present = presence(4, {S1: [1, 2, 3], LANDSAT: "all"})
    seen = {"time": 0, "random": 0}
    for _ in range(200):
        codes = draw_codes(present, SINGLE, 4, Masking(time_mask_prob=1), rng)
        first = codes[S1][:, :, 0, 0]
        assert set(np.unique(first)) <= {0, 1, 2} and (codes[S1][:, :, 1:] == 3).all()
        constant = len(np.unique(first)) == 1
        seen["time" if constant else "random"] += 1
        if not constant:
            assert (first == 1).sum() == 8, "half of its 16 tokens, and the other half hidden"
    assert min(seen.values()) > 60, "its one period falls into either half"


def test_a_lone_token_is_shown_though_it_was_to_be_predicted() -> None:
    rng = np.random.default_rng(0)
    codes = draw_codes(presence(1, {}), SINGLE, 1, Masking(), rng)
    assert all(codes[m].item() == 0 for m in ENCODER_INPUTS)


def test_v1_leaves_every_sample_something_to_see_and_something_to_predict() -> None:
    rng = np.random.default_rng(0)
    present = presence(3, {LANDSAT: "all", S1: "all", **dict.fromkeys(MAPS, "all")})
    for side in (1, 2):
        for _ in range(50):
            codes = draw_codes(present, SINGLE, side, Masking(strategy="v1"), rng)
            assert (codes[S2] == 0).any() and (codes[S2] == 2).any()


def test_v1_never_shows_maps_and_keeps_their_targets() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        codes = draw_codes(presence(2, {}), GROUPED, 4, Masking(strategy="v1"), rng)
        assert all((codes[m] != 0).all() and (codes[m] == 2).sum() == 8 for m in MAPS)


def test_a_sample_without_satellites_has_nothing_to_show() -> None:
    present = presence(2, dict.fromkeys(ENCODER_INPUTS, "all"))
    codes = draw_codes(present, SINGLE, 2, Masking(), np.random.default_rng(0))
    assert not any((values == 0).any() for values in codes.values())


@pytest.mark.parametrize(
    "wrong", [{"strategy": "v2"}, {"time_mask_prob": 1.5}, {"encode_ratio": 0.7, "decode_ratio": 0.5}]
)
def test_impossible_maskings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Masking(**wrong)


def test_periods_that_disagree_are_refused() -> None:
    present = {S2: np.ones(3, dtype=bool), S1: np.ones(4, dtype=bool)}
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        draw_codes(present, SINGLE, 2, Masking(), np.random.default_rng(0))
