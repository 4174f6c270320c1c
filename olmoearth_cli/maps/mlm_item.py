"""A model as a STAC Item of the Machine Learning Model extension (spec/outputs.md 1.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.normalize import band_range
from olmoearth_cli.maps.map_spec import MapSpec, utc_text
from olmoearth_cli.maps.stac_items import JSON_TYPE, STAC_VERSION

MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
Limits = tuple[Sequence[float], Sequence[float]]
PRETRAINING_SET = "allenai/olmoearth_pretrain_dataset"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the item says of a model."""

    id: str
    """Published id, or a name."""
    description: str
    """In a few sentences."""
    demo: bool
    """True for weights that learned nothing."""
    published: bool
    """True for the weights that a repository of that id holds."""
    modalities: tuple[str, ...]
    """That it reads."""
    dimensions: int
    """Embedding size D."""
    framework_version: str
    """Of the software that runs or wrote it; may be empty."""
    time: Mapping[str, str | None]
    """`datetime`, or it with `start_datetime` and `end_datetime`."""
    weights: Mapping[str, Any]
    """The asset with the weights, without bands."""
    framework: str = "PyTorch"
    """What runs the file, by the extension's name."""
    limits: Mapping[str, Limits] = field(default_factory=dict)
    """{modality: [C] values that become 0 and [C] that become 1}, where they are not those of pretraining."""
    patch_px: int | None = None
    """Patch side, where it is fixed."""
    shape: tuple[int, int] | None = None
    """Window side in pixels and periods, where they are fixed."""
    parameters: int | None = None
    """Number of parameters."""
    links: tuple[Mapping[str, str], ...] = ()
    """To other documents."""


def mlm_item(facts: ModelFacts) -> dict[str, Any]:
    """The Item, valid for STAC 1.1 and MLM v1.5.2."""
    # MLM looks for bands in the properties; STAC 1.1 allows them there only where an asset has them too.
    named = [{"name": band_id(m, band)} for m in facts.modalities for band in MODALITIES[m].bands]
    version = re.match(r"\d+\.\d+\.\d+", facts.framework_version)
    optional = {
        "mlm:framework_version": version.group() if version else None,
        "mlm:total_parameters": facts.parameters,
        "mlm:hyperparameters": None if facts.patch_px is None else {"patch_size": facts.patch_px},
    }
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [MLM],
        "id": re.sub(r"[^A-Za-z0-9._-]+", "-", facts.id).strip("-"),
        "geometry": None,
        "properties": {
            **facts.time,
            "description": facts.description,
            "mlm:name": mlm_name(facts.id),
            "mlm:architecture": "Vision Transformer",
            "mlm:tasks": ["similarity-search"],
            "mlm:framework": facts.framework,
            **{key: value for key, value in optional.items() if value is not None},
            "mlm:pretrained": not facts.demo,
            "mlm:pretrained_source": PRETRAINING_SET if facts.published else None,
            "mlm:input": [_input(modality, facts) for modality in facts.modalities],
            "mlm:output": [_output(facts.dimensions)],
            "bands": named,
        },
        "links": list(facts.links),
        "assets": {"weights": {**facts.weights, "roles": ["mlm:model"], "bands": named}},
    }


def model_item(spec: MapSpec) -> dict[str, Any]:
    """The Item of the encoder that made a map."""
    published = not spec.demo and spec.model_id.count("/") == 1
    demo = " Demo weights: random, without learned meaning." if spec.demo else ""
    return mlm_item(
        ModelFacts(
            id=spec.model_id,
            description=(
                f"OlmoEarth encoder {spec.model_id}, used as {spec.model_name}.{demo} "
                f"SHA-256 of the weights: {spec.weights_sha256}."
            ),
            demo=spec.demo,
            published=published,
            modalities=spec.modalities,
            dimensions=spec.dimensions,
            framework_version=spec.software.get("torch", ""),
            time={
                "datetime": None,
                "start_datetime": utc_text(spec.start),
                "end_datetime": utc_text(spec.end),
            },
            weights=_weights(spec, published=published),
            patch_px=spec.patch_px,
            links=({"rel": "related", "href": "./collection.json", "type": JSON_TYPE},),
        )
    )


def band_id(modality: str, band: str) -> str:
    """Band name that is unique over modalities: Sentinel-2 and Landsat share names."""
    return f"{modality}:{band}"


def mlm_name(model_id: str) -> str:
    """The extension wants letters, digits, dots, dashes, spaces and underscores, a letter first."""
    name = re.sub(r"[^A-Za-z0-9_. -]+", "-", model_id.rsplit("/", 1)[-1]).strip("-_. ")
    return name if re.match(r"[A-Za-z].+", name) else f"OlmoEarth-{name or 'model'}"


def _input(modality: str, facts: ModelFacts) -> dict[str, Any]:
    bands, known = MODALITIES[modality].bands, band_range(modality)
    zero, one = facts.limits.get(modality, (known.lo, known.hi))
    side, periods = facts.shape or (-1, -1)
    return {
        "name": modality,
        "description": "10 m pixels, one image per 30-day period; missing periods are left out",
        "bands": [band_id(modality, band) for band in bands],
        "input": {
            "shape": [-1, side, side, periods, len(bands)],
            "dim_order": ["batch", "height", "width", "time", "bands"],
            "data_type": "float32",
        },
        # `zero` (mean - 2 std in pretraining) becomes 0, `one` (mean + 2 std) becomes 1; nothing is clipped.
        "value_scaling": [
            {"type": "min-max", "minimum": float(low), "maximum": float(high)}
            for low, high in zip(zero, one, strict=True)
        ],
    }


def _output(dimensions: int) -> dict[str, Any]:
    return {
        "name": "embeddings",
        "description": "One vector per map cell",
        "tasks": ["similarity-search"],
        "result": {
            "shape": [-1, -1, -1, dimensions],
            "dim_order": ["batch", "height", "width", "embedding"],
            "data_type": "float32",
        },
    }


def _weights(spec: MapSpec, *, published: bool) -> dict[str, Any]:
    remote = f"https://huggingface.co/{spec.model_id}/resolve/main/weights.pth"
    return {
        "href": remote if published else spec.model_name,
        "title": "Published weights" if published else "Weights, on the machine that made the map",
        "type": "application/octet-stream; application=pytorch",
        "mlm:artifact_type": "torch.save",
    }
