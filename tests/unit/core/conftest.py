"""Small models and windows for the tests of the core."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.model import OlmoEarthModel, random_model

SPEC_FOLDER = Path(__file__).resolve().parents[4] / "shared" / "spec"
"""The workplace's specification; tests that read it are skipped where it is absent."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nano() -> OlmoEarthModel:
    return lively("v1.2-nano")


@pytest.fixture(scope="session")
def old_nano() -> OlmoEarthModel:
    return lively("v1-nano")


def lively(name: str) -> OlmoEarthModel:
    """A random model whose norms, biases and codes are not at their starting values."""
    model = random_model(name, seed=3)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.encoder.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.fixture
def windows() -> Callable[..., tuple[dict[str, torch.Tensor], torch.Tensor]]:
    def make(*modalities: str, b: int = 3, side: int = 16, t: int = 4, seed: int = 0):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(seed)
        inputs = {m: torch.randn(b, side, side, t, len(MODALITIES[m].bands), generator=generator) for m in modalities}
        stamps = torch.tensor([[(1 + 3 * i, (i * 2) % 12, 2022) for i in range(t)]]).repeat(b, 1, 1)
        return inputs, stamps

    return make


@pytest.fixture(scope="session")
def spec_folder() -> Path:
    if not SPEC_FOLDER.is_dir():
        pytest.skip("the specification folder ../shared/spec is not here")
    return SPEC_FOLDER
