"""An encoder and a head that learn together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from olmoearth_cli.core.finetune.batch import FeatureBatch, FinetuneBatch
from olmoearth_cli.core.finetune.heads import Head
from olmoearth_cli.core.finetune.lora import LoraLinear, has_lora
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.nn.packed import Frame, Tokens, choose
from olmoearth_cli.core.nn.packed_encoder import draw_depth, encode_tokens
from olmoearth_cli.core.nn.patch_bank import cut_bank

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


class FinetuneModel(nn.Module):
    """From normalised inputs to a head's outputs, with gradients.

    Only visible tokens are computed (`core.nn.packed`), so a sample's outputs depend on that sample alone. Bands are
    never dropped here: that belongs to pretraining.
    """

    def __init__(
        self,
        model: OlmoEarthModel,
        head: Head,
        *,
        drop_path: float | None = None,
        precision: str = "float32",
    ) -> None:
        """Join a model and a head; the model's own weights are those that learn.

        Args:
            model: in float32, on the device to compute on.
            head: of the model's width; put on the same device.
            drop_path: rate of stochastic depth in training; None for the model's own (0.1).
            precision: `float32`, or `bfloat16` for products and attention (autocast); weights stay float32.

        Raises:
            ValueError: a head of another width, another precision or rate, or weights that are not float32.
        """
        super().__init__()
        if head.spec.width != model.spec.embedding_size:
            raise ValueError(
                f"the head reads {head.spec.width} dimensions, {model.name} has {model.spec.embedding_size}"
            )
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        if model.dtype != torch.float32:
            raise ValueError(f"the model's weights are {model.dtype}: load it in float32 to train it")
        self.config = model.spec.encoder
        self.drop_path = self.config.drop_path if drop_path is None else drop_path
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"the rate of stochastic depth must be in [0, 1), not {drop_path}")
        self.precision = precision
        self.encoder = model.encoder
        self.head = head.to(model.device)
        self.let_encoder_learn(True)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.norm.weight.device

    def let_encoder_learn(self, learns: bool) -> None:
        """Freeze or thaw the encoder: all of it, or its LoRA layers alone where it has them.

        The month table is fixed in every model (spec/model.md section 4.1).
        """
        adapted = has_lora(self.encoder)
        self.encoder.requires_grad_(learns and not adapted)
        self.encoder.composite_encodings.month_embed.requires_grad_(False)
        for module in self.encoder.modules():
            if isinstance(module, LoraLinear):
                module.lora_a.requires_grad_(learns)
                module.lora_b.requires_grad_(learns)

    def encoder_learns(self) -> bool:
        """True where some of the encoder has gradients."""
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def forward(self, batch: FinetuneBatch | FeatureBatch, generator: torch.Generator | None = None) -> Tensor:
        """The head's outputs for a batch.

        Args:
            batch: samples, or features of samples.
            generator: on the CPU; draws stochastic depth in training mode. None: none.

        Returns:
            float32, see `Head.forward`; label maps of another size than the window are met by resizing.
        """
        features = batch.features if isinstance(batch, FeatureBatch) else self.features(batch, generator)
        size = None
        if not self.head.spec.per_window and batch.targets is not None:
            size = (batch.targets.shape[1], batch.targets.shape[2])
        with self._autocast():
            outputs = self.head(features.to(self.device), size)
        return outputs.float()  # type: ignore[no-any-return]

    def features(self, batch: FinetuneBatch, generator: torch.Generator | None = None) -> Tensor:
        """Pooled embeddings, without gradients where the encoder is frozen.

        Args:
            batch: samples with something visible in each.
            generator: as for `forward`.

        Returns:
            float32 [B, D], the mean of a sample's tokens; or, where the head reads maps, [B, Y, X, D], the mean over
            the modalities with data of their means.

        Raises:
            ValueError: another patch size than the head's, a sample without any visible token (of its middle patch,
                where the head reads that alone), values that are not normalised.
        """
        if batch.patch_px != self.head.spec.patch_px:
            raise ValueError(f"a batch of {batch.patch_px} px patches; the head is for {self.head.spec.patch_px} px")
        rows, columns = batch.grid
        frame = Frame(timestamps=batch.timestamps, rows=rows, columns=columns, patch_px=batch.patch_px)
        tokens = choose(batch.visible, frame, self.config)
        self._check_seen(batch.visible, tokens)
        inputs = {name: values.to(self.device, torch.float32) for name, values in batch.inputs.items()}
        needed = {name: flag.any(dim=-1).any(dim=1).any(dim=1) for name, flag in batch.visible.items()}  # B T
        bank = cut_bank(inputs, needed, batch.patch_px, self.config.base_patch_px)
        depth = None
        if self.training and generator is not None and self.drop_path > 0:
            depth = draw_depth(self.config.depth, self.drop_path, len(batch), generator).to(self.device)
        groups, shares = _pooling(batch.visible, tokens, frame, per_patch=self.head.spec.reads_map)
        learns = torch.is_grad_enabled() and self.encoder_learns()
        with torch.set_grad_enabled(learns), self._autocast():
            encoded = encode_tokens(self.encoder, bank, tokens.to(self.device), frame.to(self.device), depth=depth)
            encoded = encoded.float() * shares.to(self.device)[:, None]
            shape = (len(batch), rows, columns) if self.head.spec.reads_map else (len(batch),)
            pooled = encoded.new_zeros(torch.Size(shape).numel(), encoded.shape[1])
            return pooled.index_add(0, groups.to(self.device), encoded).unflatten(0, shape)

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _check_seen(self, visible: Mapping[str, Tensor], tokens: Tokens) -> None:
        counts = tokens.counts
        if self.head.spec.centre:
            middles = [flag[:, flag.shape[1] // 2, flag.shape[2] // 2].flatten(1) for flag in visible.values()]
            counts = torch.cat(middles, dim=1).sum(dim=1)
        empty = (counts == 0).nonzero()[:, 0].tolist()
        if empty:
            what = "no data in the middle patch" if self.head.spec.centre else "no data"
            raise ValueError(f"samples {empty} of the batch have {what}: leave them out.")


def _pooling(visible: Mapping[str, Tensor], tokens: Tokens, frame: Frame, *, per_patch: bool) -> tuple[Tensor, Tensor]:
    """Which mean each token belongs to, [N], and its share of it, float32 [N]."""
    if not per_patch:
        return tokens.sample, 1 / tokens.counts[tokens.sample].float()
    patch = (tokens.sample * frame.rows + tokens.row) * frame.columns + tokens.column
    modality = torch.zeros_like(patch)
    for i, name in enumerate(visible):
        modality[tokens.of_modality(name)] = i
    patches = len(tokens.counts) * frame.rows * frame.columns
    counts = (patch * len(visible) + modality).bincount(minlength=patches * len(visible)).view(patches, -1)
    present = (counts > 0).sum(dim=1)
    return patch, 1 / (counts[patch, modality] * present[patch]).float()
