"""Behaviour of `streamer check`."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from kafka_broker.broker import KafkaBroker, free_port
from streamer.bootstrap import explain
from streamer.cli.check import check, reach
from streamer.config import Config, load_config
from streamer.demo.broker import EmbeddedBroker
from streamer.errors import ConfigError, MappingError, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "wk_9fJ2mQ7xTz"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SEGMENT_API_WRITE_KEY", raising=False)
    level = logging.getLogger("aiokafka").level
    yield
    logging.getLogger("aiokafka").setLevel(level)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "streamer.toml"
    path.write_text(f'[segment]\nwrite_key = "{KEY}"\n[flush]\ninterval = "250ms"\n')
    return path


def config(**settings: Any) -> Config:
    return load_config(None, {key.replace("__", "."): value for key, value in settings.items()}, {})


# --- offline ---


def test_offline_prints_the_settings_in_effect(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every setting is a line with its value and where it came from, and the write key isn't among the values."""
    monkeypatch.setenv("STREAMER_FLUSH__MAX_CALLS", "100")
    check(file, offline=True)
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if "." in line}
    assert lines["flush.interval"] == ["250ms", str(file)]
    assert lines["flush.max_calls"] == ["100", "STREAMER_FLUSH__MAX_CALLS"]
    assert lines["flush.concurrency"] == ["8", "default"]
    assert lines["segment.write_key"][:2] == ["set,", "from"]
    assert "mapping: compiles" in out
    assert KEY not in out


def test_a_terminal_gets_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal the settings are a table, and square brackets in a value stay what they are."""
    file = tmp_path / "s.toml"
    file.write_text(f'[segment]\nwrite_key = "{KEY}"\n[kafka]\ngroup_id = "[bold]x"\n')
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    check(file, offline=True)
    out = capsys.readouterr().out
    assert "\x1b[" in out
    assert '"[bold]x"' in out
    assert "setting" in out
    assert KEY not in out


def test_a_write_key_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a write key the settings show, and then the one that is missing."""
    file = tmp_path / "s.toml"
    file.touch()
    with pytest.raises(ConfigError, match="no Segment write key"):
        check(file, offline=True)
    assert "segment.write_key" in capsys.readouterr().out


def test_a_disabled_segment_needs_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With segment.enabled = false there is nothing to send to, and that is said."""
    file = tmp_path / "s.toml"
    file.write_text("[segment]\nenabled = false\n")
    check(file, offline=True)
    assert "segment.enabled is false" in capsys.readouterr().out


def test_a_mapping_that_breaks_the_grammar(file: Path) -> None:
    """A mapping is compiled, so that a mistake in it shows before anything runs."""
    file.write_text(file.read_text() + '[transform.mapping.track]\nuserId = "a|nobody_made_this"\n')
    with pytest.raises(MappingError, match="userId"):
        check(file, offline=True)


def test_a_certificate_that_is_none_shows_offline(file: Path) -> None:
    """Files for TLS are opened even without Kafka."""
    file.write_text(
        file.read_text() + f'[kafka]\nsecurity_protocol = "SSL"\nssl_cafile = "{file}"\n'
    )
    with pytest.raises(ConfigError, match=r"kafka\.ssl_cafile"):
        check(file, offline=True)


# --- Kafka ---


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


def test_the_command_prints_what_was_found(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --offline the command reaches for Kafka, and its error is the real cause, one for each address."""
    ports = closed_port(), closed_port()
    servers = [f"127.0.0.1:{port}" for port in ports]
    file.write_text(file.read_text() + f"[kafka]\nbootstrap_servers = {servers}\n")
    with pytest.raises(StartError) as caught:
        check(file, offline=False)
    assert str(caught.value).splitlines() == [
        f"Kafka at {server}: connection refused: nothing listens there" for server in servers
    ]
    out, err = capsys.readouterr()
    assert "mapping: compiles" in out
    assert err == ""


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


def untrusted(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (socket.gaierror(-2, "Name or service not known"), "can't be resolved"),
        (untrusted(18, "self-signed certificate"), r"self-signed certificate \(kafka\.ssl_cafile"),
        (untrusted(62, "Hostname mismatch"), r"for another name: Hostname mismatch$"),
        (
            ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"),
            "listener speak SASL_SSL",
        ),
        (SaslAuthenticationFailed("Authentication failed"), r"refuses kafka\.sasl_username"),
        (UnsupportedSaslMechanismError(), r"doesn't offer kafka\.sasl_mechanism"),
        (IllegalSaslStateError(), "doesn't speak SASL_SSL"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_causes_are_explained(error: Exception, says: str) -> None:
    """What a connection raises becomes what to look at."""
    assert re.search(says, explain(error, "SASL_SSL"))
