"""What commands that look into Kafka share: whether it can be reached, its topics, and what its errors mean."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from streamer.backlog import count
from streamer.bootstrap import failure, hangs_up
from streamer.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamer.config import Config
    from streamer.core.model import Partition

KAFKA_TIMEOUT = 10.0
"""Seconds that Kafka may take to answer."""

NOT_READ = "Kafka doesn't let this user read kafka.topics: it needs READ on them"
"""What it means that a topic is refused."""


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
