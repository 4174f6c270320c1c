"""The kNN probe on held-out tiles: does the encoder know more than it did before training?

A sample's vector is the mean over the cells of the window in its middle, its label the class that most of the
window has in a map modality (WorldCover by default). The map is predicted in training but never encoded, so the label
is nothing that the encoder sees. Labelled samples come from training tiles, queries from tiles that were held out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from olmoearth_cli.core.architecture import EncoderConfig, encoder_section
from olmoearth_cli.core.checks import MISSING, VISIBLE
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.normalize import normalize
from olmoearth_cli.core.probe.knn import K, fit_knn
from olmoearth_cli.core.spec import spec_of_config
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.samples.layout import SampleFolder
from olmoearth_pipelines.samples.order import Indices
from olmoearth_pipelines.samples.sample_file import PERIODS, Crop, Window, open_sample

WINDOW_PX = 16
PATCH_PX = 4
LABELLED, QUERIES = 1024, 512
"""Samples at most."""
BATCH = 32
LEAST = 2
"""Queries, and classes among the labelled, without which there is nothing to tell."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutProbe:
    """Samples with their labels, chosen once."""

    folder: SampleFolder
    """The dataset."""
    modalities: tuple[str, ...]
    """What the encoder reads."""
    side_px: int
    """Side of the samples."""
    labelled: Indices
    """From training tiles."""
    labels: npt.NDArray[np.int64]
    """[M] their classes."""
    queries: Indices
    """From held-out tiles."""
    truth: npt.NDArray[np.int64]
    """[N] their classes."""

    @property
    def majority(self) -> float:
        """Accuracy of always answering the labelled samples' most frequent class."""
        return float((self.truth == np.bincount(self.labels).argmax()).mean())

    def accuracy(self, encoder: Encoder) -> float:
        """Share of the queries whose class the nearest labelled vectors vote for.

        Args:
            encoder: left in the mode that it was in.
        """
        training = encoder.training
        model = _as_model(encoder.eval())
        try:
            vectors, found = (self._vectors(model, samples) for samples in (self.labelled, self.queries))
        finally:
            encoder.train(training)
        k = min(K, len(vectors))
        probe = fit_knn(vectors, self.labels, kind="classification", classes=int(self.labels.max()) + 1, k=k)
        return float((probe.predict(probe.scores(found)) == self.truth).mean())

    @torch.inference_mode()
    def _vectors(self, model: OlmoEarthModel, samples: Indices) -> npt.NDArray[np.float32]:
        """[N, D]."""
        parts = []
        for at in range(0, len(samples), BATCH):
            crops = [_read(self.folder, int(i), self.modalities, self.side_px) for i in samples[at : at + BATCH]]
            inputs, masks = zip(*(_inputs(crop, self.modalities, model.spec.encoder) for crop in crops), strict=True)
            stacked = {m: torch.stack([each[m] for each in inputs]) for m in self.modalities}
            codes = {m: torch.stack([each[m] for each in masks]) for m in self.modalities}
            stamps = torch.stack([torch.from_numpy(crop.timestamps) for crop in crops])
            tokens = model.encode(stacked, stamps, codes, PATCH_PX)
            parts.append(model.pool(tokens, codes).mean(dim=(1, 2)).float().cpu())  # B D
        return torch.cat(parts).numpy()


def choose_probe(
    folder: SampleFolder,
    training: Indices,
    held_out: Indices,
    config: EncoderConfig,
    *,
    label_map: str,
    side_px: int,
    seed: int,
) -> HeldOutProbe:
    """Draw the probe's samples and read their labels.

    Args:
        folder: the dataset.
        training: samples that are trained on.
        held_out: samples that are not.
        config: what the encoder reads.
        label_map: a map modality with classes.
        side_px: side of the samples.
        seed: of the draw.

    Raises:
        InputError: too few samples have the map, or it shows one class only.
    """
    if label_map not in folder.has:
        raise InputError(
            f"--probe-map {label_map}: the dataset has none. Name a map that it has, or leave the probe out."
        )
    rng = np.random.default_rng(seed)
    chosen = []
    for samples, most in ((training, LABELLED), (held_out, QUERIES)):
        usable = samples[folder.has[label_map][samples]]
        drawn = np.sort(rng.permutation(usable)[:most])
        labels = np.array([_label(folder, int(i), label_map, side_px) for i in drawn], dtype=np.int64)
        chosen.append((drawn[labels >= 0], labels[labels >= 0]))
    (labelled, labels), (queries, truth) = chosen
    if len(queries) < LEAST or len(np.unique(labels)) < LEAST:
        raise InputError(
            f"--probe-every: {len(labelled)} training and {len(queries)} held-out samples have {label_map}, with "
            f"{len(np.unique(labels))} class(es): too few to tell anything. Leave the probe out."
        )
    return HeldOutProbe(
        folder=folder,
        modalities=config.input_modalities,
        side_px=side_px,
        labelled=labelled,
        labels=labels,
        queries=queries,
        truth=truth,
    )


def _as_model(encoder: Encoder) -> OlmoEarthModel:
    section = {"model": {"encoder_config": encoder_section(encoder.config)}}
    spec = spec_of_config(section, origin="run", folder_name="run")
    return OlmoEarthModel(
        spec=replace(spec, encoder=encoder.config), encoder=encoder, weights_sha256="", name=spec.name
    )


def _window(side_px: int, periods: int) -> Window:
    side = min(WINDOW_PX, side_px)
    corner = (side_px - side) // 2
    return Window(row=corner, column=corner, side_px=side, start=0, periods=periods)


def _label(folder: SampleFolder, index: int, label_map: str, side_px: int) -> int:
    """The most frequent class of the window; -1 where that is no data."""
    with open_sample(folder.sample(index), (label_map,)) as sample:
        values = sample.read(_window(side_px, 1)).values[label_map]
    label = int(np.bincount(values.astype(np.int64).ravel()).argmax())
    return label if label > 0 else -1


def _read(folder: SampleFolder, index: int, modalities: tuple[str, ...], side_px: int) -> Crop:
    with open_sample(folder.sample(index), modalities) as sample:
        return sample.read(_window(side_px, PERIODS))


def _inputs(
    crop: Crop, modalities: tuple[str, ...], config: EncoderConfig
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Normalised values [H, W, T, C] and codes [H, W, T, S]; missing timesteps are zeros and masked."""
    side = next(iter(crop.values.values())).shape[0]
    inputs, masks = {}, {}
    for name in modalities:
        seen = crop.present[name]
        values = np.zeros((side, side, len(seen), len(MODALITIES[name].bands)), dtype=np.float32)
        if name in crop.values:
            values[:, :, seen] = normalize(name, crop.values[name], release="v1.2")
        code = np.where(seen, VISIBLE, MISSING).astype(np.uint8)
        shape = (side, side, len(seen), len(config.band_sets(name)))
        inputs[name] = torch.from_numpy(values)
        masks[name] = torch.from_numpy(np.broadcast_to(code[:, None], shape).copy())
    return inputs, masks
