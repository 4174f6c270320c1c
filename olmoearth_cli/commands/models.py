"""`olmoearth models`: the family at a glance."""

from __future__ import annotations

from typing import Annotated

from olmoearth_cli.commands.options import option
from olmoearth_cli.console import Console, table

EXAMPLE = "Example: olmoearth models --json"
WINDOW_PX, OVERLAP_PX, PATCH_PX, PERIODS = 64, 32, 4, 12
"""The setting that the cost column is for: the defaults of `olmoearth embed`."""


def models(
    json: Annotated[bool, option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the published models: sizes, dimensions, cost per km2, and which are on this machine."""
    from olmoearth_cli.core.hub import is_cached
    from olmoearth_cli.core.spec import RELEASED, gmacs_per_window

    console = Console(as_json=json)
    km2 = ((WINDOW_PX - OVERLAP_PX) / 100) ** 2
    rows = []
    for spec in RELEASED:
        gflops = {}
        for label, modalities in (("s2", ("sentinel2_l2a",)), ("s2+s1", ("sentinel2_l2a", "sentinel1"))):
            sets = sum(len(spec.band_sets(m)) for m in modalities)
            tokens = sets * PERIODS * (WINDOW_PX // PATCH_PX) ** 2
            gflops[label] = 2 * gmacs_per_window(spec, tokens) / km2
        rows.append(
            {
                "name": spec.name,
                "repo": spec.repo,
                "parameters": spec.encoder_params,
                "dimensions": spec.embedding_size,
                "depth": spec.depth,
                "gflops_per_km2": gflops["s2"],
                "gflops_per_km2_s2_s1": gflops["s2+s1"],
                "cached": is_cached(spec.repo),
                "supported": spec.supported,
            }
        )
    header = ("model", "parameters", "dims", "blocks", "GFLOP/km2 S2", "S2+S1", "on this machine", "repository")
    rows_shown = [
        (
            str(r["name"]),
            f"{r['parameters'] / 1e6:.1f} M",  # type: ignore[operator]
            str(r["dimensions"]),
            str(r["depth"]),
            f"{r['gflops_per_km2']:,.0f}",
            f"{r['gflops_per_km2_s2_s1']:,.0f}",
            ("yes" if r["cached"] else "-") if r["supported"] else "not supported",
            str(r["repo"]),
        )
        for r in rows
    ]
    legend = (
        f"GFLOP/km2: {PERIODS} periods, patch size {PATCH_PX}, windows of {WINDOW_PX} px with {OVERLAP_PX} px overlap."
    )
    console.result(table(header, rows_shown) + "\n" + legend, {"models": rows})
