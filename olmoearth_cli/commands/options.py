"""Option types that several subcommands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from functools import partial
from inspect import Parameter, Signature
from typing import Annotated, Any, get_type_hints

import typer

from olmoearth_cli.errors import InputError

option = partial(typer.Option, show_envvar=False)
"""An option; its environment variable (`OLMOEARTH_<COMMAND>_<FLAG>`) follows from its name and clutters the help."""

MODALITY_NAMES = {
    "s2": "sentinel2_l2a",
    "s1": "sentinel1",
    "sentinel2": "sentinel2_l2a",
    "sentinel2_l2a": "sentinel2_l2a",
    "sentinel1": "sentinel1",
    "landsat": "landsat",
}
"""What a user may write -> the models' name."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Flags of the export commands that say how they write and speak."""

    overwrite: Annotated[bool, option("--overwrite", help="Replace what is there.")] = False
    json: Annotated[bool, option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress, no notes.")] = False


class Blend(StrEnum):
    """How overlapping windows become one map."""

    NONE = "none"
    HANN = "hann"


class Precision(StrEnum):
    """Arithmetic inside the encoder."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class MapType(StrEnum):
    """Numbers in the tiles."""

    INT8 = "int8"
    FLOAT32 = "float32"


class Guard(StrEnum):
    """What contradictions between pixels and catalogue lead to."""

    STRICT = "strict"
    WARN = "warn"
    OFF = "off"


class Polygons(StrEnum):
    """Which map cells a labelled polygon gives its label to."""

    COVERED = "covered"
    MAJORITY = "majority"


class Raw(StrEnum):
    """When the raw bands are judged beside the map."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


def to_numbers(text: str | None, *, flag: str) -> tuple[float, ...] | None:
    """`1e-4,5e-4` -> numbers; None where nothing was asked.

    Raises:
        InputError: a word is no number.
    """
    if not text:
        return None
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text}: give a number, or several with commas.") from None


def to_modalities(text: str | None) -> tuple[str, ...] | None:
    """`s2,s1` -> the models' names in their fixed order; None where nothing was asked.

    Raises:
        InputError: a name is unknown.
    """
    if not text:
        return None
    asked = set()
    for word in text.split(","):
        name = MODALITY_NAMES.get(word.strip().lower())
        if name is None:
            raise InputError(f"--modalities: unknown modality '{word.strip()}'. Known: s2, s1, landsat.")
        asked.add(name)
    return tuple(m for m in ("sentinel2_l2a", "sentinel1", "landsat") if m in asked)


def to_catalogs(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated catalogues; None where none was given."""
    parts = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    return parts or None


def command_of(
    options: type[Any], run: Callable[..., None], *, last: type[Any], tells_typed: bool = False
) -> Callable[..., None]:
    """A Typer command whose flags are the fields of a dataclass, in their order.

    Fields are annotated with `option` or `typer.Argument`; one without a default must be given.

    Subcommands with the same flags share a base class and so say each flag once.

    Args:
        options: frozen, keyword-only dataclass; its docstring becomes the command's help.
        run: gets the filled dataclass.
        last: a base of `options` whose flags stand last in the help.
        tells_typed: True gives `run` also the set of the fields that were typed: not those from the environment or
            from `olmoearth.toml`, which may well speak of something else than this run.
    """
    tail = {f.name for f in fields(last)}
    hints = get_type_hints(options, include_extras=True)

    def command(**values: Any) -> None:
        context = values.pop(_CONTEXT, None)
        if context is None:
            run(options(**values))
        else:
            run(options(**values), {name for name in values if _is_typed(context, name)})

    parameters = [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if f.default is MISSING else f.default,
            annotation=hints[f.name],
        )
        for f in sorted(fields(options), key=lambda f: f.name in tail)
    ]
    if tells_typed:
        parameters.append(Parameter(_CONTEXT, Parameter.KEYWORD_ONLY, annotation=typer.Context))
        hints = {**hints, _CONTEXT: typer.Context}
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = hints
    command.__doc__ = options.__doc__
    return command


_CONTEXT = "context"


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
