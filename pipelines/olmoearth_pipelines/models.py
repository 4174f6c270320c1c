"""The model of a run, loaded with a word to the user, and the device that it runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.cluster import check_device_name

if TYPE_CHECKING:
    from olmoearth_cli.core import OlmoEarthModel


def open_model(name: str, note: Callable[[str], None], *, device: str = "cpu") -> OlmoEarthModel:
    """Load a model; say what is fetched, under which licence, and when its weights are random.

    Raises:
        ModelError: unknown, damaged, or not to be had.
        InputError: a device that is not here.
    """
    from olmoearth_cli.core import load_model
    from olmoearth_cli.core.hub import LICENCE_NOTE, is_cached, is_offline
    from olmoearth_cli.core.spec import released_spec

    place = local_device(device)
    released = released_spec(name)
    if released is not None and not is_offline() and not is_cached(released.repo):
        note(f"fetching {released.repo} from the Hugging Face hub. {LICENCE_NOTE}")
    model = load_model(name, device=place)
    if model.demo:
        note(f"{name}: DEMO WEIGHTS (random): they show the road, not the land")
    return model


def local_device(asked: str) -> str:
    """`auto` -> a GPU where there is one.

    Raises:
        InputError: not a device, or one that is not here.
    """
    import torch

    check_device_name(asked)
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(asked)
    return asked


def check_device(asked: str) -> None:
    """Refuse a GPU that is not here.

    Raises:
        InputError: names what is here.
    """
    import torch

    count = torch.cuda.device_count()
    number = int(asked.partition(":")[2] or 0)
    if asked.startswith("cuda") and number >= count:
        raise InputError(
            f"--device {asked}: this machine has {count} CUDA device(s) that torch can use. Use auto or cpu."
        )
