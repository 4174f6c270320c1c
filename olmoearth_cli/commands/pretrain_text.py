"""A pretraining run as a person reads it on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from olmoearth_cli.console import duration, size

if TYPE_CHECKING:
    from olmoearth_pipelines.pretrain import ProbeReport, StepReport, TrainSummary


def step_text(report: StepReport) -> str:
    """What the progress line says of a step."""
    left = (report.steps - report.step) * report.batch_size / report.samples_per_s
    return (
        f"loss {report.loss:.4f}, lr {report.lr:.2e}, {report.samples_per_s:.3g} samples/s, {duration(left)} left; "
        f"epoch {report.epoch}, step"
    )


def probe_text(report: ProbeReport) -> str:
    """A probe in a line."""
    return (
        f"step {report.step}: kNN on held-out tiles {report.accuracy:.3f} (random weights {report.random:.3f}, most "
        f"frequent class {report.majority:.3f}; {report.queries} samples)"
    )


def summary_text(summary: TrainSummary) -> str:
    """The run in a line."""
    if summary.unchanged:
        return f"{summary.folder}: already trained ({summary.steps} steps); nothing to do."
    parts = [
        f"{summary.steps} steps in {duration(summary.seconds)}",
        f"loss {summary.loss:.4f}",
        f"{summary.samples_per_s:.3g} samples/s",
        f"{summary.kwh:.3g} kWh ({summary.energy_source})",
    ]
    if summary.co2_g is not None:
        parts.append(f"{summary.co2_g:.3g} g CO2")
    if summary.water_l is not None:
        parts.append(f"{summary.water_l:.3g} l water")
    return "; ".join(parts)


def plan_text(figures: dict[str, Any]) -> str:
    """The plan as a table."""
    held = f", {figures['held_out']} held out" if figures["held_out"] else ""
    unit = "GPU-hours" if figures["device"].startswith("cuda") else "hours of this machine's CPU"
    rows = [
        ("model", f"{figures['model']}, {figures['parameters'] / 1e6:.1f} million trained parameters"),
        ("data", f"{figures['samples']} samples{held}"),
        ("steps", f"{figures['steps']} of {figures['batch_size']} samples ({figures['epochs']:.3g} epochs)"),
        (
            "tokens",
            f"{figures['tokens']:.3g} in all; {figures['tokens_per_sample']:.0f} per sample, at most "
            f"{figures['tokens_largest']}",
        ),
        (
            "step",
            f"about {figures['step_s']:.3g} s ({figures['compute_s']:.3g} s to compute, {figures['read_s']:.3g} s to "
            "read), by timed passes on this machine",
        ),
        ("time", f"about {duration(figures['seconds'])} on {figures['devices']} x {figures['device']}"),
        ("cost", f"about {figures['device_hours']:.3g} {unit}"),
        ("memory", f"about {size(figures['memory_bytes'])} per device"),
    ]
    return "\n".join(f"{name:<8}{text}" for name, text in rows)
