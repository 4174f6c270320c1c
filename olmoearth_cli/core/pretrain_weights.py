"""Published weights in and out of a pretraining model (spec/model.md sections 7 and 8).

A model's own state dict already carries the published keys, with a target of patch projections only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olmoearth_cli.core.architecture import EncoderConfig, encoder_section
from olmoearth_cli.core.checkpoint import read_tensors
from olmoearth_cli.core.pretrain_step import PretrainModel
from olmoearth_cli.errors import ModelError

_TARGET = "target_encoder."
_LEGACY = "composite_encodings.pos_embed"
_SHOWN = 3


def load_published(model: PretrainModel, path: Path) -> None:
    """Fill encoder, decoder and target from a published file; the rest of a whole target copy is left out.

    Raises:
        ModelError: the file is damaged, belongs to another architecture, or has no target: training on against
            another target would be another task.
    """
    state = {}
    for key, value in read_tensors(path).items():
        spare = key.startswith(_TARGET) and not key.startswith(_TARGET + "patch_embeddings.")
        if not spare and not key.endswith(_LEGACY):
            state[key] = value
    expected = model.state_dict()
    faults = [key for key in expected if key not in state or state[key].shape != expected[key].shape]
    faults += [key for key in state if key not in expected]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ModelError(
            f"{path}: not the encoder, decoder and target of this configuration; missing, unknown or of another "
            f"shape: {', '.join(faults[:_SHOWN])}{more}. Use the weights.pth published with the config.json."
        )
    model.load_state_dict(state)


def model_section(config: EncoderConfig, decoder_depth: int) -> dict[str, Any]:
    """The `model` section of a published `config.json` for an encoder with its decoder."""
    encoder = encoder_section(config)
    shared = (
        "supported_modality_names",
        "num_heads",
        "mlp_ratio",
        "qk_norm",
        "tokenization_config",
        "position_encoding",
        "rope_base",
        "rope_mixed_base",
        "rope_coordinate_scale",
        "rope_temporal_base",
        "temporal_rope_dim_frac",
        "rope_temporal_coordinate_scale",
    )
    decoder = {
        "_CLASS_": "olmoearth_pretrain.nn.flexi_vit.PredictorConfig",
        "encoder_embedding_size": config.embedding_size,
        "decoder_embedding_size": config.embedding_size,
        "depth": decoder_depth,
        "drop_path": 0.0,
        **{key: encoder[key] for key in shared if key in encoder},
    }
    return {
        "_CLASS_": "olmoearth_pretrain.nn.latent_mim.LatentMIMConfig",
        "encoder_config": encoder,
        "decoder_config": decoder,
        "projection_only_target": True,
    }
