"""The reference implementation as an oracle: built small, every parameter randomised, called as it wants.

`olmoearth-pretrain-minimal==0.1.5` derives the order of modalities from hash sets (spec/model.md G1), so the
hash seed is part of the comparison.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from olmoearth_cli.core.architecture import encoder_section
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.spec import find_spec

S2, S1, LANDSAT = "sentinel2_l2a", "sentinel1", "landsat"


def require_hash_seed() -> None:
    """Stop where the oracle might swap modalities."""
    if sys.flags.hash_randomization:  # the environment may have been changed since by a cluster's nanny
        raise RuntimeError("parity needs PYTHONHASHSEED=0 (spec/model.md G1): run `make test`, or set it.")


def build(name: str, seed: int = 7) -> Any:
    """The reference model of a released name, evaluation mode, every parameter randomised."""
    from olmoearth_pretrain_minimal import OlmoEarthPretrain_v1

    require_hash_seed()
    spec = find_spec(name)
    torch.manual_seed(seed)
    model = OlmoEarthPretrain_v1(model_size=spec.size, model_version=spec.release).model.eval()
    randomise(model, seed)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Move every parameter: codes, norms and tokens that start at 0 or 1 would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
        scale = 0.2 * spread if spread > 0.01 else 0.1
        parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def save_published(model: Any, name: str, folder: Path, extra: dict[str, Tensor] | None = None) -> Path:
    """Write the oracle's weights as a published folder, decoder and target encoder included."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**model.state_dict(), **(extra or {})}, folder / "weights.pth")
    config = {"run_name": "x", "model": {"encoder_config": encoder_section(find_spec(name).encoder)}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def encode(
    model: Any,
    inputs: dict[str, Tensor],
    timestamps: Tensor,
    masks: dict[str, Tensor] | None,
    patch_px: int,
    input_res: int = 10,
) -> dict[str, Tensor]:
    """The oracle's tokens {modality: [B, Y, X, T, S, D]}; its fast pass where there are no masks."""
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample

    spec_sets = sets_of(model)
    given = masks or {}
    fields: dict[str, Tensor] = {"timestamps": timestamps}
    for name, values in inputs.items():
        fields[name] = values
        fields[f"{name}_mask"] = given.get(name, torch.zeros(*values.shape[:-1], spec_sets[name]))
    with torch.no_grad():
        sample = MaskedOlmoEarthSample(**fields)
        result = model.encoder(sample, patch_size=patch_px, input_res=input_res, fast_pass=masks is None)
    tokens = result["tokens_and_masks"]
    return {name: getattr(tokens, name) for name in inputs}


def sets_of(model: Any) -> dict[str, int]:
    """Band sets per modality, from the oracle's own channel codes."""
    codes = model.encoder.composite_encodings.per_modality_channel_embeddings
    return {name: code.shape[0] for name, code in codes.items()}


def sample(
    modalities: tuple[str, ...], *, b: int, h: int, w: int, t: int, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Random normalised windows and different dates for every sample."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {m: torch.randn(b, h, w, t, len(MODALITIES[m].bands), generator=generator) for m in modalities}
    stamps = [[(1 + (5 * i + k) % 28, (seed + i + k) % 12, 2017 + k) for i in range(t)] for k in range(b)]
    return inputs, torch.tensor(stamps)


def random_masks(
    inputs: dict[str, Tensor], sets: dict[str, int], patch_px: int, *, seed: int, equal: bool
) -> dict[str, Tensor]:
    """Random codes per token, blown up to pixels. `equal`: every sample hides equally many tokens."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, values in inputs.items():
        b, h, w, t, _ = values.shape
        shape = (h // patch_px, w // patch_px, t, sets[name])
        n = torch.Size(shape).numel()
        rows = []
        for k in range(b):
            hidden = n // 2 if equal else n * (k + 1) // (b + 2)
            codes = torch.zeros(n, dtype=torch.long)
            codes[torch.randperm(n, generator=generator)[:hidden]] = torch.randint(1, 4, (hidden,), generator=generator)
            rows.append(codes.view(shape))
        token_mask = torch.stack(rows)
        masks[name] = token_mask.repeat_interleave(patch_px, 1).repeat_interleave(patch_px, 2)
    return masks


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Max abs over all tokens of all modalities."""
    if set(ours) != set(theirs):
        raise AssertionError(f"{sorted(ours)} against {sorted(theirs)}")
    return max(float((ours[m].double() - theirs[m].double()).abs().max()) for m in theirs)
