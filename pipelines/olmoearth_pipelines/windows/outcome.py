"""What became of the windows of a run, and whether they are enough to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from olmoearth_cli.errors import InputError, RunError
from olmoearth_pipelines.windows.cut import UNREADABLE
from olmoearth_pipelines.windows.label_set import TRAIN, VAL
from olmoearth_pipelines.windows.layout import Group, Layout
from olmoearth_pipelines.windows.window import SPLITS

NAMED_AT_MOST = 8


@dataclass(kw_only=True, eq=False)
class Outcome:
    """Counts what the workers report."""

    layout: Layout
    bare: set[str] = field(default_factory=set)
    """Ids of windows that no scene has data for where they are labelled."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Group of windows -> why it could not be read."""
    blind: int = 0
    """Labelled pixels without data in the other windows that this run cut."""

    def add(self, group: Group, facts: dict[str, Any]) -> None:
        """What `run_job` says of a group."""
        self.bare |= set(facts["bare"])
        self.blind += facts["blind"]
        if facts["status"] == UNREADABLE:
            self.unreadable[group.name] = facts["reason"]

    def check(self, kept: Sequence[int]) -> None:
        """Refuse windows that cannot be learned from.

        Args:
            kept: numbers of the windows that were cut.

        Raises:
            RunError: scenes could not be read, and the user does not go on without them.
            InputError: no imagery at all, or none for training or validation.
        """
        request, layout = self.layout.request, self.layout
        if self.unreadable and not request.allow_gaps:
            raise RunError(
                f"{request.folder}: {len(self.unreadable)} of {len(layout.groups)} groups of windows could not be read "
                f"(first: {next(iter(self.unreadable.values()))}). The others are kept: run the same command again, or "
                "with --allow-gaps to go on without them."
            )
        present = set(layout.division.split[kept].tolist())
        missing = [SPLITS[place] for place in (TRAIN, VAL) if place not in present]
        if not missing:
            return
        what = f"none of the {len(layout.ids)} windows" if not kept else f"no window for {' and '.join(missing)}"
        dates = f"{layout.periods[0].start.date()} to {layout.periods[-1].end.date()}"
        raise InputError(
            f"{request.labels}: {what} has imagery where it is labelled ({self._named(range(len(layout.ids)))}; "
            f"{dates}). Check the dates and --catalog, or label other places."
        )

    def warnings(self, kept: Sequence[int]) -> list[str]:
        """What is less than the labels promise."""
        layout, found = self.layout, []
        bare = [n for n, name in enumerate(layout.ids) if name in self.bare]
        if bare:
            labels = int(layout.plan.labels[bare].sum())
            found.append(
                f"{len(bare)} of {len(layout.ids)} windows{f' with {labels} labels' if labels else ''} left out: no "
                f"scene has data where they are labelled ({self._named(bare)})"
            )
        if self.blind:
            found.append(f"{self.blind} labelled pixels lie where no scene has data, and are not learned from")
        if self.unreadable:
            reason = next(iter(self.unreadable.values()))
            count = len(layout.ids) - len(kept) - len(bare)
            found.append(f"{count} windows left out: their scenes could not be read (first: {reason})")
        return found

    def _named(self, windows: Sequence[int]) -> str:
        """Features of some windows and where the first of them lies."""
        features = [str(n) for n in self.layout.plan.first[list(windows)].tolist() if n >= 0]
        more = ", ..." if len(features) > NAMED_AT_MOST else ""
        lon, lat = self.layout.lonlat[windows[0]]
        named = f"features {', '.join(features[:NAMED_AT_MOST])}{more}; " if features else ""
        return f"{named}first at {lon:.5f}, {lat:.5f}"
