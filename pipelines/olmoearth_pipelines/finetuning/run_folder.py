"""The folder of a fine-tuning run: whose it is, with which settings, and what came of it.

run.json        the settings, and what was said of the data when the run began; written first
resume.pt       all that is needed to go on after the last whole epoch; gone when the run is finished
samples.npz     windows of the judged split, to look at
report.json     the report; written last, beside the checkpoint (`core.finetune.saved`)
report.html     the page of it, unless it is written elsewhere
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from olmoearth_cli.core.finetune.saved import DESCRIPTION
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import PART, read_json, remove, write_json
from olmoearth_pipelines.finetuning.report import Leg, Score, Shown, TrainReport
from olmoearth_pipelines.finetuning.report_html import is_page
from olmoearth_pipelines.finetuning.samples import SAMPLES, write_samples

RECORD, REPORT, RESUME, PAGE = "run.json", "report.json", "resume.pt", "report.html"
KIND = "fine-tuning"
FORMAT = 1
SHOWN = 3
"""Names and differences in a message."""
Lines = Mapping[str, Sequence[str]]


def settings_of(folder: Path) -> dict[str, Any] | None:
    """The settings of the run that a folder holds; None where it holds none.

    Raises:
        OutputError: not a folder, or somebody else's.
    """
    record = _record(folder)
    return None if record is None else record["settings"]


def _record(folder: Path) -> dict[str, Any] | None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, not a folder. Choose another folder with --out.")
    path = folder / RECORD
    if not path.exists():
        names = sorted(entry.name for entry in folder.glob("[!.]*") if not entry.name.endswith(PART))
        if names:
            raise OutputError(
                f"{folder}: is not empty and holds no fine-tuning run ({', '.join(names[:SHOWN])}). Nothing was "
                "changed. Choose a new or empty folder with --out."
            )
        return None
    try:
        record = read_json(path)
    except InputError as error:
        raise OutputError(f"{error} Choose another folder with --out.") from error
    if not isinstance(record, dict) or record.get("kind") != KIND or not isinstance(record.get("settings"), dict):
        raise OutputError(f"{path}: is not the record of a fine-tuning run. Choose another folder with --out.")
    if record.get("format") != FORMAT:
        raise OutputError(
            f"{path}: in format {record.get('format')}, this program writes {FORMAT}. Choose another --out."
        )
    return record


def check(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Refuse a folder that the run must not write into; nothing is changed.

    Returns:
        True where it holds this very run, begun or finished.

    Raises:
        OutputError: somebody else's files, or a run with other settings.
    """
    there = settings_of(folder)
    if there is None:
        return False
    before, now = dict(_flat(there)), dict(_flat(_plain(settings)))
    keys = [key for key in {**now, **before} if before.get(key, "not set") != now.get(key, "not set")]
    if keys and not overwrite:
        shown = [f"{key} is {before.get(key, 'not set')} there and {now.get(key, 'not set')} here" for key in keys]
        more = f"; {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise OutputError(
            f"{folder}: holds a run with other settings: {'; '.join(shown[:SHOWN])}{more}. Choose another folder with "
            "--out, or --overwrite to replace the run."
        )
    return not keys


def start(folder: Path, settings: Mapping[str, Any], said: Lines, *, overwrite: bool) -> Lines:
    """Take the folder: `check`, and clear away the run that is replaced.

    Args:
        folder: of the run.
        settings: all that decides the result.
        said: `notes` and `warnings` so far.
        overwrite: True replaces a run with other settings.

    Returns:
        What was said when the run began; `said` where it begins now.

    Raises:
        OutputError: as `check`, or the folder cannot be written.
    """
    if check(folder, settings, overwrite=overwrite):
        record = _record(folder)
        assert record is not None
        return {key: [str(line) for line in record.get("said", {}).get(key, ())] for key in said}
    for name in (REPORT, SAMPLES, DESCRIPTION, RESUME):
        remove(folder / name)
    if (folder / PAGE).is_file() and is_page(folder / PAGE):
        remove(folder / PAGE)
    content = {"kind": KIND, "format": FORMAT, "settings": _plain(settings), "said": _plain(said)}
    write_json(folder / RECORD, content)
    return said


def finish(folder: Path, report: TrainReport, shown: Sequence[Shown]) -> None:
    """Write the samples and the report, and drop what was kept to go on."""
    write_samples(folder, shown)
    write_json(folder / REPORT, to_json(report))
    remove(folder / RESUME)


def finished(folder: Path) -> TrainReport | None:
    """The report of a run that was finished; None where something of it is missing."""
    if not (folder / REPORT).is_file() or not (folder / DESCRIPTION).is_file():
        return None
    try:
        return replace(_from_json(read_json(folder / REPORT)), out=str(folder), unchanged=True)
    except (InputError, KeyError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise OutputError(f"{folder / REPORT}: damaged ({reason}). Delete it and run again.") from error


def to_json(report: TrainReport) -> dict[str, Any]:
    """A report as plain JSON; what is not defined (NaN) is null."""
    content: dict[str, Any] = _finite(asdict(report))
    return content


def _from_json(content: Mapping[str, Any]) -> TrainReport:
    def score(found: Mapping[str, Any] | None) -> Score | None:
        return None if found is None else Score(**found)

    confusion = content["confusion"]
    val = score(content["val"])
    if val is None or set(content) != {field.name for field in fields(TrainReport)}:
        raise KeyError("its keys are not those of a report")
    return TrainReport(
        **{
            **content,
            "class_names": tuple(content["class_names"]),
            "legs": tuple(map(Leg.from_json, content["legs"])),
            "val": val,
            "test": score(content["test"]),
            "baselines": tuple(Score(**found) for found in content["baselines"]),
            "confusion": None if confusion is None else tuple(map(tuple, confusion)),
            "notes": tuple(content["notes"]),
            "warnings": tuple(content["warnings"]),
        }
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`a.b` -> value as text."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain
