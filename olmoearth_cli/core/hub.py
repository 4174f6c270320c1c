"""Published weights from the Hugging Face hub: download, cache, offline. No torch.

`HF_ENDPOINT` and `HF_HUB_OFFLINE` are read here at every call, for huggingface_hub itself reads them only
when it is first imported.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from olmoearth_cli.errors import ModelError

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("weights.pth", "model.safetensors")
"""Names that weights are published under, in the order in which they are asked for."""
LICENCE_NOTE = (
    "The weights are the Allen Institute for AI's, under the OlmoEarth Artifact License: "
    "https://github.com/allenai/olmoearth_pretrain/blob/main/LICENSE"
)


def is_cached(repo: str) -> bool:
    """True where a repository's configuration and weights are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    def here(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repo, name), str)

    return bool(repo) and here(CONFIG_FILE) and any(here(name) for name in WEIGHT_FILES)


def fetch(repo: str) -> Path:
    """Get a published model's files, from the cache where they are there.

    Args:
        repo: for example `allenai/OlmoEarth-v1_2-Tiny`.

    Returns:
        The weights file; `config.json` lies beside it.

    Raises:
        ModelError: the files are not here and cannot be had, with the reason and how to fetch them.
    """
    if not is_cached(repo):
        logger.info("downloading %s from %s. %s", repo, _endpoint() or "https://huggingface.co", LICENCE_NOTE)
    config = _download(repo, CONFIG_FILE)
    if config is None:
        raise ModelError(
            f"{repo}: the repository has no {CONFIG_FILE}, so it holds no OlmoEarth model. Check the name."
        )
    for name in WEIGHT_FILES:
        weights = _download(repo, name)
        if weights is not None and (weights.parent / CONFIG_FILE).exists():
            return weights
    raise ModelError(
        f"{repo}: the repository has none of {', '.join(WEIGHT_FILES)}. "
        "Check the name, or give a folder with config.json and weights."
    )


def _download(repo: str, name: str) -> Path | None:
    """One file of a repository; None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    offline = is_offline()
    try:
        return Path(hf_hub_download(repo, name, endpoint=_endpoint(), local_files_only=offline))
    except LocalEntryNotFoundError as error:
        if offline and name != CONFIG_FILE and name != WEIGHT_FILES[-1]:
            return None  # the other kind of weights may be in the cache
        raise ModelError(_unreachable(repo, name, error, offline=offline)) from None
    except EntryNotFoundError:
        return None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{repo}: the hub knows no such repository, or it needs a login. "
            "`olmoearth models` lists the published ones; `hf auth login` gives access to private ones."
        ) from None
    except Exception as error:  # the hub's client lets errors of several HTTP libraries through
        raise ModelError(_unreachable(repo, name, error, offline=offline)) from error


def _unreachable(repo: str, name: str, error: Exception, *, offline: bool) -> str:
    how = (
        f"On a machine with a connection run `hf download {repo}` and copy its folder here, then pass that "
        "folder as the model; or set HF_ENDPOINT to a mirror."
    )
    if offline:
        return f"{repo}: {name} is not in this machine's cache and HF_HUB_OFFLINE forbids fetching it. {how}"
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    where = _endpoint() or "https://huggingface.co"
    return f"{repo}: {name} could not be fetched from {where} ({first_line}). {how}"


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def is_offline() -> bool:
    """True where `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids the network."""
    return any(
        os.environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
