"""What stands beside an exported model: a card for people, a STAC item for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.maps.map_spec import utc_text
from olmoearth_cli.maps.mlm_item import ModelFacts, mlm_item
from olmoearth_pipelines.exporting.model_graph import GraphShape
from olmoearth_pipelines.exporting.model_source import ModelSource

UNITS = {
    "sentinel2_l2a": "surface reflectance x 10000, Level-2A, without the offset of 2022",
    "sentinel1": "decibels, radiometrically terrain corrected",
    "landsat": "digital numbers of Collection 2 Level-1",
}
KINDS = {
    "weights.pth": ("application/octet-stream; application=pytorch", "torch.save", "PyTorch"),
    "model.safetensors": ("application/octet-stream; application=safetensors", "safetensors", "PyTorch"),
    ".onnx": ("application/octet-stream; framework=onnx; profile=onnx", "onnx", "ONNX"),
    ".pt2": ("application/octet-stream; application=pytorch", "torch.export.save", "PyTorch"),
}
"""Name or ending of a weights file -> media type, artifact type, what runs it."""
NO_MEANING = "Demo weights: nothing was learned, or too little to be of use. They show how things work."


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A weights file that was made."""

    file: str
    """Its name."""
    sha256: str
    parameters: int
    graph: GraphShape | None
    """What is fixed in an ONNX or torch.export file; None for the published layout."""
    difference: float | None
    """From the plain encoder, where it was measured."""
    encoder_only: bool


def stac_item(source: ModelSource, made: Exported) -> dict[str, Any]:
    """The model as an Item of the Machine Learning Model extension."""
    model = source.model
    media, artifact, framework = KINDS.get(made.file) or KINDS[Path(made.file).suffix.lower()]
    graph = made.graph
    return mlm_item(
        ModelFacts(
            id=source.name,
            description=f"{_what(source)}{f' {NO_MEANING}' if model.demo else ''} SHA-256: {made.sha256}.",
            demo=model.demo,
            published=bool(model.spec.repo) and not model.demo,
            modalities=graph.modalities if graph else model.spec.encoder.input_modalities,
            dimensions=model.spec.embedding_size,
            framework=framework,
            framework_version=version(framework.lower()) if framework == "ONNX" else torch.__version__,
            limits=source.own_limits,
            time={"datetime": utc_text(datetime.now(UTC))},
            weights={"href": f"./{made.file}", "title": "Weights", "type": media, "mlm:artifact_type": artifact},
            patch_px=graph.patch_px if graph else None,
            shape=(graph.window_px, graph.periods) if graph else None,
            parameters=made.parameters,
        )
    )


def card(source: ModelSource, made: Exported) -> str:
    """The card as Markdown."""
    model = source.model
    lines = [f"# {source.name}", ""]
    if model.demo:
        lines += [f"**{NO_MEANING}**", ""]
    statement = source.about.get("statement")
    lines += [_what(source), *([f"\n{statement}"] if isinstance(statement, str) else []), ""]
    lines += ["## Use", "", *_usage(made), "", "## Inputs", "", *_inputs(source, made), ""]
    lines += ["## Facts", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in _facts(source, made))]
    lines += ["", "## Licence", "", source.licence, ""]
    return "\n".join(lines)


def _what(source: ModelSource) -> str:
    spec = source.model.spec
    text = (
        f"Encoder of the OlmoEarth {spec.release} architecture ({spec.size}): {spec.depth} blocks, "
        f"{spec.embedding_size} dimensions, {spec.encoder.position_encoding.value} positions."
    )
    if source.tuned is None:
        return text
    dates = "" if source.tuned.task.real_dates else " It was taught with made-up dates, not those of the images."
    return f"{text} Fine-tuned for `{source.tuned.task.field}`; the head is not here.{dates}"


def _usage(made: Exported) -> list[str]:
    graph = made.graph
    if graph is None:
        lines = [
            "```python",
            "from olmoearth_cli.core import load_model",
            "",
            'model = load_model("this folder")',
            "```",
        ]
        if made.encoder_only:
            lines += ["", "Only the encoder is here: pretraining cannot go on from it, and the reference package can"]
            lines += ["fill no more than its `encoder` with it."]
        return lines
    named = ", ".join(f'"{name}": {name}' for name in graph.inputs)
    if made.file.lower().endswith(".onnx"):
        return [
            "```python",
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{made.file}")',
            f"(embeddings,) = session.run(None, {{{named}}})  # float32 [B, {graph.cells}, {graph.cells}, D]",
            "```",
        ]
    images = ", ".join(f'"{m}": {m}' for m in graph.modalities)
    seen = ", {" + ", ".join(f'"{m}": {m}_seen' for m in graph.modalities) + "}" if graph.masks else ""
    return [
        "```python",
        "import torch",
        "",
        f'model = torch.export.load("{made.file}").module()',
        f"embeddings = model(timestamps, {{{images}}}{seen})  # float32 [B, {graph.cells}, {graph.cells}, D]",
        "```",
    ]


def _inputs(source: ModelSource, made: Exported) -> list[str]:
    graph = made.graph
    size, periods = (f"{graph.window_px}, {graph.window_px}", str(graph.periods)) if graph else ("H, W", "T")
    lines = [
        f"- `timestamps` int64 [B, {periods}, 3]: day 1-31, **month 0-11**, year of each period's first day.",
    ]
    for m in graph.modalities if graph else source.model.spec.encoder.input_modalities:
        bands = MODALITIES[m].bands
        lines.append(
            f"- `{m}` float32 [B, {size}, {periods}, {len(bands)}], 10 m pixels in UTM, {UNITS.get(m, '')}; "
            f"bands {' '.join(bands)}. Normalised by (x - zero) / (one - zero) per band:"
        )
        for word, values in zip(("zero", "one"), source.limits(m), strict=True):
            lines.append(f"  - {word}: {', '.join(f'{v:.6g}' for v in values)}")
    if graph and graph.masks:
        lines.append(
            f"- `<modality>_seen` bool [B, {graph.cells}, {graph.cells}, {periods}]: False where a patch has no data. "
            "Its pixels must be finite all the same."
        )
    elif graph:
        lines.append("- Every patch of every period counts as seen: this file has no masks.")
    return lines


def _facts(source: ModelSource, made: Exported) -> list[tuple[str, str]]:
    facts = [
        ("file", f"`{made.file}`"),
        ("SHA-256", made.sha256),
        ("parameters", f"{made.parameters:,}"),
        ("SHA-256 of the weights it was made from", source.model.weights_sha256),
    ]
    if made.difference is not None:
        facts.append(("largest difference from the plain encoder", f"{made.difference:.2g}"))
    for key, value in source.about.items():
        if key not in ("name", "demo", "statement", "licence", "exported"):
            plain = value if isinstance(value, str | int | float) else json.dumps(value)
            facts.append((key, str(plain).replace("|", "\\|").replace("\n", " ")))
    return facts
