"""`streamer check`: what would run, before it runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from aiokafka.client import AIOKafkaClient
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
from streamer.bootstrap import failure, hangs_up
from streamer.cli import AltisOption
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

KAFKA_TIMEOUT = 10.0
"""Seconds that Kafka may take to answer."""


def check(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="The TOML file; without it, only the environment counts.",
        ),
    ] = None,
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


class Reached(NamedTuple):
    """What was found in Kafka.

    Attributes:
        lines: for a person.
        partitions: those of the topics to read.
    """

    lines: list[str]
    partitions: list[Partition]


async def reach(settings: Config, timeout_seconds: float = KAFKA_TIMEOUT) -> Reached:
    """Connect to Kafka and look for the topics, without making any.

    Args:
        settings: says which Kafka and which topics.
        timeout_seconds: how long each of the two may take.

    Raises:
        ConfigError: a certificate or key can't be used.
        StartError: Kafka can't be reached, or a topic to read doesn't exist.
    """
    kafka = settings.kafka
    connection = kafka.connection()
    reached, failures = [], []
    for server in kafka.bootstrap_servers:
        cause = await failure(server, connection, timeout_seconds)
        if cause is None:
            reached.append(server)
        else:
            failures.append(f"Kafka at {server}: {cause}")
    if not reached:
        raise StartError("\n".join(failures))
    client = AIOKafkaClient(
        **{**connection, "bootstrap_servers": reached},
        request_timeout_ms=int(timeout_seconds * 1000),
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            try:
                await client.bootstrap()
            except KafkaError:
                # A listener with SASL tells anyone its versions, and hangs up on who asks for more without logging in.
                raise StartError(
                    f"Kafka at {reached[0]}: {hangs_up(kafka.security_protocol)}"
                ) from None
            brokers = [f"{broker.host}:{broker.port}" for broker in client.cluster.brokers()]
            try:
                cluster = await client.fetch_all_metadata()
            except KafkaError:
                raise StartError(
                    await _unreachable(brokers, reached[0], connection, timeout_seconds)
                ) from None
    except TimeoutError:
        raise StartError(
            f"Kafka at {reached[0]} took the connection, but told nothing of its topics within {timeout_seconds:g} s"
        ) from None
    finally:
        await client.close()
    partitions = {
        topic: sorted(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics()
    }
    topics = _topics(settings, partitions)
    lines = [
        *failures,
        f"Kafka: {count(len(brokers), 'broker')}, by {reached[0]}",
        *(f"topic {topic}: {count(len(partitions[topic]), 'partition')}" for topic in topics),
        _dead_letters(settings, partitions),
    ]
    return Reached(lines, [(topic, number) for topic in topics for number in partitions[topic]])


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
        raise StartError(
            "Kafka doesn't let this user read kafka.topics: it needs READ on them"
        ) from None
    return backlog


def _topics(settings: Config, partitions: Mapping[str, list[int]]) -> list[str]:
    kafka = settings.kafka
    if kafka.topic_pattern:
        topics = sorted(topic for topic in partitions if kafka.consumes(topic))
        if not topics:
            raise StartError(f"no topic matches kafka.topic_pattern {kafka.topic_pattern}")
    else:
        topics = list(kafka.topics)
    missing = [topic for topic in topics if topic not in partitions]
    if missing:
        there = ", ".join(sorted(partitions)[:10]) or "none"
        raise StartError(
            f"kafka.topics: {', '.join(missing)} {'does' if len(missing) == 1 else 'do'} not exist in Kafka, or may not"
            f" be seen; there are: {there}. `streamer run` waits for a topic, and never makes one"
        )
    return topics


def _dead_letters(settings: Config, partitions: Mapping[str, list[int]]) -> str:
    letters = settings.dead_letter.topic
    if letters and letters in partitions:
        return f"dead letters: topic {letters}: {count(len(partitions[letters]), 'partition')}"
    if letters:
        return f"dead letters: topic {letters} does not exist yet: make it, unless Kafka makes what is written to"
    return f"dead letters: file {settings.dead_letter.file}"


async def _unreachable(
    brokers: list[str], server: str, connection: Mapping[str, Any], timeout_seconds: float
) -> str:
    """Why brokers can't be reached although one told their addresses."""
    causes = []
    for broker in brokers:
        cause = await failure(broker, connection, timeout_seconds / max(1, len(brokers)) / 2)
        if cause:
            causes.append(f"{broker} ({cause})")
    if causes:
        return (
            f"Kafka at {server} says that its brokers are at {', '.join(causes)}: check advertised.listeners of the"
            " brokers, which clients must be able to reach"
        )
    return f"Kafka at {server} took the connection, but told nothing of its topics"
