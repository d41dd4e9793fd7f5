"""Whether Kafka can be reached, and what is there: what commands share that look into it."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from kafka_broker.broker import KafkaBroker, free_port
from streamer.cli.kafka import reach
from streamer.config import Config, load_config
from streamer.demo.broker import EmbeddedBroker
from streamer.errors import StartError


def config(**settings: Any) -> Config:
    return load_config(None, {key.replace("__", "."): value for key, value in settings.items()}, {})


async def produce(bootstrap: str, *topics: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    for topic in topics:
        await producer.send_and_wait(topic, b"x")
    await producer.stop()


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_what_is_found_in_kafka() -> None:
    """With Kafka there, brokers, topics with their partitions, and what is missing are told; nothing is made."""

    async def main() -> None:
        async with EmbeddedBroker() as broker:
            await produce(broker.bootstrap, "events.a", "events.b")
            one = config(kafka__bootstrap_servers=broker.bootstrap, kafka__topics="events.a")
            assert (await reach(one)).lines[:2] == [
                f"Kafka: 1 broker, by {broker.bootstrap}",
                "topic events.a: 4 partitions",
            ]
            for _ in range(2):  # looking for it hasn't made it
                lines = (await reach(one)).lines
                assert "topic events.a.dead-letter does not exist yet" in lines[-1]
            await produce(broker.bootstrap, "events.a.dead-letter")
            lines = (await reach(one)).lines
            assert lines[-1] == "dead letters: topic events.a.dead-letter: 4 partitions"

            missing = config(
                kafka__bootstrap_servers=broker.bootstrap, kafka__topics="events.a,nope,nor.this"
            )
            for _ in range(2):
                with pytest.raises(StartError, match=r"nope, nor\.this do not exist.*events\.b"):
                    await reach(missing)

            half = f"127.0.0.1:{closed_port()}"
            pattern = config(
                kafka__bootstrap_servers=[half, broker.bootstrap],
                kafka__topic_pattern=r"events\..$",
                dead_letter__file="letters.ndjson",
            )
            assert (await reach(pattern)).lines == [
                f"Kafka at {half}: connection refused: nothing listens there",
                f"Kafka: 1 broker, by {broker.bootstrap}",
                "topic events.a: 4 partitions",
                "topic events.b: 4 partitions",
                "dead letters: file letters.ndjson",
            ]
            nothing = config(
                kafka__bootstrap_servers=broker.bootstrap,
                kafka__topic_pattern="x",
                dead_letter__file="l",
            )
            with pytest.raises(StartError, match="no topic matches"):
                await reach(nothing)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answers", "says"), [(False, "closed the connection"), (None, "no answer in time")]
)
def test_something_else_listens_there(answers: bool | None, says: str) -> None:
    """A server that hangs up, or says nothing, is told as that, with the protocol that was tried."""

    async def main() -> None:
        over = asyncio.Event()

        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if answers is None:
                await over.wait()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(StartError, match=rf"{says}.*PLAINTEXT"):
                await reach(
                    config(kafka__bootstrap_servers=f"127.0.0.1:{port}"), timeout_seconds=0.3
                )
            over.set()

    asyncio.run(main())


def test_tls_where_there_is_none() -> None:
    """Speaking TLS to a plain listener is told as that."""

    async def main() -> None:
        async with EmbeddedBroker() as broker:
            tls = config(kafka__bootstrap_servers=broker.bootstrap, kafka__security_protocol="SSL")
            with pytest.raises(StartError, match=r"does its listener speak SSL\?"):
                await reach(tls, timeout_seconds=5)

    asyncio.run(main())


def test_what_a_real_kafka_refuses(require: Any) -> None:
    """With Apache Kafka: right credentials pass; wrong ones, no login and unreachable brokers are told apart."""
    require("java", "mvn")
    sasl_port, lost_port = free_port(), free_port()
    port, controller_port = free_port(), free_port()
    user = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_streamer="right";'
    listeners = f"PLAINTEXT://127.0.0.1:{port},LOGIN://127.0.0.1:{sasl_port}"
    properties = {
        "listeners": f"{listeners},LOST://127.0.0.1:{lost_port},CONTROLLER://127.0.0.1:{controller_port}",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "advertised.listeners": f"{listeners},LOST://127.0.0.1:{closed_port()}",
        "listener.security.protocol.map": (
            "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,LOST:PLAINTEXT,LOGIN:SASL_PLAINTEXT"
        ),
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.login.plain.sasl.jaas.config": user,
    }
    login = {
        "kafka__bootstrap_servers": f"127.0.0.1:{sasl_port}",
        "kafka__security_protocol": "SASL_PLAINTEXT",
        "kafka__sasl_mechanism": "PLAIN",
        "kafka__sasl_username": "streamer",
        "kafka__sasl_password": "right",
        "kafka__topics": "events",
    }

    async def refusal(**settings: Any) -> str:
        with pytest.raises(StartError) as caught:
            await reach(config(**settings))
        return str(caught.value)

    async def main() -> None:
        assert "events does not exist" in await refusal(**login)
        await produce(f"127.0.0.1:{port}", "events")
        assert (await reach(config(**login))).lines[
            0
        ] == f"Kafka: 1 broker, by 127.0.0.1:{sasl_port}"
        wrong = await refusal(**{**login, "kafka__sasl_password": "wrong"})
        assert "refuses kafka.sasl_username and kafka.sasl_password" in wrong
        assert "doesn't offer" in await refusal(
            **{**login, "kafka__sasl_mechanism": "SCRAM-SHA-256"}
        )
        elsewhere = {**login, "kafka__bootstrap_servers": f"127.0.0.1:{port}"}
        assert "doesn't speak SASL_PLAINTEXT" in await refusal(**elsewhere)
        assert "speak PLAINTEXT?" in await refusal(
            kafka__bootstrap_servers=f"127.0.0.1:{sasl_port}"
        )
        lost = await refusal(kafka__bootstrap_servers=f"127.0.0.1:{lost_port}")
        assert re.search(
            r"its brokers are at 127\.0\.0\.1:\d+ \(connection refused.*advertised\.listeners", lost
        )

    with KafkaBroker(properties, port=port):
        asyncio.run(main())
