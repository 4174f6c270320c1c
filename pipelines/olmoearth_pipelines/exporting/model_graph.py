"""An encoder as one file for other runtimes, ONNX or torch.export, checked against the plain encoder."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from olmoearth_cli.core.checks import MISSING, VISIBLE
from olmoearth_cli.core.graph import EncoderGraph
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.errors import InputError, RunError
from olmoearth_cli.maps.files import output_error
from olmoearth_pipelines.exporting.model_source import ModelSource

TOLERANCE = 1e-4
"""Largest difference of a value of a vector; the vectors are LayerNorm outputs of about 1."""
MUCH_MEMORY = 1 << 30
"""Bytes of attention per sample that are worth a word, and that a check does not hold more than once."""


@dataclass(frozen=True, kw_only=True)
class GraphShape:
    """What is fixed in the file; only the number of samples is free."""

    modalities: tuple[str, ...]
    window_px: int
    """Side H = W of the images."""
    periods: int
    """T."""
    patch_px: int
    masks: bool
    """True: the file has an input per modality that says where there is data."""

    @property
    def cells(self) -> int:
        """Side of the map of vectors."""
        return self.window_px // self.patch_px

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the file's inputs, in order."""
        seen = tuple(f"{m}_seen" for m in self.modalities) if self.masks else ()
        return ("timestamps", *self.modalities, *seen)

    def attention_bytes(self, model: OlmoEarthModel) -> int:
        """float32 scores between all pairs of one sample's tokens, which a runtime without fused attention holds."""
        tokens = self.cells**2 * self.periods * sum(len(model.spec.band_sets(m)) for m in self.modalities)
        return 4 * model.spec.encoder.num_heads * tokens**2


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A batch of inputs."""

    timestamps: Tensor
    """int64 [B, T, 3]."""
    images: dict[str, Tensor]
    """[B, H, W, T, C]."""
    seen: dict[str, Tensor] | None
    """bool [B, Y, X, T]."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As the graph takes them."""
        images = (self.timestamps, self.images)
        return images if self.seen is None else (*images, self.seen)

    @property
    def tensors(self) -> list[Tensor]:
        """In the order of `GraphShape.inputs`."""
        return [self.timestamps, *self.images.values(), *(self.seen or {}).values()]


def check_shape(model: OlmoEarthModel, shape: GraphShape) -> None:
    """Refuse a graph that the model was not made for.

    Raises:
        InputError: what does not fit.
    """
    config = model.spec.encoder
    foreign = [m for m in shape.modalities if m not in config.input_modalities]
    if foreign:
        raise InputError(
            f"--modalities {','.join(foreign)}: {model.name} was not trained to read that; it reads "
            f"{', '.join(config.input_modalities)}."
        )
    if not 1 <= shape.patch_px <= config.base_patch_px:
        raise InputError(f"--patch-size {shape.patch_px}: the model takes 1 to {config.base_patch_px} pixels.")
    if shape.window_px < shape.patch_px or shape.window_px % shape.patch_px:
        raise InputError(f"--window {shape.window_px}: give a multiple of --patch-size {shape.patch_px}.")
    if shape.periods < 1:
        raise InputError(f"--periods {shape.periods}: give at least 1.")


def write_onnx(source: ModelSource, shape: GraphShape, path: Path) -> float:
    """Write an ONNX file.

    Args:
        source: of the encoder; on the CPU, float32.
        shape: what is fixed.
        path: of the new file.

    Returns:
        The largest difference from the plain encoder, in onnxruntime.

    Raises:
        InputError: a package is not installed.
        OutputError: the disk refused.
        RunError: the file gives other vectors.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it and says so late
    except ImportError as error:
        raise InputError(
            f"ONNX needs packages that are not installed here ({error.name}): pip install 'olmoearth[onnx]'."
        ) from None
    model, about, sample = source.model, _about(source, shape), _sample(shape, samples=2, seed=0)
    with _quiet():
        program = torch.onnx.export(
            _exported(model, shape, sample),
            sample.arguments,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=list(shape.inputs),
            output_names=["embeddings"],
            dynamic_shapes=_free_batch(sample),
        )
        assert program is not None
        program.model.metadata_props["olmoearth"] = json.dumps(about)
        try:
            program.save(path)
        except OSError as error:
            raise output_error(path.parent.parent / path.name, error, flag="--to") from error
        except ValueError as error:
            raise InputError(f"{model.name}: an ONNX file cannot hold it ({error}). Export .pt2.") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(batch: Sample) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(shape.inputs, batch.tensors, strict=True)}
        return torch.from_numpy(np.asarray(session.run(None, feed)[0]))

    return _largest_difference(model, shape, run)


def write_pt2(source: ModelSource, shape: GraphShape, path: Path) -> float:
    """Write what `torch.export.load` reads; returns and raises as `write_onnx`."""
    model, about, sample = source.model, _about(source, shape), _sample(shape, samples=2, seed=0)
    with _quiet():
        program = _exported(model, shape, sample)
        buffer = io.BytesIO()  # torch's own writer takes the process with it when a disk is full
        torch.export.save(program, buffer, extra_files={"olmoearth.json": json.dumps(about)})
        try:
            path.write_bytes(buffer.getbuffer())
            loaded = torch.export.load(path).module()
        except OSError as error:
            raise output_error(path.parent.parent / path.name, error, flag="--to") from error

    def run(batch: Sample) -> Tensor:
        with torch.no_grad():
            return loaded(*batch.arguments)  # type: ignore[no-any-return]

    return _largest_difference(model, shape, run)


def _exported(model: OlmoEarthModel, shape: GraphShape, sample: Sample) -> torch.export.ExportedProgram:
    graph = EncoderGraph(model.encoder, window_px=shape.window_px, patch_px=shape.patch_px).eval()
    with torch.no_grad():
        return torch.export.export(graph, sample.arguments, dynamic_shapes=_free_batch(sample))


def _free_batch(sample: Sample) -> tuple[Any, ...]:
    """Every input's first axis, and no other, may have any length."""
    first = {0: torch.export.Dim("batch")}
    shapes = (first, dict.fromkeys(sample.images, first))
    return shapes if sample.seen is None else (*shapes, dict.fromkeys(sample.seen, first))


def _sample(shape: GraphShape, *, samples: int, seed: int) -> Sample:
    """Random inputs; with masks, gaps of all kinds: single patches, a modality, everything."""
    generator = torch.Generator().manual_seed(seed)
    size, cells = (samples, shape.window_px, shape.window_px, shape.periods), (samples, shape.cells, shape.cells)
    images = {m: torch.randn(*size, len(MODALITIES[m].bands), generator=generator) for m in shape.modalities}
    parts = [(1, 29), (0, 12), (2016, 2025)]  # day, month, year
    stamps = [torch.randint(low, high, (samples, shape.periods), generator=generator) for low, high in parts]
    seen = None
    if shape.masks:
        seen = {m: torch.rand(*cells, shape.periods, generator=generator) < 0.7 for m in shape.modalities}
        if samples > 1:
            seen[shape.modalities[0]][-1] = False
    return Sample(timestamps=torch.stack(stamps, dim=-1), images=images, seen=seen)


def _largest_difference(model: OlmoEarthModel, shape: GraphShape, run: Callable[[Sample], Tensor]) -> float:
    """Between a file's vectors and the plain encoder's; it was traced with two samples, and is run with others.

    Raises:
        RunError: it is above the tolerance.
    """
    largest = 0.0
    for samples in (1, 3) if shape.attention_bytes(model) <= MUCH_MEMORY else (1,):
        batch = _sample(shape, samples=samples, seed=samples)
        found, wanted = run(batch), _plain(model, shape, batch)
        difference = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
        largest = max(largest, difference if np.isfinite(difference) else float("inf"))
    if largest > TOLERANCE:
        raise RunError(
            f"the exported encoder's vectors differ by {largest:.2g} from the encoder's own (allowed: {TOLERANCE:g}); "
            "nothing was written. Other versions of torch or onnxruntime may translate it right."
        )
    return largest


def _plain(model: OlmoEarthModel, shape: GraphShape, batch: Sample) -> Tensor:
    masks = None
    if batch.seen is not None:
        p = shape.patch_px
        masks = {}
        for m, seen in batch.seen.items():
            codes = torch.where(seen, VISIBLE, MISSING).repeat_interleave(p, 1).repeat_interleave(p, 2)
            masks[m] = codes[..., None].expand(*codes.shape, len(model.spec.band_sets(m)))
    with torch.no_grad():
        tokens = model.encode(batch.images, batch.timestamps, masks, patch_size=shape.patch_px)
        return model.pool(tokens, masks)


def _about(source: ModelSource, shape: GraphShape) -> dict[str, Any]:
    """What a user of the file must know: the order of bands and how pixels are normalised."""
    inputs = {}
    for m in shape.modalities:
        zero, one = source.limits(m)
        inputs[m] = {"bands": list(MODALITIES[m].bands), "zero": list(zero), "one": list(one)}
    return {
        "name": source.name,
        "demo": source.model.demo,
        "weights_sha256": source.model.weights_sha256,
        "window_px": shape.window_px,
        "patch_px": shape.patch_px,
        "periods": shape.periods,
        "inputs": inputs,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters talk to both streams whatever they are asked; results alone belong on stdout."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
