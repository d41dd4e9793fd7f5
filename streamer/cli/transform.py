"""`streamer transform`: events in, Segment calls out, without any network."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from pydantic import SecretStr

from streamer.cli import AltisOption, ConfigOption
from streamer.config import load_config
from streamer.core.model import Filtered, FilterReason, Reject
from streamer.errors import StartError
from streamer.formatter import Value
from streamer.handlers import left_behind
from streamer.hooks import registered
from streamer.logs import configure
from streamer.pipeline import make_formatter, make_transform
from streamer.plugins import load_plugins

if TYPE_CHECKING:
    from streamer.config import Config
    from streamer.formatter import Formatter

PLACEHOLDER_WRITE_KEY = "streamer-transform"
"""Stands for the write key, which messageIds are keyed with, where none is configured: the same ids on each run."""

CHUNK_LINES = 500
"""So many lines are shown to site code together."""

_NO_TIMESTAMP = -1


def transform(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="NDJSON file of events, one JSON object a line; standard input without it."
        ),
    ] = None,
    config: ConfigOption = None,
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

    Site code has its say as in `streamer run`, but for actions; handlers see up to 500 lines at a time.
    """
    # Standard output has nothing but calls; what site code logs goes to standard error.
    configure("warning")
    logging.getLogger("streamer.handlers").setLevel(logging.CRITICAL + 1)  # said with the lines
    settings = load_config(config, {"transform.profile": profile}, altis=altis)
    load_plugins(settings.plugins, settings.file)
    settings = with_write_key(settings)
    compiled = make_transform(settings, PLACEHOLDER_WRITE_KEY, checked=False)
    if show_code:
        typer.echo(compiled.source, nl=False)
        return
    formatter = make_formatter(settings, compiled, registered, Said(), checked=False)
    with _opened(file) as lines:
        rejected = asyncio.run(_transform(lines, formatter))
    if rejected:
        raise typer.Exit(1)


class Said:
    """What goes wrong in site code is said with the records that it is wrong for."""

    def hook_failed(self, hook: str, how: str) -> None:
        """Nothing to count."""


def with_write_key(settings: Config) -> Config:
    """Give settings with a write key, for who makes calls and sends none: a placeholder where there is none at all.

    Args:
        settings: all settings.
    """
    segment = settings.segment
    if (segment.write_key and segment.write_key.get_secret_value()) or segment.sites.write_keys:
        return settings
    segment = segment.model_copy(update={"write_key": SecretStr(PLACEHOLDER_WRITE_KEY)})
    return settings.model_copy(update={"segment": segment})


def _opened(file: Path | None) -> AbstractContextManager[BinaryIO]:
    if file is None:
        return nullcontext(typer.get_binary_stream("stdin"))
    try:
        return file.open("rb")
    except OSError as error:
        raise StartError(f"{file} can't be read: {error.strerror}") from error


async def _transform(lines: Iterable[bytes], formatter: Formatter) -> int:
    """Write the calls of each line, and say on standard error what is rejected.

    Returns:
        the number of rejected lines.
    """
    output: BinaryIO = typer.get_binary_stream("stdout")
    rejected = number = 0
    remaining = iter(lines)
    size = CHUNK_LINES if formatter.needed else 1
    while chunk := list(islice(remaining, size)):
        for _, made in await formatter.format([Value(line, _NO_TIMESTAMP) for line in chunk]):
            number += 1
            if isinstance(made, Reject):
                rejected += 1
                output.flush()  # so that the two streams stay in step on a terminal
                typer.echo(f"line {number}: {made.reason}: {made.detail}", err=True)
            elif not isinstance(made, Filtered) or made.reason is not FilterReason.EMPTY:
                output.write(b"[]\n" if isinstance(made, Filtered) else made.as_json() + b"\n")
    output.flush()
    formatter.close()
    if left_behind:  # an event loop that closes would wait for it; its lines are rejected
        os._exit(1)
    return rejected
