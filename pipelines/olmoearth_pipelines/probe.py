"""The probe road: labels and a map (or bare vectors) -> honest figures -> a fitted probe and what it makes.

What can be refused (map, labels, field, split, another file in an output's place) is refused before anything is
learnt; the files asked for (`save`, `predict`, ...) are written after the figures are known, each whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli import __version__
from olmoearth_cli.core.probe.saved import SavedProbe, is_probe, save_probe
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_cli.maps.label_cells import cells_of
from olmoearth_cli.maps.labels import read_labels
from olmoearth_pipelines.cube import ReadError
from olmoearth_pipelines.probing.class_map import ClassMapSummary, ClassTile, classify_map, made_by
from olmoearth_pipelines.probing.evaluate import (
    Evaluation,
    LinearMethod,
    MajorityMethod,
    Method,
    evaluate,
    fit_final,
)
from olmoearth_pipelines.probing.outcome import Origin, ProbeReport, compose
from olmoearth_pipelines.probing.raw_bands import available, raw_vectors, reads_of
from olmoearth_pipelines.probing.report_html import is_report, write_report
from olmoearth_pipelines.probing.samples import Samples
from olmoearth_pipelines.probing.sources import SUGGESTIONS, find_labels, find_map
from olmoearth_pipelines.probing.splits import Folds, make_folds
from olmoearth_pipelines.probing.suggest import check_not_filled_in, where_to_label, write_suggestions
from olmoearth_pipelines.probing.vector_file import read_vectors

Note = Callable[[str], None]
RAW_READS = 60
"""Places of labels that the raw-band baseline reads unasked: a minute or so."""
SPLITS = ("spatial", "random", "field:NAME")


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """What the user asked for; the flags of `olmoearth probe knn` and `linear` over a map or vectors."""

    method: Method
    grow_batch: bool = False
    """True lets a linear probe take larger batches where there are many labels."""
    map: Path | None = None
    labels: Path | None = None
    vectors: Path | None = None
    """A file of labelled vectors, in place of a map and labels."""
    field: str | None = None
    kind: str | None = None
    """Kind of target, to overrule what the labels look like."""
    polygons: str = "covered"
    max_cells: int = 50_000
    split: str = "spatial"
    """One of `SPLITS`."""
    folds: int = 5
    block_km: float | None = None
    metric: str | None = None
    bootstrap: int = 1000
    seed: int = 42
    raw: str = "auto"
    """Raw-band baseline: `auto` where the imagery is on this machine, `yes`, `no`."""
    save: Path | None = None
    predict: Path | None = None
    where_to_label: int | None = None
    report: Path | None = None
    workers: int = 1
    scheduler: str | None = None
    overwrite: bool = False
    command: str = ""
    """As it was typed, for the report."""

    @property
    def split_field(self) -> str | None:
        """NAME of `field:NAME`."""
        return self.split.partition(":")[2] if self.split.startswith("field:") else None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Labelled vectors and what is known of them."""

    samples: Samples
    origin: Origin
    emap: EmbeddingMap | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def run(request: ProbeRequest, note: Note) -> Iterator[ClassTile | ProbeReport]:
    """Probe; yields a report per tile while a class map is made, and the result at the end.

    Where files are to be made the figures come first: they are worth having even if a file cannot be written.

    Raises:
        OlmoEarthError: what cannot go on, and what to do.
    """
    _check(request)
    loaded = _load(request, note)
    _check_against(loaded, request)
    started = time.perf_counter()
    samples = loaded.samples
    if isinstance(request.method, LinearMethod) and request.grow_batch:
        request = replace(request, method=LinearMethod(recipe=request.method.recipe.for_samples(len(samples))))
    folds = make_folds(
        samples,
        how="field" if request.split_field else request.split,
        folds=request.folds,
        block_km=request.block_km,
        seed=request.seed,
    )
    judged = _judge(samples, folds, request)
    baselines, notes = _baselines(loaded, folds, request, note)
    report = compose(
        samples,
        folds,
        judged,
        baselines,
        loaded.origin,
        notes=[*loaded.notes, *notes],
        warnings=loaded.warnings,
        settings=_settings(request),
        command=request.command,
        seconds=round(time.perf_counter() - started, 3),
    )
    if request.save or request.predict or request.where_to_label or request.report:
        yield report
    yield from _products(request, loaded, judged, report)


def _check(request: ProbeRequest) -> None:
    """What no file needs to be read for."""
    if request.vectors is not None:
        given = [("--map", request.map), ("--labels", request.labels)]
        clash = [flag for flag, value in given if value is not None]
        if clash:
            raise InputError(f"--vectors holds vectors and labels; leave {' and '.join(clash)} out.")
        products = [("--predict", request.predict), ("--where-to-label", request.where_to_label)]
        clash = [flag for flag, value in products if value is not None]
        if clash:
            raise InputError(f"{' and '.join(clash)} need a map; --vectors has none.")
    if request.split not in ("spatial", "random") and not request.split_field:
        raise InputError(f"--split {request.split}: use {', '.join(SPLITS)}.")
    for flag, path, ending in (
        ("--predict", request.predict, ".tif"),
        ("--save", request.save, ".safetensors"),
        ("--report", request.report, ".html"),
    ):
        if path is not None and path.suffix.lower() != ending:
            raise InputError(f"{flag} {path}: give a name that ends in {ending}.")
        if path is not None and path.is_dir():
            raise InputError(f"{flag} {path}: is a folder. Give a file's name.")
    if request.predict is not None:
        made_by(request.predict, overwrite=request.overwrite)
    if not request.overwrite:
        _check_own(request.save, is_probe, "probe")
        _check_own(request.report, is_report, "report")


def _check_own(path: Path | None, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse to replace a file that is not of the kind that we would write there."""
    if path is not None and path.exists() and not is_ours(path):
        raise OutputError(
            f"{path}: is there already and is no {what} of this program. Choose another name, or --overwrite."
        )


def _check_against(loaded: Loaded, request: ProbeRequest) -> None:
    """What depends on the labels."""
    kind = loaded.samples.kind
    if isinstance(request.method, LinearMethod) and request.method.recipe.dice and kind != "segmentation":
        raise InputError(f"--dice is for --task segmentation, not for {kind}. Leave it out.")
    if request.where_to_label:
        check_not_filled_in(Path(SUGGESTIONS), label_field=loaded.origin.field)


def _load(request: ProbeRequest, note: Note) -> Loaded:
    if request.vectors is not None:
        samples, targets, notes = read_vectors(
            request.vectors, field=request.field, kind=request.kind, split_field=request.split_field
        )
        origin = Origin(labels=str(request.vectors), field=targets.field)
        return Loaded(samples=samples, origin=origin, emap=None, notes=notes, warnings=())
    folder = request.map or _found("map", find_map(Path()), note)
    emap = EmbeddingMap.open(folder)
    labels = request.labels or _found("labels", find_labels(Path(), folder), note)
    return _from_map(emap, labels, request)


def _found(what: str, path: Path, note: Note) -> Path:
    note(f"{what}: {path}")
    return path


def _from_map(emap: EmbeddingMap, labels: Path, request: ProbeRequest) -> Loaded:
    """Only the cells that carry a label are read."""
    table = read_labels(labels, field=request.field, task=request.kind)
    found = cells_of(
        table,
        emap,
        polygons=request.polygons,
        max_cells=request.max_cells,
        seed=request.seed,
        split_field=request.split_field,
    )
    vectors = emap.read_cells(found.cells)
    seen: npt.NDArray[np.bool_] = np.isfinite(vectors).all(axis=1)  # type: ignore[assignment]
    if not seen.any():
        raise InputError(
            f"{labels}: all {len(seen)} labelled cells lie where the map {emap.folder} has no data. "
            "Label other places, or map a period with imagery there."
        )
    warnings = list(found.warnings)
    if not seen.all():
        warnings.append(f"{int((~seen).sum())} of {len(seen)} labelled cells lie where the map has no data: left out")
    spec = emap.spec
    samples = Samples(
        kind=table.kind,
        class_names=table.class_names,
        vectors=vectors[seen],
        targets=found.targets[seen],
        lonlat=found.lonlat[seen],
        group=found.group[seen],
        split=None if found.split is None else found.split[seen],
        cells=found.cells[seen],
    )
    origin = Origin(
        labels=str(labels),
        field=table.field,
        map=str(emap.folder),
        model=spec.model_name,
        weights_sha256=spec.weights_sha256,
        demo=spec.demo,
    )
    return Loaded(
        samples=samples, origin=origin, emap=emap, notes=(*table.notes, *found.notes), warnings=tuple(warnings)
    )


def _judge(samples: Samples, folds: Folds, request: ProbeRequest) -> Evaluation:
    return evaluate(
        samples, folds, request.method, metric=request.metric, bootstrap=request.bootstrap, seed=request.seed
    )


def _baselines(
    loaded: Loaded, folds: Folds, request: ProbeRequest, note: Note
) -> tuple[list[tuple[str, Evaluation]], list[str]]:
    """What the map has to beat, on the same folds; and notes on what could not be compared."""
    found: list[tuple[str, Evaluation]] = []
    notes: list[str] = []
    if loaded.emap is not None and request.raw != "no":
        features, notes = _raw_features(loaded.emap, loaded.samples, request, note)
        if features is not None:
            found.append(("raw bands", _judge(loaded.samples.with_vectors(features), folds, request)))
    name = "mean value" if loaded.samples.kind == "regression" else "majority class"
    majority = replace(request, method=MajorityMethod())
    return [*found, (name, _judge(loaded.samples, folds, majority))], notes


def _raw_features(
    emap: EmbeddingMap, samples: Samples, request: ProbeRequest, note: Note
) -> tuple[npt.NDArray[np.float32] | None, list[str]]:
    """The raw bands of the samples' cells [N, F], or None and why not."""
    assert samples.cells is not None
    if request.raw == "auto":
        reads = reads_of(emap, samples.cells)
        slow = f"the labels lie in {reads} places" if reads > RAW_READS else None
        reason = available(emap) or slow
        if reason is not None:
            return None, [f"no raw-band baseline: {reason}. --raw yes reads the imagery all the same"]
    note("reading the imagery of the labelled cells for the raw-band baseline")
    try:
        raw = raw_vectors(emap, samples.cells)
    except ReadError as error:
        if request.raw == "yes":
            raise InputError(f"--raw yes: {error}. Leave it out to go without the raw-band baseline.") from error
        return None, [f"no raw-band baseline: {error}"]
    notes = [f"raw bands: {line}" for line in raw.notes]
    blind: npt.NDArray[np.bool_] = ~np.isfinite(raw.vectors).all(axis=1)  # type: ignore[assignment]
    if blind.any():
        notes.append(f"raw bands: {int(blind.sum())} of {len(blind)} cells have no imagery and count as average")
    # Centred features: 0 says "average", the least that a cell without imagery can claim.
    return np.where(blind[:, None], 0, raw.vectors).astype(np.float32), notes


def _products(
    request: ProbeRequest, loaded: Loaded, judged: Evaluation, report: ProbeReport
) -> Iterator[ClassTile | ProbeReport]:
    """Write what was asked for, with the probe fitted on all labels."""
    emap = loaded.emap
    if request.save or request.predict or request.where_to_label:
        saved = _saved(request, loaded, judged, report)
        if request.save:
            save_probe(request.save, saved)
            report = replace(report, saved=str(request.save))
        if request.where_to_label and emap:
            places = where_to_label(
                emap, saved, request.where_to_label, avoid_lonlat=loaded.samples.lonlat, seed=request.seed
            )
            write_suggestions(Path(SUGGESTIONS), places, label_field=loaded.origin.field)
            short = request.where_to_label - len(places)
            more = [f"where to label: the map has room for {len(places)} places only"] if short else []
            report = replace(report, where_to_label=SUGGESTIONS, notes=[*report.notes, *more])
        if request.predict and emap:
            for step in _predict(request, emap, saved):
                if isinstance(step, ClassTile):
                    yield step
                else:
                    report = replace(report, predict=_prediction(step))
    if request.report:
        report = replace(report, report=str(request.report))
        _write_page(request.report, report, loaded)
    yield report


def _saved(request: ProbeRequest, loaded: Loaded, judged: Evaluation, report: ProbeReport) -> SavedProbe:
    assert not isinstance(request.method, MajorityMethod)
    spec = loaded.emap.spec if loaded.emap else None
    return SavedProbe(
        probe=fit_final(loaded.samples, request.method, judged),
        method=request.method.name,
        class_names=loaded.samples.class_names,
        field=loaded.origin.field,
        temperature=judged.calibration.temperature,
        model_id=spec.model_id if spec else "",
        model_name=spec.model_name if spec else "",
        weights_sha256=spec.weights_sha256 if spec else "",
        demo=loaded.origin.demo,
        patch_px=spec.patch_px if spec else 1,
        labels=len(loaded.samples),
        software={"olmoearth": __version__, "torch": version("torch")},
        facts={"metric": report.metric, "value": report.value, "low": report.low, "high": report.high},
    )


def _predict(request: ProbeRequest, emap: EmbeddingMap, saved: SavedProbe) -> Iterator[ClassTile | ClassMapSummary]:
    assert request.predict is not None
    yield from classify_map(
        emap, saved, request.predict, workers=request.workers, scheduler=request.scheduler, overwrite=request.overwrite
    )


def _prediction(summary: ClassMapSummary) -> dict[str, Any]:
    figures = asdict(summary)
    return {**figures, "km2_by_class": {name: shares["km2"] for name, shares in summary.classes.items()}}


def _write_page(path: Path, report: ProbeReport, loaded: Loaded) -> None:
    from olmoearth_pipelines.probing.pictures import class_map_png, label_marks, preview_png

    emap, samples = loaded.emap, loaded.samples
    write_report(
        path,
        asdict(report),
        class_map_png=class_map_png(Path(report.predict["path"])) if report.predict else None,
        preview_png=preview_png(emap) if emap else None,
        labels=label_marks(emap, samples) if emap else None,
    )


def _settings(request: ProbeRequest) -> dict[str, Any]:
    """The request as plain JSON, what was not asked left out."""
    plain = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(request).items() if v is not None}
    return {key: value for key, value in plain.items() if key != "command"}
