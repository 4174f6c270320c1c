"""The Typer application. Importing it costs typer and nothing else: `olmoearth --help` stays fast."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from olmoearth_cli import __version__, console
from olmoearth_cli.commands import embed, export, finetune, models, predict, pretrain, probe
from olmoearth_cli.errors import OlmoEarthError
from olmoearth_cli.settings import read_defaults

app = typer.Typer(
    name="olmoearth",
    help="From satellite archives to embedding maps, for any place on Earth.",
    epilog="Start with: olmoearth embed --aoi region.geojson",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("embed", epilog=embed.EXAMPLE)(embed.embed)
app.command("models", epilog=models.EXAMPLE)(models.models)
app.add_typer(probe.app, name="probe")
app.command("finetune", epilog=finetune.EXAMPLE)(finetune.command)
app.command("predict", epilog=predict.EXAMPLE)(predict.command)
app.command("pretrain", epilog=pretrain.EXAMPLE)(pretrain.command)
app.add_typer(export.app, name="export")


class Interrupted(OlmoEarthError):  # noqa: N818 - not an error
    """The user or the system asked the program to stop."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped. What was finished is kept; run the same command again to go on.")
        self.exit_code = 128 + number


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        sys.stdout.write(f"olmoearth {__version__}\n")
        raise typer.Exit()


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)


def _options_of(group: Any) -> dict[str, Any]:
    """Subcommand -> names of its options; one level deeper for groups."""
    return {
        name: _options_of(sub) if hasattr(sub, "commands") else {p.name for p in sub.params if p.name}
        for name, sub in group.commands.items()
    }


def main() -> None:
    """Entry point: run one command; known errors become one message and an exit code."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        command = typer.main.get_command(app)
        defaults = read_defaults(Path.cwd(), _options_of(command))
        command(default_map=defaults, auto_envvar_prefix="OLMOEARTH")
    except OlmoEarthError as problem:
        console.error(str(problem))
        sys.exit(problem.exit_code)


if __name__ == "__main__":
    main()
