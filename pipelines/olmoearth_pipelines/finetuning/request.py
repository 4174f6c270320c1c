"""A request to fine-tune: the data, the model, the recipe and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.finetuning.recipe import Recipe

if TYPE_CHECKING:
    from olmoearth_pipelines.windows.request import WindowRequest

DEFAULT_MODEL = "v1.2-tiny"
PATCH_PX = 4


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """What the user asked for; the flags of `olmoearth finetune`. One of four sources of windows is given."""

    out: Path
    """Folder of the run, and of the checkpoint in the end."""
    windows: WindowRequest | None = None
    """Labels and a catalogue, from which windows are cut."""
    dataset: Path | None = None
    """Folder of windows that were cut before."""
    task: str | None = None
    """Name of a benchmark task; with `data`."""
    data: Path | None = None
    """Folder of the benchmark."""
    converted: Path | None = None
    """Where the benchmark's windows are kept; `datasets/<task>` where None."""
    samples: Path | None = None
    """Folder of samples in the pretraining layout; with `label_map`."""
    label_map: str = "worldcover"
    """Map modality of the samples that is learned."""
    window_px: int = 64
    """Side of the windows that samples are divided into."""
    block_km: float | None = None
    """Side of the blocks of land into which samples are divided; None chooses it."""
    model: str = DEFAULT_MODEL
    """Name of a published model, or a folder."""
    modalities: tuple[str, ...] | None = None
    """What is read of the windows; None for all they hold."""
    patch_px: int | None = None
    """Patch side; None for that of the windows' own making, else 4."""
    recipe: Recipe = field(default_factory=Recipe)
    baselines: bool = True
    """False leaves out what fine-tuning is compared with."""
    bootstrap: int = 1000
    """Draws of an interval; 0 for none."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    workers: int = 2
    """Threads that read ahead."""
    overwrite: bool = False
    """Replace a run with other settings."""
    command: str = ""
    """As it was typed, for the report."""

    def __post_init__(self) -> None:
        given = [name for name in ("windows", "dataset", "task", "samples") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"{len(given)} sources of training data. Give one of: --labels FILE, --dataset FOLDER, "
                "--task NAME --data FOLDER (a benchmark), --data FOLDER (samples)."
            )
        if (self.task is None) != (self.data is None):
            raise InputError("A benchmark task needs its name and its folder (--task NAME --data FOLDER).")
