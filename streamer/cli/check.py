"""`streamer check`: what would run, before it runs."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
)
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamer.backlog import Backlog, Calls, count, look, stand
from streamer.cli import AltisOption, ConfigOption
from streamer.cli.kafka import KAFKA_TIMEOUT, NOT_READ, reach
from streamer.config import duration_text, effective, load_config, require_write_key
from streamer.dead_letter import FileSink
from streamer.errors import StartError
from streamer.hooks import API_WRITE_KEY, handler_name, registered
from streamer.pipeline import make_calls, make_transform
from streamer.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from streamer.config import Config
    from streamer.core.model import Partition


def check(
    config: ConfigOption = None,
    altis: AltisOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Don't reach for Kafka.")] = False,
) -> None:
    """Check the configuration, that Kafka can be reached, and what a start would read and cost.

    Prints every setting in effect and where it came from. Exits with status 2 and says why if `streamer run` couldn't
    do its work with them.
    """
    settings = load_config(config, altis=altis)
    _print_settings(settings)
    plugins = load_plugins(settings.plugins, settings.file)
    write_key = "none"
    if settings.segment.enabled:
        elsewhere = bool(registered.handlers(API_WRITE_KEY))
        write_key = require_write_key(settings, elsewhere=elsewhere)

    transform = make_transform(settings, write_key)
    for note in settings.notes:
        typer.echo(note)
    typer.echo("mapping: compiles")
    if settings.transform.profile == "altis":
        typer.echo(
            "profile altis: calls as the PHP integration sends them, with its faults, none merged; never together with"
            " it, or with the other profile, into one Segment workspace"
        )
    if plugins:
        typer.echo(f"plug-ins: {', '.join(plugins)}")
        for name in registered.names():
            typer.echo(f"  {name}: {', '.join(map(handler_name, registered.handlers(name)))}")
        if registered.groups:
            typer.echo(f"  {count(len(registered.groups), 'group map')} registered")
    flush = settings.flush
    typer.echo(
        f"flush: a batch closes after {duration_text(flush.interval)}; before that with {flush.max_calls:,} calls, with"
        f" {flush.max_bytes:,} bytes, or when {flush.memory_budget:,} bytes are held"
    )
    if settings.dead_letter.file:
        FileSink(settings.dead_letter.file).check()
    if not settings.segment.enabled:
        typer.echo("segment.enabled is false: `streamer run` would stop at once")
    if offline:
        settings.kafka.connection()  # certificates and keys can be wrong without Kafka, too
        return
    # What aiokafka logs while it tries is said in one sentence, here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL + 1)
    asyncio.run(_ask_kafka(settings, make_calls(settings, write_key, transform)))


def _print_settings(settings: Config) -> None:
    rows = effective(settings)
    if not settings.files:
        typer.echo("no file was read: --config names one\n")

    console = Console()
    if console.is_terminal:
        table = Table("setting", "value", "from", box=None, header_style="bold", pad_edge=False)
        for row in rows:
            style = "dim" if row.origin == "default" else ""
            # As text, so that square brackets in a value aren't taken for markup.
            table.add_row(*(Text(cell, style=style, overflow="fold") for cell in row))
        console.print(table)
    else:
        key_width = max(len(row.key) for row in rows)
        value_width = min(40, max(len(row.value) for row in rows))
        for row in rows:
            typer.echo(f"{row.key:{key_width}}  {row.value:{value_width}}  {row.origin}")
    typer.echo()


async def _ask_kafka(settings: Config, calls: Calls) -> None:
    reached = await reach(settings)
    for line in reached.lines:
        typer.echo(line)
    async for line in waiting(settings, reached.partitions, calls):
        typer.echo(line)


async def waiting(
    settings: Config,
    partitions: list[Partition],
    calls: Calls,
    timeout_seconds: float = KAFKA_TIMEOUT,
) -> AsyncIterator[str]:
    """Look where the group stands, and what a start would read and cost. The group isn't joined, nothing is committed.

    Args:
        settings: says which group of which Kafka.
        partitions: those of the topics to read, which exist.
        calls: how records become calls.
        timeout_seconds: about how long each of two questions may take.

    Yields:
        What was found, a line each.

    Raises:
        StartError: Kafka doesn't answer, or doesn't let this user read.
    """
    kafka = settings.kafka
    connection, reset, group = kafka.connection(), kafka.auto_offset_reset, kafka.group_id
    try:
        standing = await stand(connection, group, partitions, timeout_seconds)
    except GroupAuthorizationFailedError:
        raise StartError(
            f"kafka.group_id: Kafka doesn't let this user read as group {group}: it needs READ on the group"
        ) from None
    except (TimeoutError, KafkaTimeoutError, KafkaConnectionError):
        raise StartError(
            f"Kafka told its topics, but nothing of group {group} within {timeout_seconds:g} s"
        ) from None
    except KafkaError as error:
        raise StartError(f"Kafka tells nothing of group {group}: {error}") from None
    if standing.behind:
        behind = sum(map(len, standing.behind.values()))
        number = count(len(standing.behind), "partition")
        yield f"group {group}: {count(behind, 'record')} behind in {number}"
    if standing.gone:
        backlog = await _look(connection, standing.gone, None, timeout_seconds)
        place = f"the earliest record: {backlog.records()}"
        if reset == "latest":
            place = f"now: {backlog.records()}, stay unread"
        yield (
            f"group {group}: its committed offsets are gone (retention, or the topic was made anew), so it goes on from"
            f" {place}"
        )
    if standing.first:
        earliest = reset == "earliest"
        backlog = await _look(
            connection, standing.first, calls if earliest else None, timeout_seconds
        )
        start, *costs = backlog.first_start(reset)
        yield f"group {group}: a first start, {start}"
        for line in costs:
            yield f"  {line}"
        if costs and calls.note:
            yield f"  {calls.note}"
        if backlog.offsets and earliest:
            yield '  to start from now instead: kafka.auto_offset_reset = "latest"'
        elif backlog.offsets:
            yield '  to read them instead: kafka.auto_offset_reset = "earliest"'


async def _look(
    connection: Mapping[str, Any],
    offsets: Mapping[Partition, range],
    calls: Calls | None,
    timeout_seconds: float,
) -> Backlog:
    backlog = await look(connection, offsets, calls, timeout_seconds)
    if isinstance(backlog.error, TopicAuthorizationFailedError):
        raise StartError(NOT_READ) from None
    return backlog
