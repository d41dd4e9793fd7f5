"""`streamer transform`: events in, Segment calls out, without any network."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from streamer.cli import AltisOption
from streamer.config import load_config
from streamer.core.model import Filtered, FilterReason, Reject
from streamer.errors import StartError
from streamer.pipeline import make_transform

if TYPE_CHECKING:
    from streamer.core.transform import Transform

PLACEHOLDER_WRITE_KEY = "streamer-transform"
"""Stands for the write key, which messageIds are keyed with, where none is configured: the same ids on each run."""

_NO_TIMESTAMP = -1


def transform(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="NDJSON file of events, one JSON object a line; standard input without it."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="TOML file with the mapping and the groups; without it the default mapping.",
        ),
    ] = None,
    altis: AltisOption = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Overrides transform.profile: default, or altis for what the PHP integration sends."
        ),
    ] = None,
    show_code: Annotated[
        bool,
        typer.Option(
            "--show-code", help="Print the Python that the mapping compiles to, and stop."
        ),
    ] = False,
) -> None:
    """Turn events into Segment calls: one JSON array of calls for each line.

    Rejected lines are said on standard error with their reason; the exit status is 1 if there were any. An event that
    the settings keep back is an empty array: none of its calls is sent, and that is as it should be. With the
    same write key, page and track calls have the messageIds that `streamer run` sends; identify and group calls get
    another one each time. A line has no Kafka timestamp: an event without a usable one of its own is rejected.

    With the profile altis every call is what the PHP integration sends, its id included, whether Segment would keep it
    or not; lines of which PHP makes no call are left out.
    """
    settings = load_config(config, {"transform.profile": profile}, altis=altis)
    write_key = settings.segment.write_key
    key = "" if write_key is None else write_key.get_secret_value()
    compiled = make_transform(settings, key or PLACEHOLDER_WRITE_KEY, checked=False)
    if show_code:
        typer.echo(compiled.source, nl=False)
        return
    with _opened(file) as lines:
        rejected = _transform(lines, compiled)
    if rejected:
        raise typer.Exit(1)


def _opened(file: Path | None) -> AbstractContextManager[BinaryIO]:
    if file is None:
        return nullcontext(typer.get_binary_stream("stdin"))
    try:
        return file.open("rb")
    except OSError as error:
        raise StartError(f"{file} can't be read: {error.strerror}") from error


def _transform(lines: Iterable[bytes], compiled: Transform) -> int:
    """Write the calls of each line, and say on standard error what is rejected.

    Returns:
        the number of rejected lines.
    """
    output: BinaryIO = typer.get_binary_stream("stdout")
    rejected = 0
    for number, line in enumerate(lines, start=1):
        made = compiled.format(line, _NO_TIMESTAMP)
        if isinstance(made, Reject):
            rejected += 1
            output.flush()  # so that the two streams stay in step on a terminal
            typer.echo(f"line {number}: {made.reason}: {made.detail}", err=True)
        elif not isinstance(made, Filtered):
            # As they are sent: a call may be so deep that one more level is too many to serialise.
            calls = b",".join([*(one.render() for one in made.contributions), made.main])
            output.write(b"[%b]\n" % calls)
        elif made.reason is not FilterReason.EMPTY:
            output.write(b"[]\n")
    output.flush()
    return rejected
