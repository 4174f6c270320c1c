"""The input guard over a run's chosen scenes, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from olmoearth_cli.errors import GuardError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines.guard import GuardReport, check_scenes
from olmoearth_pipelines.scene import Scene
from olmoearth_pipelines.scene_table import SceneTable

GUARDED_SCENES = 200
"""Scenes per modality that the guard looks at; evenly spread where a region has more."""
GUARD_THREADS = 16
"""Small reads side by side: they wait for the network more than they work."""


def guard_table(
    table: SceneTable, boxes: Sequence[PixelBox], *, mode: str, warn: Callable[[str], None]
) -> GuardReport | None:
    """Do the pixels of the accepted scenes agree with what the catalogue says about them?

    Args:
        table: the chosen scenes.
        boxes: where they will be read.
        mode: `strict` stops at a contradiction, `warn` says it, `off` does not look.
        warn: told of everything odd.

    Raises:
        GuardError: a contradiction, in strict mode.
    """
    if mode == "off":
        return None
    report = check_scenes(_sampled(table), boxes, threads=GUARD_THREADS)
    for line in report.warnings:
        warn(line)
    if report.contradictions and mode == "strict":
        more = f" ({len(report.contradictions) - 1} more scenes)" if len(report.contradictions) > 1 else ""
        raise GuardError(report.contradictions[0] + more)
    for line in report.contradictions:
        warn(line)
    return report


def _sampled(table: SceneTable) -> list[Scene]:
    chosen: dict[str, dict[str, Scene]] = {}
    for selection in table.selections:
        for scene in selection.scenes[: selection.accepted]:
            chosen.setdefault(scene.modality, {})[scene.id] = scene
    scenes = []
    for members in chosen.values():
        every = sorted(members.values(), key=lambda scene: (scene.acquired, scene.id))
        scenes += every[:: max(1, -(-len(every) // GUARDED_SCENES))]
    return scenes
