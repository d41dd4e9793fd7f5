"""`streamer check`: what would run, before it runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamer.bootstrap import failure, hangs_up
from streamer.config import effective, load_config, require_write_key
from streamer.errors import StartError
from streamer.pipeline import make_transform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamer.config import Config

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
    offline: Annotated[bool, typer.Option("--offline", help="Don't reach for Kafka.")] = False,
) -> None:
    """Check the configuration, and that Kafka can be reached.

    Prints every setting in effect and where it came from. Exits with status 2 and says why if `streamer run` couldn't
    do its work with them.
    """
    settings = load_config(config)
    _print_settings(settings)
    write_key = require_write_key(settings) if settings.segment.enabled else "none"

    make_transform(settings, write_key)
    typer.echo("mapping: compiles")
    if not settings.segment.enabled:
        typer.echo("segment.enabled is false: `streamer run` would stop at once")
    if offline:
        settings.kafka.connection()  # certificates and keys can be wrong without Kafka, too
        return
    # What aiokafka logs while it tries is said in one sentence, here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL + 1)
    for line in asyncio.run(reach(settings)):
        typer.echo(line)


def _print_settings(settings: Config) -> None:
    rows = effective(settings)
    if settings.file is None:
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


async def reach(settings: Config, timeout_seconds: float = KAFKA_TIMEOUT) -> list[str]:
    """Connect to Kafka and look for the topics, without making any.

    Args:
        settings: says which Kafka and which topics.
        timeout_seconds: how long each of the two may take.

    Returns:
        What was found, a line each.

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
        topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics()
    }
    return [
        *failures,
        f"Kafka: {_count(len(brokers), 'broker')}, by {reached[0]}",
        *_topics(settings, partitions),
    ]


def _topics(settings: Config, partitions: dict[str, int]) -> list[str]:
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
            f" be seen; there are: {there}"
        )
    lines = [f"topic {topic}: {_count(partitions[topic], 'partition')}" for topic in topics]
    letters = settings.dead_letter.topic
    if letters and letters in partitions:
        lines.append(f"dead letters: topic {letters}: {_count(partitions[letters], 'partition')}")
    elif letters:
        lines.append(
            f"dead letters: topic {letters} does not exist yet: make it, unless Kafka makes what is written to"
        )
    else:
        lines.append(f"dead letters: file {settings.dead_letter.file}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


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
