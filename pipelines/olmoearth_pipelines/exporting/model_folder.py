"""A model in the published layout: `config.json` and weights that `load_model` and the reference load alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from olmoearth_cli import __version__
from olmoearth_cli.core.architecture import encoder_section
from olmoearth_cli.core.checkpoint import read_tensors, weights_bytes
from olmoearth_cli.core.pretrain_weights import model_section
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import output_error, write_json
from olmoearth_pipelines.exporting.model_source import ENCODER, ModelSource, check_pretraining_parts

WEIGHTS = {"pth": "weights.pth", "safetensors": "model.safetensors"}
"""Kind of weights -> name of the file. The reference reads `weights.pth` only."""
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def write_published(
    source: ModelSource, folder: Path, *, encoder_only: bool, weights: str, dtype: str
) -> tuple[Path, int]:
    """Write configuration and weights.

    Args:
        source: the model.
        folder: exists.
        encoder_only: True leaves decoder and target out; the reference then has nothing to load them from.
        weights: a key of `WEIGHTS`.
        dtype: a key of `DTYPES`: what floating values are stored as.

    Returns:
        The weights file, read back and found equal, and the number of parameters in it.

    Raises:
        InputError: a value that the numbers of the file cannot hold.
        ModelError: decoder or target are damaged, or of another architecture.
        OutputError: the disk refused.
    """
    if not encoder_only:
        check_pretraining_parts(source)
    kept = {
        key: value.to(DTYPES[dtype]).contiguous() if value.is_floating_point() else value.contiguous()
        for key, value in source.tensors.items()
        if key.startswith(ENCODER) or not encoder_only
    }
    too_large = [key for key, value in kept.items() if not torch.isfinite(value).all()]
    if too_large:
        raise InputError(f"--dtype {dtype}: too small for the values of {too_large[0]}. Export float32.")
    path = folder / WEIGHTS[weights]
    _save(path, kept)
    write_json(folder / "config.json", published_config(source, encoder_only=encoder_only))
    return path, sum(value.numel() for value in kept.values())


def published_config(source: ModelSource, *, encoder_only: bool) -> dict[str, Any]:
    """The configuration that the weights belong to."""
    spec, given = source.model.spec.encoder, source.config["model"]
    section: dict[str, Any] = {"encoder_config": _named(given["encoder_config"], encoder_section(spec))}
    if not encoder_only:
        ours = model_section(spec, source.decoder_depth)
        section = {
            **ours,
            **given,
            **section,
            "decoder_config": _named(given.get("decoder_config") or ours["decoder_config"], ours["decoder_config"]),
            "projection_only_target": not source.whole_target,
        }
    decode_only = [name for name in spec.modalities if name not in spec.input_modalities]
    return {
        "model": section,
        "train_module": {"masking_config": {"strategy_config": {"only_decode_modalities": decode_only}}},
        "olmoearth": {
            **source.about,
            "name": source.name,
            "demo": source.model.demo,
            "licence": source.licence,
            "exported": {"olmoearth": __version__, "source_weights_sha256": source.model.weights_sha256},
        },
    }


def _named(given: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """A section as it was, with the names of classes that the reference builds it by."""
    named = ("_CLASS_", "tokenization_config")
    return {**given, **{key: ours[key] for key in named if key in ours}}


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write and read back: a disk that loses bytes is found before anybody relies on them."""
    try:
        path.write_bytes(weights_bytes(tensors, path.suffix))
    except OSError as error:
        raise output_error(path.parent.parent, error, flag="--to") from error
    found = read_tensors(path)
    if found.keys() != tensors.keys() or not all(torch.equal(found[key], tensors[key]) for key in tensors):
        raise OutputError(f"{path.parent.parent}: the weights read back as something else. Check the disk.")
