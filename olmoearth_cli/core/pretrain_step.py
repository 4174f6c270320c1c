"""One pretraining step: two masked views, encoder, decoder, frozen target, losses (spec/pretraining.md 0 and 4).

Both views go through the networks as one batch of 2B samples. Only what the loss reads is computed: visible
tokens are encoded, tokens to predict are decoded and have targets, patches are cut once for all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.checks import DECODE, VISIBLE, check_inputs
from olmoearth_cli.core.nn.decoder import DEPTH, Decoder
from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.nn.packed import Frame, Padding, Tokens, choose
from olmoearth_cli.core.nn.packed_encoder import draw_depth, encode_tokens
from olmoearth_cli.core.nn.patch_bank import BandsKept, PatchBank, cut_bank, draw_bands
from olmoearth_cli.core.nn.target import TargetProjection
from olmoearth_cli.core.objective import Objective, instance_contrast, mean_counted, patch_discrimination

VIEWS = 2
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PretrainBatch:
    """Samples of one patch size and grid, with the masks of two views."""

    inputs: tuple[Mapping[str, Tensor], ...]
    """{modality: [B, H, W, T, C]} normalised, T = 1 for maps: one for both views, or one each (augmented)."""
    codes: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    """{modality: uint8 [B, Y, X, T, S]} of view a and b (core.masking), on the CPU."""
    timestamps: Tensor
    """[B, T, 3] int (day 1-31, month 0-11, year), on the CPU."""
    patch_px: int
    """Patch side p; divides H and W."""

    def __len__(self) -> int:
        """Samples B."""
        return len(self.timestamps)

    def part(self, start: int, stop: int) -> PretrainBatch:
        """Samples `start` to `stop` in order."""
        rows = slice(start, stop)
        view_a, view_b = self.codes
        return PretrainBatch(
            inputs=tuple({m: v[rows] for m, v in each.items()} for each in self.inputs),
            codes=({m: v[rows] for m, v in view_a.items()}, {m: v[rows] for m, v in view_b.items()}),
            timestamps=self.timestamps[rows],
            patch_px=self.patch_px,
        )


@dataclass(frozen=True, kw_only=True)
class PretrainLoss:
    """The terms of section 4.4; float32 scalars."""

    total: Tensor
    """What is minimised."""
    tokens: Tensor
    """Mean of the views' token losses."""
    contrast: Tensor
    """Instance contrast, weighted."""
    per_modality: dict[str, Tensor]
    """Mean of the views' token losses of each modality; they sum to `tokens`."""
    chance: float
    """`tokens` that predictions unrelated to the targets have (section 4.6: 2 tau ln n), twins counted."""


class PretrainModel(nn.Module):
    """Encoder, decoder and frozen target, under the published names."""

    def __init__(self, config: EncoderConfig, decoder_depth: int = DEPTH) -> None:
        """Build with PyTorch's default weights; `fresh_model` makes those that training starts from."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, decoder_depth)
        self.target_encoder = TargetProjection(self.encoder)

    def loss(
        self,
        batch: PretrainBatch,
        objective: Objective,
        generator: torch.Generator | None = None,
        *,
        precision: str = "float32",
    ) -> PretrainLoss:
        """The loss of one microbatch.

        Args:
            batch: at least one sample; each shows at least one token in each view.
            objective: temperatures and weights.
            generator: on the CPU; draws band dropout and stochastic depth in training mode. None: neither.
            precision: `float32`, or `bfloat16` for products and attention (autocast); the losses stay float32.

        Raises:
            ValueError: shapes or codes that do not fit the model, a sample that shows nothing, missing values
                where a token is shown or predicted.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        dtype = PRECISIONS[precision]
        device = self.encoder.norm.weight.device
        codes = _both_views(batch, self.config)
        frame = _frame(batch)
        visible = choose({m: v == VISIBLE for m, v in codes.items()}, frame, self.config)
        asked = choose({m: v == DECODE for m, v in codes.items()}, frame, self.config)
        if int(visible.counts.min()) == 0:
            row = int(visible.counts.argmin()) % len(batch)
            raise ValueError(f"sample {row} of the batch shows no token: leave out samples without satellite data.")
        bank = _bank(batch, codes, self.config, device)
        targets, target_row = self._targets(bank, codes, asked, frame, dtype)
        kept, depth = self._draws(batch, visible.counts, generator)
        groups = {m: _Group(asked, m) for m in codes}
        visible, asked, frame = visible.to(device), asked.to(device), frame.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            encoded = self._encode(bank, visible, frame, kept, depth)
            predicted = self.decoder(encoded, visible, asked, frame)
            pooled = self._pool(encoded, visible)
        return _total(predicted, targets.index_select(0, target_row), groups, pooled.chunk(VIEWS), objective)

    def _encode(
        self, bank: PatchBank, visible: Tokens, frame: Frame, kept: BandsKept | None, depth: Tensor | None
    ) -> Tensor:
        """The visible tokens' final embeddings [N, D]; `depth` [blocks, 2, R] scales the branches of a sample."""
        return encode_tokens(self.encoder, bank, visible, frame, kept=kept, depth=depth)

    def _pool(self, encoded: Tensor, visible: Tokens) -> Tensor:
        """The projected mean of each sample's visible tokens, whatever their modality, [R, D]."""
        total = torch.zeros(len(visible.counts), encoded.shape[1], device=encoded.device)
        mean = total.index_add(0, visible.sample, encoded.float()) / visible.counts[:, None]
        return self.encoder.project_and_aggregate.projection(mean)  # type: ignore[no-any-return]

    def _targets(
        self, bank: PatchBank, codes: Mapping[str, Tensor], asked: Tokens, frame: Frame, dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        """Targets [M, D] of what any view predicts, each once, and the row of every asked token in them."""
        device = self.encoder.norm.weight.device
        if not len(asked.sample):
            return torch.empty(0, self.config.embedding_size, device=device), asked.sample.to(device)
        flags = {m: (v == DECODE).unflatten(0, (-1, bank.samples)).any(dim=0) for m, v in codes.items()}
        wanted = choose(flags, frame, self.config)
        length = sum(flag[0].numel() for flag in flags.values())
        row = torch.searchsorted(
            wanted.sample * length + wanted.place, asked.sample % bank.samples * length + asked.place
        )
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return self.target_encoder(bank, wanted.to(device)), row.to(device)

    def _draws(
        self, batch: PretrainBatch, counts: Tensor, generator: torch.Generator | None
    ) -> tuple[BandsKept | None, Tensor | None]:
        """Kept bands and branch factors of this pass; None outside training."""
        if not self.training or generator is None:
            return None, None
        device = self.encoder.norm.weight.device
        kept = draw_bands(self.config, batch.codes[0], VIEWS, len(batch), generator)
        depth = draw_depth(self.config.depth, self.config.drop_path, len(counts), generator)
        return {key: value.to(device) for key, value in kept.items()}, depth.to(device)


def fresh_model(config: EncoderConfig, seed: int, decoder_depth: int = DEPTH) -> PretrainModel:
    """A model as training starts (spec/pretraining.md section 7), the same for the same seed.

    Transformer layers are Xavier-uniform with zero bias; patch projections keep PyTorch's default, and the target
    is a copy of them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PretrainModel(config, decoder_depth)
        for part in (model.encoder.blocks, model.encoder.project_and_aggregate, model.decoder):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
    return model


def accumulate(
    model: PretrainModel,
    batch: PretrainBatch,
    objective: Objective,
    generator: torch.Generator | None,
    *,
    microbatch: int,
    precision: str = "float32",
) -> dict[str, float]:
    """Add the gradients of a batch, microbatch by microbatch in order (section 2.8).

    Args:
        model: gradients are added to its parameters.
        batch: a whole number of microbatches.
        objective: what is minimised; the contrast and its means stay within a microbatch.
        generator: as for `PretrainModel.loss`.
        microbatch: samples per forward pass.
        precision: as for `PretrainModel.loss`.

    Returns:
        Means over the microbatches: `loss`, `tokens`, `contrast`, `chance`, and one `tokens/<modality>` each.

    Raises:
        ValueError: microbatches that do not fill the batch.
    """
    count, rest = divmod(len(batch), microbatch)
    if rest or not count:
        raise ValueError(f"a batch of {len(batch)} samples is not a multiple of the microbatch of {microbatch}")
    names = ["loss", "tokens", "contrast", *(f"tokens/{name}" for name in model.config.modalities)]
    sums = torch.zeros(len(names))
    chance = 0.0
    for i in range(count):
        part = batch.part(i * microbatch, (i + 1) * microbatch)
        loss = model.loss(part, objective, generator, precision=precision)
        (loss.total / count).backward()
        absent = torch.zeros_like(loss.total)
        modalities = [loss.per_modality.get(name, absent) for name in model.config.modalities]
        sums += torch.stack([loss.total, loss.tokens, loss.contrast, *modalities]).detach().cpu() / count
        chance += loss.chance / count
    return {**dict(zip(names, sums.tolist(), strict=True)), "chance": chance}


class _Group:
    """The tokens of one modality that are compared with each other: those of one view of one sample."""

    def __init__(self, asked: Tokens, modality: str) -> None:
        self.where = asked.of_modality(modality)
        counts = asked.sample[self.where].bincount(minlength=len(asked.counts))
        rows = counts.nonzero()[:, 0]
        self.counts = counts[rows]
        self.padding = Padding.of(self.counts)
        self.second_view = rows >= len(asked.counts) // VIEWS

    def loss(self, predicted: Tensor, targets: Tensor, objective: Objective, limit: float | None) -> Tensor:
        """Mean over the views of the modality's token loss."""
        device = predicted.device
        where, padding = self.where.to(device), self.padding.to(device)
        losses, counted = patch_discrimination(
            padding.dense(predicted.index_select(0, where).float()),
            padding.dense(targets.index_select(0, where).float()),
            padding.real,
            temperature=objective.temperature,
            twin_limit=limit,
        )
        second = self.second_view.to(device)
        views = (mean_counted(losses[chosen], counted[chosen]) for chosen in (~second, second))
        return torch.stack(list(views)).mean()

    def chance(self, temperature: float) -> float:
        """The loss of predictions that are unrelated to the targets."""
        views = [self.counts[chosen].log() for chosen in (~self.second_view, self.second_view)]
        return sum(2 * temperature * float(logs.mean()) for logs in views if len(logs)) / VIEWS


def _total(
    predicted: Tensor,
    targets: Tensor,
    groups: Mapping[str, _Group],
    pooled: tuple[Tensor, ...],
    objective: Objective,
) -> PretrainLoss:
    per_modality = {
        name: group.loss(predicted, targets, objective, objective.twin_limit(name)) for name, group in groups.items()
    }
    tokens = torch.stack(list(per_modality.values())).sum()
    contrast = objective.contrast_weight * instance_contrast(*pooled, temperature=objective.contrast_temperature)
    return PretrainLoss(
        total=tokens + contrast,
        tokens=tokens,
        contrast=contrast,
        per_modality=per_modality,
        chance=sum(group.chance(objective.temperature) for group in groups.values()),
    )


def _both_views(batch: PretrainBatch, config: EncoderConfig) -> dict[str, Tensor]:
    """Codes [2B, Y, X, T, S] in the configuration's order, checked against inputs and dates."""
    names = [m for m in config.modalities if m in batch.codes[0]]
    if not len(batch) or len(batch.inputs) not in (1, VIEWS):
        raise ValueError(f"{len(batch)} samples, {len(batch.inputs)} inputs: some samples, one input or one per view.")
    for given in (*batch.codes, *batch.inputs):
        if set(given) != set(names):
            raise ValueError(f"modalities {sorted(given)}: codes and inputs must all have {sorted(names)}.")
    for each in batch.inputs:
        check_inputs(config, each, batch.timestamps, batch.patch_px)
    for name in names:
        b, h, w, t, _ = batch.inputs[0][name].shape
        shape = (b, h // batch.patch_px, w // batch.patch_px, t, len(config.band_sets(name)))
        for view in batch.codes:
            if tuple(view[name].shape) != shape:
                raise ValueError(f"codes of {name}: shape {list(view[name].shape)} in place of {list(shape)}.")
    return {m: torch.cat([view[m].cpu() for view in batch.codes]) for m in names}


def _frame(batch: PretrainBatch) -> Frame:
    grid = next(iter(batch.codes[0].values())).shape
    stamps = batch.timestamps.cpu().repeat(VIEWS, 1, 1)  # R T 3
    return Frame(timestamps=stamps, rows=grid[1], columns=grid[2], patch_px=batch.patch_px)


def _bank(batch: PretrainBatch, codes: Mapping[str, Tensor], config: EncoderConfig, device: torch.device) -> PatchBank:
    """The patches of all tokens that are shown or predicted in any view."""
    moved = [{m: each[m].to(device, torch.float32) for m in codes} for each in batch.inputs]
    inputs = moved[0] if len(moved) == 1 else {m: torch.cat([each[m] for each in moved]) for m in codes}
    samples = len(batch) * len(batch.inputs)
    needed = {
        m: ((v == VISIBLE) | (v == DECODE)).unflatten(0, (-1, samples)).any(dim=0).any(dim=1).any(dim=1).any(dim=-1)
        for m, v in codes.items()
    }  # samples T
    return cut_bank(inputs, needed, batch.patch_px, config.base_patch_px)
