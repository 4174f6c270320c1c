"""From satellite archives to embedding maps with the OlmoEarth models, for any place on Earth.

Two functions are enough to use the results and the models from Python; both load on first use:

    from olmoearth_cli import open_map, load_model
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("olmoearth")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0"

__all__ = ["__version__", "load_model", "open_map"]

_LAZY = {"load_model": "olmoearth_cli.core", "open_map": "olmoearth_cli.maps.embedding_map"}
"""Name -> module. Torch and xarray take seconds to import, and `olmoearth --help` needs neither.

Not imported for type checkers either: the floors (import-linter) would then see the root import every room.
"""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
