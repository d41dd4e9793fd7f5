"""The command line: `streamer` and its commands, one file each.

A command's module is imported when that command is called: `streamer --help` doesn't wait for Kafka's, HTTP's and the
configuration's libraries.
"""

from __future__ import annotations

from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from streamer.errors import StreamerError

SUMMARIES = {
    "run": "Forward events from Kafka to Segment: the service.",
    "check": "Check the configuration, that Kafka can be reached, and what a start would cost.",
    "transform": "Turn events into Segment calls, without any network.",
    "preview": "Read real records without taking part: their calls, rejects, lateness and the bill.",
    "tune": "Say what other flush settings would do: lateness, requests, billed calls.",
    "mock-segment": "Play Segment on loopback, for development.",
    "demo": "Run the whole pipeline with nothing installed.",
}
"""Every command and what `streamer --help` says of it. `mock-segment` is the function `mock_segment` of the module
`streamer.cli.mock_segment`, and so on."""


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The TOML file with the settings; without it, only the environment counts.",
    ),
]
"""The same of every command that has any."""

AltisOption = Annotated[
    Path | None,
    typer.Option(
        "--altis",
        metavar="FILE",
        help="Altis's composer.json, of which the Segment integration's enabled and api_key are taken, below all else.",
    ),
]
"""The option of the commands that read the configuration."""


class _Commands(TyperGroup):
    def __init__(self, **attrs: Any) -> None:  # noqa: ANN401 - typer's own arguments, passed through
        super().__init__(**attrs)
        for name, summary in SUMMARIES.items():
            self.add_command(
                TyperCommand(name, help=summary)
            )  # for the list; what runs is loaded below

    def resolve_command(
        self,
        ctx: Any,  # noqa: ANN401 - typer keeps the type to itself
        args: list[str],
    ) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load(name), rest


def load(name: str) -> Any:  # noqa: ANN401 - a command of typer's, which keeps the type to itself
    """Import a command.

    Args:
        name: as it is typed.

    Returns:
        What typer makes of the function: it parses arguments and calls it.
    """
    identifier = name.replace("-", "_")
    function = getattr(import_module(f"streamer.cli.{identifier}"), identifier)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    # A paragraph is one line for typer, or it would break where the source does.
    paragraphs = (getdoc(function) or "").split("\n\n")
    single.command(name, help="\n\n".join(" ".join(p.split()) for p in paragraphs))(function)
    return get_command(single)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # they would print local variables, and with them secrets
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from streamer import __version__  # noqa: PLC0415 - reading the metadata costs 60 ms

        typer.echo(f"streamer {__version__}")
        raise typer.Exit


@app.callback()
def _streamer(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Show the version and stop.",
        ),
    ] = False,
) -> None:
    """Forward Altis Analytics events from Kafka to Segment in about a second, with nothing lost."""


def main() -> None:
    """Run the command line; what a person can mend ends in red lines and exit status 2, without a traceback."""
    try:
        app(prog_name="streamer")
    except StreamerError as error:
        from rich.console import Console  # noqa: PLC0415 - only needed when something is wrong

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        for line in str(error).splitlines():
            console.print(f"streamer: {line}", style="red", markup=False)
        raise SystemExit(2) from None
