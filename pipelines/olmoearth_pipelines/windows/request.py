"""What a user asks for who has labels and a catalogue: the windows' part of `olmoearth finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.periods import Period, resolve_periods
from olmoearth_cli.geo.tiles import Windowing
from olmoearth_pipelines.stac import redact
from olmoearth_pipelines.windows.label_set import LabelSet, read_label_set, stem


@dataclass(frozen=True, kw_only=True)
class WindowRequest:
    """Labels and a catalogue, from which windows are cut."""

    labels: str
    """Points or polygons (`file.gpkg#layer` names a layer), or a raster."""
    field: str | None = None
    """Field or band with the target; None to find it."""
    kind: str | None = None
    """What is learned (`WindowTask.kind`); None for a target per pixel, or for all classes of a place (0/1 fields)."""
    val_labels: str | None = None
    """File of validation labels of its own."""
    test_labels: str | None = None
    """File of test labels of its own."""
    split: str = "spatial"
    """`spatial`, `random`, or `field:NAME` with train, val and test in that field."""
    block_km: float | None = None
    """Side of the blocks of a spatial split; None takes the distance up to which labels are alike."""
    catalogs: tuple[str, ...] | None = None
    """Short names, URLs or paths; the providers' defaults where None."""
    modalities: tuple[str, ...] | None = None
    """What to read; Sentinel-2 and Sentinel-1 where the catalogue has them, if None."""
    start: date | None = None
    end: date | None = None
    year: int | None = None
    periods: int | None = None
    """30-day composites: as for `olmoearth embed`."""
    window_px: int = 64
    """Side of the windows."""
    patch_px: int = 4
    """Side of a map cell; divides `window_px`."""
    max_windows: int | None = None
    """Of more windows a sample is taken, evenly over the classes."""
    seed: int = 42
    """Of the sample and of the deal into splits."""
    out: Path | None = None
    """Folder of the windows; `datasets/<name of the labels>` where None."""
    workers: int = 1
    scheduler: str | None = None
    guard: str = "strict"
    allow_gaps: bool = False
    """Go on without windows whose scenes cannot be read."""

    @property
    def folder(self) -> Path:
        """Where the windows are kept."""
        return self.out or Path("datasets") / stem(self.labels)

    def checked_periods(self, today: date) -> tuple[Period, ...]:
        """The composites, once sizes and counts are known to make sense.

        Raises:
            InputError: what cannot be.
        """
        Windowing(window_px=self.window_px, overlap_px=0, patch_px=self.patch_px)
        if self.max_windows is not None and self.max_windows < 1:
            raise InputError(f"--max-windows {self.max_windows}: at least 1 window is needed.")
        return resolve_periods(self.start, self.end, self.year, self.periods, today)

    def read_labels(self) -> LabelSet:
        """All labels.

        Raises:
            InputError: what is wrong with them.
        """
        return read_label_set(
            self.labels,
            field=self.field,
            kind=self.kind,
            split=self.split,
            val_labels=self.val_labels,
            test_labels=self.test_labels,
        )

    def settings(self, labels: LabelSet, periods: tuple[Period, ...]) -> dict[str, object]:
        """Everything that decides the windows, as plain JSON."""
        return {
            "labels_sha256": labels.digest(),
            "field": labels.field,
            "kind": labels.kind,
            "split": self.split,
            "block_km": self.block_km,
            "catalog": [redact(address) for address in self.catalogs or ("default",)],
            "modalities": list(self.modalities or ("default",)),
            "start": periods[0].start.date().isoformat(),
            "periods": len(periods),
            "window_px": self.window_px,
            "patch_px": self.patch_px,
            "max_windows": self.max_windows,
            "seed": self.seed,
        }
