"""A request to pretrain a model: the flags, and the model and recipe that they mean (spec/pretraining.md section 9)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from olmoearth_cli.core.architecture import EncoderConfig, PositionEncoding
from olmoearth_cli.core.masking import MAPS
from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES
from olmoearth_cli.core.recipe import Recipe, released_recipe
from olmoearth_cli.core.spec import RELEASED
from olmoearth_cli.errors import InputError

SEED, ORDER_SEED = 12536, 3622
"""Of the weights and of the data in the official runs (section 6)."""
ENCODINGS = {
    "ape": PositionEncoding.ABSOLUTE,
    "2d-rope": PositionEncoding.ROPE,
    "2d-rope-mixed": PositionEncoding.ROPE_MIXED,
    "3d-rope": PositionEncoding.ROPE_3D,
    "3d-rope-mixed": PositionEncoding.ROPE_3D_MIXED,
}
BAND_DROPOUT_MODALITIES = ("sentinel2_l2a", "landsat")
AXIAL_TEMPORAL_BASE = 1000.0
MIXED_BASE = 10000.0
DAYS_TO_MONTHS = 1 / 30
"""Scale of the temporal coordinate that was chosen over days (section 7)."""


@dataclass(frozen=True, kw_only=True)
class PretrainRequest:
    """What the user asked for; None is the recipe's own choice."""

    data: Path
    """Folder of the dataset."""
    out: Path
    """Folder of the run."""
    recipe: str = "v1.2"
    """Release whose recipe and architecture are followed."""
    size: str = "tiny"
    """Of the family."""
    modalities: tuple[str, ...] | None = None
    """What is read and predicted; None for all nine."""
    masking: str | None = None
    """`updated` or `v1`."""
    time_masking: float | None = None
    """Share of samples whose periods are hidden whole."""
    band_dropout: float | None = None
    """Highest share of dropped bands."""
    projection: str | None = None
    """`linear` or `nonlinear`."""
    loss: str | None = None
    """`masked-negatives` or `v1`."""
    position_encoding: str | None = None
    """A key of `ENCODINGS`."""
    band_groups: str | None = None
    """`single` or `v1`."""
    contrast_weight: float | None = None
    """Of the instance contrast."""
    augment: str | None = None
    """`none`, `shared` or `per_view`."""
    budget_groups: str = "v1"
    """Whose band groups the token budget counts: `v1` or `model`."""
    grid_per: str = "microbatch"
    """What shares one patch and crop size: a `microbatch`, or a device's whole `batch`."""
    batch_size: int = 512
    """Samples of a step, over all devices."""
    microbatch: int | None = None
    """Samples of a forward pass."""
    steps: int | None = None
    """Of the whole run."""
    epochs: int | None = None
    """Of the whole run, where no steps are given."""
    lr: float | None = None
    """Peak learning rate."""
    warmup: int | None = None
    """Steps of rising learning rate."""
    weight_decay: float | None = None
    """Of all parameters."""
    seed: int | None = None
    """Of weights and data; None for the two official ones."""
    init: str | None = None
    """Name of a published model, or a folder, whose weights training starts from."""
    workers: int = 2
    """Processes per device that read ahead."""
    devices: int = 1
    """Processes that share a batch, each with a device of its own."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: str = "float32"
    """`float32` or `bfloat16`."""
    compile: bool = False
    """Compile what has no rotation in it."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 3
    """Checkpoints kept, the newest ones."""
    log_every: int = 10
    """Steps between lines of the log."""
    probe_every: int = 0
    """Steps between kNN probes on held-out tiles; 0 for none."""
    probe_map: str = "worldcover"
    """Map whose classes the probe asks for."""
    grid_intensity: float | None = None
    """Grams of CO2 per kWh."""
    water_intensity: float | None = None
    """Litres of water per kWh."""
    tensorboard: bool = False
    """Write figures for TensorBoard too."""
    wandb: str | None = None
    """Project of Weights & Biases."""
    overwrite: bool = False
    """Replace a run made with other settings."""

    @property
    def model_name(self) -> str:
        """Recipe and size, as published models are called."""
        return f"{self.recipe}-{self.size}"

    @property
    def seeds(self) -> tuple[int, int]:
        """Of the weights, and of the data."""
        return (SEED, ORDER_SEED) if self.seed is None else (self.seed, self.seed)


def config_of(request: PretrainRequest) -> EncoderConfig:
    """The encoder's architecture.

    Raises:
        ModelError: no such recipe and size.
        InputError: switches that contradict each other.
    """
    released_recipe(request.recipe, request.size)
    width = next(spec.encoder for spec in RELEASED if spec.size == request.size)
    like = [spec.encoder for spec in RELEASED if spec.release == request.recipe]
    # Nano alone has another per-pixel layer (G23); its release's other sizes are alike but for their widths.
    template = like[0] if request.size == "nano" else like[-1]
    config = replace(
        template,
        embedding_size=width.embedding_size,
        depth=width.depth,
        num_heads=width.num_heads,
        band_dropout_rate=0.0,
    )
    config = _with_groups(config, request)
    config = _with_projection(config, request)
    config = _with_positions(config, request)
    rate = template.band_dropout_rate if request.band_dropout is None else request.band_dropout
    if not 0 <= rate < 1:
        raise InputError(f"--band-dropout {rate}: give a share from 0 to below 1.")
    if rate:
        config = replace(config, band_dropout_rate=rate, band_dropout_modalities=BAND_DROPOUT_MODALITIES)
    return _with_modalities(config, request)


def recipe_of(request: PretrainRequest, config: EncoderConfig, *, processes: int = 1) -> Recipe:
    """How it is trained: the release's recipe with the request's changes.

    Args:
        request: the flags.
        config: of `config_of`.
        processes: that share a batch.

    Raises:
        ModelError: no such recipe and size.
        InputError: values out of range, or without effect.
    """
    recipe = released_recipe(request.recipe, request.size)
    masking, objective = recipe.masking, recipe.objective
    if request.masking is not None:
        masking = replace(masking, strategy=request.masking)
    if request.time_masking is not None:
        if masking.strategy == "v1":
            raise InputError("--time-masking: the v1 masking hides no whole periods. Leave it out, or use updated.")
        if not 0 <= request.time_masking <= 1:
            raise InputError(f"--time-masking {request.time_masking}: give a share from 0 to 1.")
        masking = replace(masking, time_mask_prob=request.time_masking)
    if request.loss is not None:
        objective = replace(objective, twin_modalities=MAPS if request.loss == "masked-negatives" else ())
    if request.contrast_weight is not None:
        objective = replace(objective, contrast_weight=request.contrast_weight)
    share = request.batch_size // processes
    given: dict[str, Any] = {
        "peak_lr": request.lr,
        "weight_decay": request.weight_decay,
        # A batch that is smaller than the recipe's microbatch is its own.
        "microbatch": request.microbatch or min(recipe.microbatch, max(share, 1)),
        "augment": request.augment,
    }
    return replace(
        recipe,
        masking=replace(masking, decode_only=tuple(m for m in masking.decode_only if m in config.modalities)),
        objective=replace(
            objective, twin_modalities=tuple(m for m in objective.twin_modalities if m in config.modalities)
        ),
        **{key: value for key, value in given.items() if value is not None},
    )


def words_of(config: EncoderConfig) -> dict[str, str]:
    """Architecture switches in the flags' words, for records and messages."""
    projection = "convolution"
    if config.linear_patch_embed:
        projection = "nonlinear" if config.pixel_hidden else "linear"
    single = all(len(config.band_sets(m)) == 1 for m in config.modalities)
    encoding = next(word for word, value in ENCODINGS.items() if value is config.position_encoding)
    return {"projection": projection, "band_groups": "single" if single else "v1", "position_encoding": encoding}


def _with_groups(config: EncoderConfig, request: PretrainRequest) -> EncoderConfig:
    if request.band_groups is None:
        return config
    single = tuple((m, (MODALITIES[m].bands,)) for m in BAND_DROPOUT_MODALITIES)
    return replace(config, band_groups=single if request.band_groups == "single" else ())


def _with_projection(config: EncoderConfig, request: PretrainRequest) -> EncoderConfig:
    if request.projection is None:
        return config
    hidden = (12,) if request.size == "nano" else (64,)
    return replace(config, linear_patch_embed=True, pixel_hidden=hidden if request.projection == "nonlinear" else ())


def _with_positions(config: EncoderConfig, request: PretrainRequest) -> EncoderConfig:
    if request.position_encoding is None:
        return config
    encoding = ENCODINGS[request.position_encoding]
    return replace(
        config,
        position_encoding=encoding,
        rope_mixed_base=MIXED_BASE,
        rope_temporal_base=AXIAL_TEMPORAL_BASE if encoding is PositionEncoding.ROPE_3D else None,
        rope_temporal_coordinate_scale=DAYS_TO_MONTHS if encoding.temporal else 1.0,
    )


def _with_modalities(config: EncoderConfig, request: PretrainRequest) -> EncoderConfig:
    asked = request.modalities or config.modalities
    kept = tuple(m for m in config.modalities if m in asked)
    inputs = tuple(m for m in kept if m in ENCODER_INPUTS)
    if not inputs:
        raise InputError(f"--modalities {','.join(asked)}: nothing to encode. Add s2, s1 or landsat.")
    return replace(
        config,
        modalities=kept,
        input_modalities=inputs,
        band_groups=tuple((m, sets) for m, sets in config.band_groups if m in kept),
        band_dropout_modalities=tuple(m for m in config.band_dropout_modalities if m in kept),
    )
