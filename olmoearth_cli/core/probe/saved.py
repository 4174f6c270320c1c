"""A fitted probe as one file: tensors and what they mean, in the safetensors format. No code is ever read from it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from olmoearth_cli.core.probe.calibration import apply_temperature
from olmoearth_cli.errors import InputError, ModelError, OlmoEarthError, OutputError

if TYPE_CHECKING:
    from typing import Self

Array = npt.NDArray[Any]
FORMAT = 1
"""Raised when the meaning of a stored field changes."""
_HEADER = "olmoearth_probe"
"""Key of the file's metadata under which the description lies, as JSON."""
_KINDS = ("classification", "multilabel", "segmentation", "regression")


class Probe(Protocol):
    """What a saved probe needs of the probe inside: `Knn` and `LinearProbe` have it."""

    @property
    def kind(self) -> str:
        """One of `classification`, `multilabel`, `segmentation`, `regression`."""

    @property
    def classes(self) -> int:
        """Number of classes C; 1 for regression."""

    @property
    def dimensions(self) -> int:
        """Length D of a vector."""

    def scores(self, queries: Array) -> npt.NDArray[np.float32]:
        """[N, C], [N, C, P, P] or [N] for vectors [N, D]."""

    def predict(self, scores: Array) -> Array:
        """Decisions by scores."""

    def state(self) -> dict[str, Tensor]:
        """Plain tensors for `from_state`."""

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, kind: str, classes: int) -> Self:
        """The probe that `state` described."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedProbe:
    """A probe with what must be known to use it on a map."""

    probe: Probe
    method: str
    """`knn` or `linear`."""
    class_names: tuple[str, ...]
    """[C] names in the order of the class ids; empty for regression."""
    field: str
    """Field of the labels that the probe learned."""
    temperature: float
    """Of the calibration; 1.0 where the scores are used as they are."""
    model_id: str
    """Published id of the model whose vectors the probe knows."""
    model_name: str
    weights_sha256: str
    demo: bool
    """True where the model's weights were random."""
    patch_px: int
    """Side of the map cells, in 10 m pixels, that the probe was fitted on."""
    labels: int
    """Labelled vectors that the probe was fitted on."""
    software: Mapping[str, str]
    """Program or library -> version."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Whatever else is worth keeping, as plain JSON: metrics, settings."""

    @property
    def kind(self) -> str:
        """One of `classification`, `multilabel`, `segmentation`, `regression`."""
        return self.probe.kind

    @property
    def dimensions(self) -> int:
        """Length D of a vector."""
        return self.probe.dimensions

    def calibrated(self, scores: Array) -> npt.NDArray[np.float32]:
        """The probe's scores as calibrated probabilities; values (regression) as they are."""
        return apply_temperature(scores, self.temperature, self.kind)

    def probabilities(self, vectors: Array) -> npt.NDArray[np.float32]:
        """Calibrated probabilities for vectors [N, D].

        Returns:
            float32 [N, C]; [N, C, P, P] for segmentation; the values [N] for regression.
        """
        return self.calibrated(self.probe.scores(vectors))


def save_probe(path: Path, saved: SavedProbe) -> None:
    """Write a probe in one step: the file is there whole, or as it was before.

    Raises:
        ValueError: a kind of target that no map has.
        OutputError: the system refused.
    """
    if saved.kind not in _KINDS:
        raise ValueError(f"a {saved.kind} probe cannot be used on a map, and is not saved")
    header = {
        "format": FORMAT,
        "method": saved.method,
        "kind": saved.kind,
        "classes": saved.probe.classes,
        "class_names": list(saved.class_names),
        "field": saved.field,
        "temperature": saved.temperature,
        "model": {"id": saved.model_id, "name": saved.model_name, "sha256": saved.weights_sha256, "demo": saved.demo},
        "dimensions": saved.dimensions,
        "patch_px": saved.patch_px,
        "labels": saved.labels,
        "software": dict(saved.software),
        "facts": dict(saved.facts),
    }
    text = json.dumps(header, ensure_ascii=False, sort_keys=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in saved.probe.state().items()}
    write_whole(path, save(tensors, metadata={_HEADER: text}))


def load_probe(path: str | os.PathLike[str]) -> SavedProbe:
    """Read what `save_probe` wrote.

    Raises:
        InputError: no such file.
        ModelError: not a probe, damaged, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file. Give the file that `olmoearth probe --save` wrote.")
    header, state = _read(path)
    again = "Fit the probe again, or fetch the file again."
    try:
        saved = _saved(header, state)
        _try(saved)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{path}: the probe in it is damaged ({reason}). {again}") from None
    return saved


def is_probe(path: Path) -> bool:
    """True for a file that `save_probe` made and `load_probe` reads."""
    try:
        load_probe(path)
    except OlmoEarthError:
        return False
    return True


def check_fits(saved: SavedProbe, *, model_id: str, weights_sha256: str, dimensions: int, patch_px: int) -> None:
    """Refuse a map whose vectors the probe does not know.

    Args:
        saved: the probe.
        model_id: published id of the map's model.
        weights_sha256: of that model.
        dimensions: length D of the map's vectors.
        patch_px: side of the map's cells; must agree where the probe tells the pixels of a cell apart.

    Raises:
        InputError: names both models, or both cell sizes.
    """
    ours = (saved.weights_sha256, saved.dimensions)
    if ours != (weights_sha256, dimensions):
        raise InputError(
            f"the probe was fitted on vectors of {_model(saved.model_id, *ours)}, but the map holds vectors of "
            f"{_model(model_id, weights_sha256, dimensions)}. Fit the probe on a map of the same model, "
            "or make the map with the probe's model."
        )
    if saved.kind == "segmentation" and saved.patch_px != patch_px:
        raise InputError(
            f"the probe tells the pixels of {saved.patch_px} px cells apart, but the map has {patch_px} px cells. "
            "Make the map with the same --patch-size as the one that the probe was fitted on."
        )


def _model(model_id: str, weights_sha256: str, dimensions: int) -> str:
    return f"{model_id} (weights {weights_sha256[:12]}, {dimensions} dimensions)"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a probe file."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}). Fit the probe again, or fetch the file again."
        ) from None
    if text is None:
        raise ModelError(f"{path}: holds tensors but no probe. Give the file that `olmoearth probe --save` wrote.")
    try:
        header = json.loads(text)
        version = int(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: its description cannot be read ({error!r}). Fit the probe again.") from None
    if version > FORMAT:
        raise ModelError(
            f"{path}: written in format {version}, this program reads up to {FORMAT}. Install a newer olmoearth."
        )
    return header, state


def _saved(header: Mapping[str, Any], state: Mapping[str, Tensor]) -> SavedProbe:
    kind, classes, names = header["kind"], int(header["classes"]), tuple(map(str, header["class_names"]))
    if kind not in _KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(_KINDS)}")
    if len(names) != (0 if kind == "regression" else classes):
        raise ValueError(f"{len(names)} names for {classes} classes")
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"values that are not finite in {', '.join(broken)}")
    model = header["model"]
    return SavedProbe(
        probe=_probe_type(header["method"]).from_state(state, kind=kind, classes=classes),
        method=header["method"],
        class_names=names,
        field=header["field"],
        temperature=float(header["temperature"]),
        model_id=model["id"],
        model_name=model["name"],
        weights_sha256=model["sha256"],
        demo=bool(model["demo"]),
        patch_px=int(header["patch_px"]),
        labels=int(header["labels"]),
        software=header["software"],
        facts=header["facts"],
    )


def _probe_type(method: str) -> type[Probe]:
    if method == "knn":
        from olmoearth_cli.core.probe.knn import Knn

        return Knn
    if method == "linear":
        from olmoearth_cli.core.probe.linear import LinearProbe

        return LinearProbe
    raise ValueError(f"method {method!r} is neither knn nor linear")


def _try(saved: SavedProbe) -> None:
    """One vector through the probe: tensors that do not fit each other must fail here, not on a worker."""
    scores = saved.probabilities(np.zeros((1, saved.dimensions), dtype=np.float32))
    if saved.kind != "regression" and scores.shape[1] != len(saved.class_names):
        raise ValueError(f"scores for {scores.shape[1]} classes, but {len(saved.class_names)} names")
    if saved.kind == "segmentation" and scores.shape[2:] != (saved.patch_px, saved.patch_px):
        raise ValueError(f"scores for {scores.shape[2]} px cells, but it was fitted on {saved.patch_px} px cells")


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: the file is there whole, or as it was before.

    Raises:
        OutputError: the system refused.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}). Free space, or choose another file."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
