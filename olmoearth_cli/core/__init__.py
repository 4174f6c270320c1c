"""Tensors only: the networks, their weights, and how a batch of windows becomes vectors.

`load_model` loads on first use: modality, spec and normalize are needed without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from olmoearth_cli.core.model import OlmoEarthModel, load_model, random_model, save_model

__all__ = ["OlmoEarthModel", "load_model", "random_model", "save_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("olmoearth_cli.core.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
