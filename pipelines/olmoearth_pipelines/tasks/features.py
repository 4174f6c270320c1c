"""A benchmark's samples to vectors, by the frozen encoder (spec/evaluation.md sections 2 and 3).

One pass over a split gives the mean and the maximum pooling at once; a sweep over both normalisations therefore
costs two passes. Padded and missing periods are masked, so that a vector depends on its own sample alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from olmoearth_cli import __version__
from olmoearth_cli.core.checks import MISSING, VISIBLE
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.normalize import normalize
from olmoearth_cli.core.probe.pooling import POOLINGS, centre_patch, pool_instance, pool_map
from olmoearth_cli.core.probe.statistics import DEFAULT_METHOD, METHODS, normalize_by_dataset
from olmoearth_cli.core.spec import MICRO_BATCH_TOKENS
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.feature_cache import TARGETS, Features, FeatureWriter, cache_folder, load_features
from olmoearth_pipelines.tasks.measure import BandMeter, present_periods
from olmoearth_pipelines.tasks.published import column_name
from olmoearth_pipelines.tasks.task import BandTable, Reader, Task, TaskSample

Array = npt.NDArray[Any]
NORMALISATIONS = ("pre_trained", "dataset")


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How samples become vectors."""

    modalities: tuple[str, ...]
    """What the encoder sees, of what the data offers."""
    patch_px: int
    """Patch side; divides the samples' side."""
    method: str = DEFAULT_METHOD
    """Formula of the `dataset` normalisation (2.1)."""
    centre_token: bool = False
    """Classification: the vector of the middle patch in place of the mean or maximum over all."""
    precision: str = "float32"
    """`float32`, or `bfloat16` for autocast as in the reference."""
    batch: int | None = None
    """Samples per batch; None: as many as suit the device. Changes a vector by rounding only."""
    max_samples: int | None = None
    """Samples per split, evenly spread over the file order; None: all."""
    partition: str | None = None
    """Label fraction that the benchmark publishes; thins `train` alone."""
    reference_pooling: bool = False
    """True counts a modality without data as a zero map in spatial pooling, as the reference does (section 3)."""


@dataclass(frozen=True, kw_only=True)
class TaskProgress:
    """How far a run is."""

    task: str
    """Column of the reports' table, for example `m-eurosat S2`."""
    step: str
    """What is being done, for people."""
    done: int
    total: int


class Extractor:
    """Vectors of one task's splits by one model."""

    def __init__(
        self, model: OlmoEarthModel, task: Task, reader: Reader, how: Extraction, cache: Path | None = None
    ) -> None:
        """Check what can be checked before anything is encoded.

        Args:
            model: the encoder.
            task: the reader's task.
            reader: the data.
            how: settings.
            cache: folder for features; None keeps them in memory. Features are found again by task, settings, model
                and the first samples: delete the folder after changing files of the data set.

        Raises:
            InputError: the model and the data do not fit, or settings that the task cannot have.
        """
        _check(model, task, how)
        self._model, self._task, self._reader, self._how, self._cache = model, task, reader, how, cache
        self._column = column_name(task.name, how.modalities)
        self._spatial = task.kind == "segmentation"
        self._published = {name: reader.statistics(name) for name in how.modalities}
        self._measured: dict[str, BandTable] = {}
        self._first: dict[str, TaskSample] = {}
        self._listed: dict[str, int] = {}
        self.encoded, self.seconds = 0, 0.0

    def features(self, split: str, normalisation: str) -> Generator[TaskProgress, None, Features]:
        """Vectors of one split under one normalisation, from the cache where they are there.

        Args:
            split: `train`, `val` or `test`.
            normalisation: `pre_trained` or `dataset`.

        Raises:
            InputError: a sample that cannot be encoded; names it.
        """
        key = {} if self._cache is None else self._key(split, normalisation)
        folder = None if self._cache is None else cache_folder(self._cache, key)
        cached = None if folder is None else load_features(folder)
        if cached is not None:
            return cached
        tables = {}
        if normalisation == "dataset":
            tables = yield from self._tables()
        started, total, ids = time.perf_counter(), self._wanted(split), list[str]()
        with FeatureWriter(folder, key) as writer:
            for batch in self._batches(split):
                arrays = self._encode(batch, tables) | {TARGETS: np.stack([sample.target for sample in batch])}
                at = slice(len(ids), len(ids) + len(batch))
                for name, values in arrays.items():
                    writer.array(name, (total, *values.shape[1:]), values.dtype)[at] = values
                ids += [sample.id for sample in batch]
                yield self._progress(f"encode {split}, {normalisation} statistics", len(ids), total)
            self.encoded += total
            self.seconds += time.perf_counter() - started
            return writer.finish(tuple(ids))

    def _read(self, split: str) -> Iterator[TaskSample]:
        return self._reader.read(split, self._how.partition if split == "train" else None)

    def _announced(self, split: str) -> int:
        """Samples that a split has; those of a label fraction are counted by reading them."""
        if split not in self._listed:
            thinned = split == "train" and self._how.partition is not None
            self._listed[split] = sum(1 for _ in self._read(split)) if thinned else self._reader.splits()[split]
        return self._listed[split]

    def _wanted(self, split: str) -> int:
        return min(self._announced(split), self._how.max_samples or self._announced(split))

    def _progress(self, step: str, done: int, total: int) -> TaskProgress:
        return TaskProgress(task=self._column, step=step, done=done, total=total)

    def _samples(self, split: str) -> Iterator[TaskSample]:
        """The chosen samples of a split in file order, each checked.

        Raises:
            InputError: another number of samples than the reader announced.
        """
        announced, wanted = self._announced(split), self._wanted(split)
        chosen = read = 0
        for sample in self._read(split):
            read += 1
            if read > announced:
                break
            if read * wanted // announced > chosen:
                chosen += 1
                yield self._checked(split, sample)
        if read != announced:
            raise InputError(
                f"{self._task.name} {split}: {read} samples were read where {announced} are listed. "
                "Fetch the data set again."
            )

    def _checked(self, split: str, sample: TaskSample) -> TaskSample:
        where = f"{self._task.name} {split}, sample {sample.id}"
        patch, periods = self._how.patch_px, len(sample.timestamps)
        for name in self._how.modalities:
            if name not in sample.inputs:
                raise InputError(f"{where}: these files hold no {name}, only {', '.join(sample.inputs)}.")
            h, w, t, _ = sample.inputs[name].shape
            if h % patch or w % patch:
                raise InputError(f"{where}: {h} x {w} px is not divisible by patch size {patch}. Choose another.")
            if t != periods:
                raise ValueError(f"{where}: {t} periods of {name} but {periods} timestamps")
        if not any(present_periods(sample, name).any() for name in self._how.modalities):
            raise InputError(f"{where}: no period of {', '.join(self._how.modalities)} has data. Leave it out.")
        return sample

    def _batches(self, split: str) -> Iterator[list[TaskSample]]:
        batch: list[TaskSample] = []
        size = self._how.batch or 0
        for sample in self._samples(split):
            if not size:
                budget = MICRO_BATCH_TOKENS["cuda" if self._model.device.type == "cuda" else "cpu"]
                size = max(1, budget // self._tokens(sample))
            batch.append(sample)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _tokens(self, sample: TaskSample) -> int:
        spec, area = self._model.spec, self._how.patch_px**2
        shapes = {name: sample.inputs[name].shape for name in self._how.modalities}
        return sum(h * w // area * t * len(spec.band_sets(name)) for name, (h, w, t, _) in shapes.items())

    @torch.inference_mode()
    def _encode(self, batch: Sequence[TaskSample], tables: Mapping[str, BandTable]) -> dict[str, Array]:
        """{pooling: float32 [B, D] or [B, Y, X, D]}."""
        periods = max(len(sample.timestamps) for sample in batch)
        stamps = np.zeros((len(batch), periods, 3), np.int64)
        for row, sample in zip(stamps, batch, strict=True):
            row[: len(sample.timestamps)] = sample.timestamps
        inputs, masks, seen = {}, {}, {}
        for name in self._how.modalities:
            values, present = self._stack(batch, name, periods, tables.get(name))
            sets = len(self._model.spec.band_sets(name))
            codes = torch.from_numpy(np.where(present, VISIBLE, MISSING))[:, None, None, :, None]
            inputs[name] = torch.from_numpy(values)
            masks[name] = codes.expand(*values.shape[:4], sets)  # B H W T S
            seen[name] = torch.from_numpy(present)[:, None, None, :, None]  # B 1 1 T 1
        with self._autocast():
            tokens = self._model.encode(inputs, torch.from_numpy(stamps), masks, self._how.patch_px)
        floats = {name: values.float() for name, values in tokens.items()}  # B Y X T S D
        visible = {name: seen[name].to(values.device).expand(values.shape[:-1]) for name, values in floats.items()}
        return {how: self._pool(floats, visible, how).cpu().numpy() for how in POOLINGS}

    def _pool(self, tokens: dict[str, Tensor], visible: dict[str, Tensor], how: str) -> Tensor:
        if not (self._spatial or self._how.centre_token):
            return pool_instance(tokens, visible, how)
        cells = pool_map(tokens, visible, how, reference=self._how.reference_pooling)  # B Y X D
        return cells if self._spatial else centre_patch(cells)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._how.precision == "float32":
            return nullcontext()
        return torch.autocast(self._model.device.type, dtype=torch.bfloat16)

    def _stack(
        self, batch: Sequence[TaskSample], name: str, periods: int, table: BandTable | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Normalised values [B, H, W, T, C], zeros where a period is missing, and which periods are there [B, T]."""
        h, w, _, bands = batch[0].inputs[name].shape
        values = np.zeros((len(batch), h, w, periods, bands), np.float32)
        present = np.zeros((len(batch), periods), np.bool_)
        for i, sample in enumerate(batch):
            present[i, : len(sample.timestamps)] = here = present_periods(sample, name)
            scaled = self._scale(name, sample.inputs[name][:, :, here], table)
            if scaled.shape[:2] != (h, w) or not np.isfinite(scaled).all():
                raise InputError(
                    f"{self._task.name}, sample {sample.id}, {name}: {scaled.shape[0]} x {scaled.shape[1]} px where "
                    f"{h} x {w} are expected, or values that are not finite. Fetch the data set again."
                )
            values[i][:, :, present[i]] = scaled
        return values, present

    def _scale(self, name: str, values: Array, table: BandTable | None) -> Array:
        """Physical values [..., C] to model values; copied bands take their source's value again (2.2)."""
        published = self._published[name]
        copied = published.copied if published else {}
        if table is not None:
            limits = {"minimum": table.minimum, "maximum": table.maximum}
            method, mean, std = self._how.method, table.mean, table.std
            return normalize_by_dataset(values, method, mean=mean, std=std, copied=copied, **limits)
        out = normalize(name, values, release=self._model.spec.release)
        for band, source in copied.items():
            out[..., band] = out[..., source]
        return out

    def _tables(self) -> Generator[TaskProgress, None, dict[str, BandTable]]:
        """The benchmark's statistics; measured over the training samples where it publishes none."""
        todo = [name for name, table in self._published.items() if table is None and name not in self._measured]
        meters = {name: BandMeter(name) for name in todo}
        for done, sample in enumerate(self._samples("train") if todo else (), start=1):
            for meter in meters.values():
                meter.add(sample)
            if done % 100 == 0:
                yield self._progress("measure band statistics of train", done, self._wanted("train"))
        self._measured |= {name: meter.table() for name, meter in meters.items()}
        return {name: table or self._measured[name] for name, table in self._published.items()}

    def _key(self, split: str, normalisation: str) -> dict[str, Any]:
        """Everything that a split's vectors depend on."""
        how = asdict(self._how)
        if not self._how.reference_pooling:  # which looks at the batch to tell which modalities there are
            del how["batch"]
        measured = normalisation == "dataset" and any(table is None for table in self._published.values())
        if normalisation != "dataset":
            del how["method"]
        if split != "train" and not measured:
            del how["partition"]
        tables = {name: table and _listed(table) for name, table in self._published.items()}
        return how | {
            "task": self._task.name,
            "kind": self._task.kind,
            "split": split,
            "normalisation": normalisation,
            "tables": tables if normalisation == "dataset" else None,
            "copied": {name: sorted(table.copied.items()) for name, table in self._published.items() if table},
            "samples": [
                self._reader.splits()[split],
                self._fingerprint(split),
                measured and self._fingerprint("train"),
            ],
            "weights_sha256": self._model.weights_sha256,
            "reference_quirks": self._model.reference_quirks,
            "device": self._model.device.type,
            "software": __version__,
        }

    def _fingerprint(self, split: str) -> str:
        """SHA-256 of a split's first sample."""
        sample = self.first(split)
        digest = hashlib.sha256(sample.id.encode())
        for values in (sample.timestamps, sample.target, *(sample.inputs[m] for m in self._how.modalities)):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def first(self, split: str) -> TaskSample:
        """A split's first sample."""
        if split not in self._first:
            self._first[split] = self._checked(split, next(self._read(split)))
        return self._first[split]


def _listed(table: BandTable) -> dict[str, list[float] | None]:
    values = {"mean": table.mean, "std": table.std, "minimum": table.minimum, "maximum": table.maximum}
    return {name: None if array is None else array.tolist() for name, array in values.items()}


def _check(model: OlmoEarthModel, task: Task, how: Extraction) -> None:
    config = model.spec.encoder
    for name in how.modalities:
        if name not in task.modalities:
            raise InputError(f"{task.name} has no {name}; it has {', '.join(task.modalities)}.")
        if name not in config.input_modalities:
            raise InputError(f"{model.name} does not read {name}; it reads {', '.join(config.input_modalities)}.")
    if not 1 <= how.patch_px <= config.base_patch_px:
        raise InputError(f"patch size {how.patch_px}: {model.name} takes 1 to {config.base_patch_px} px.")
    if task.side_px % how.patch_px:
        raise InputError(
            f"{task.name}: samples of {task.side_px} px are not divisible by patch size {how.patch_px}. "
            f"Choose a divisor of {task.side_px}."
        )
    if how.centre_token and task.kind == "segmentation":
        raise InputError(f"{task.name} is a segmentation task: every patch is used, the centre token alone is not.")
    if how.method not in METHODS:
        raise InputError(f"normalisation method {how.method!r}: choose from {', '.join(METHODS)}.")
    if how.precision not in {"float32", "bfloat16"}:
        raise InputError(f"precision {how.precision!r}: float32 or bfloat16.")
