"""Behaviour of `streamer check`."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiokafka.errors import (
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from cli.test_kafka import closed_port
from kafka_broker.broker import KafkaBroker, free_port
from kafka_broker.topics import Kafka, ToProduce, fresh_name
from streamer.bootstrap import explain
from streamer.cli.check import check, waiting
from streamer.config import Config, load_config
from streamer.errors import ConfigError, MappingError, StartError
from streamer.pipeline import make_calls, make_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
    assert lines["flush.concurrency"] == ['"adaptive"', "default"]
    assert lines["segment.write_key"][:2] == ["set,", "from"]
    assert "mapping: compiles" in out
    assert (
        "flush: a batch closes after 250ms; before that with 100 calls, with 475,000 bytes, or when 32,000,000 bytes"
        " are held\n" in out
    )
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


def composer(folder: Path, segment: bytes) -> Path:
    path = folder / "composer.json"
    path.write_bytes(
        b'{"extra":{"altis":{"modules":{"analytics":{"integrations":{"segment":%s}}}}}}' % segment
    )
    return path


def test_a_key_from_altis_is_told_from_where_and_never_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altis = composer(tmp_path, b'{"api_key":"%s"}' % KEY.encode())
    check(altis=altis, offline=True)
    out = capsys.readouterr().out
    assert re.search(rf"segment\.write_key +set, from {altis} +{altis}", out)
    assert "no file was read" not in out
    assert KEY not in out


def test_altis_may_disable_segment_and_a_file_enable_it_again(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altis = composer(tmp_path, b"false")
    check(altis=altis, offline=True)
    assert "segment.enabled is false" in capsys.readouterr().out
    file.write_text(file.read_text().replace("[segment]\n", "[segment]\nenabled = true\n"))
    check(file, altis, offline=True)
    assert "segment.enabled is false" not in capsys.readouterr().out


def test_altis_without_a_key_is_told_where_to_set_one(tmp_path: Path) -> None:
    altis = composer(tmp_path, b"true")
    with pytest.raises(ConfigError, match=rf"SEGMENT_API_WRITE_KEY, or .*api_key in {altis}"):
        check(altis=altis, offline=True)


def test_a_mapping_that_breaks_the_grammar(file: Path) -> None:
    """A mapping is compiled, so that a mistake in it shows before anything runs."""
    file.write_text(file.read_text() + '[transform.mapping.track]\nuserId = "a|nobody_made_this"\n')
    with pytest.raises(MappingError, match="userId"):
        check(file, offline=True)


def test_a_dead_letter_file_that_cannot_be_written_is_said(file: Path, tmp_path: Path) -> None:
    letters = tmp_path / "missing" / "letters.ndjson"
    file.write_text(f'{file.read_text()}[dead_letter]\nfile = "{letters}"\n')
    with pytest.raises(StartError, match=rf"dead_letter\.file = {letters}: can't be written"):
        check(file, offline=True)


def test_a_certificate_that_is_none_shows_offline(file: Path) -> None:
    """Files for TLS are opened even without Kafka."""
    file.write_text(
        file.read_text() + f'[kafka]\nsecurity_protocol = "SSL"\nssl_cafile = "{file}"\n'
    )
    with pytest.raises(ConfigError, match=r"kafka\.ssl_cafile"):
        check(file, offline=True)


# --- Kafka ---


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


# --- what a start would read and cost ---

START_MS = 1_762_071_240_000  # 2025-11-02 08:14 UTC


def page_views(count: int, partition: int = 0) -> list[ToProduce]:
    """Of one visitor of the partition, a minute apart."""
    event = {"event_type": "pageView", "endpoint": {"Id": f"visitor-{partition}"}}
    return [
        ToProduce(
            None,
            orjson.dumps({**event, "event_timestamp": START_MS + number}),
            START_MS + 60_000 * number,
            partition=partition,
        )
        for number in range(count)
    ]


@pytest.fixture
def group_lines(
    file: Path, kafka: Kafka, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs the command and gives what it says of the group."""
    base = file.read_text()

    def run(group: str, topics: str, **settings: str) -> list[str]:
        lines = {"bootstrap_servers": kafka.bootstrap, "group_id": group, **settings}
        toml = "".join(f'{key} = "{value}"\n' for key, value in lines.items())
        if "topic_pattern" not in settings:
            toml += f'topics = "{topics}"\n'
        file.write_text(f'{base}[kafka]\n{toml}[dead_letter]\nfile = "{file}.letters"\n')
        check(file)
        out = capsys.readouterr().out.splitlines()
        return out[[line.startswith("dead letters:") for line in out].index(True) + 1 :]

    return run


def test_a_first_start_says_what_it_reads_and_costs(
    kafka: Kafka, group_lines: Callable[..., list[str]]
) -> None:
    """How many records since when, how many billed calls, and how to start from now instead; nothing is committed."""
    topic, group = asyncio.run(kafka.create_topic(partitions=4)), fresh_name("group")
    new = f"group {group}: a first start, "
    assert group_lines(group, topic) == [new + "with nothing to read yet in 4 partitions"]
    for partition in range(2):
        asyncio.run(kafka.produce(topic, page_views(700, partition)))
    there = "1,400 records in 4 partitions, back to 2025-11-02 08:14 UTC"
    expected = [
        f"{new}from the earliest record: {there}",
        "  about 1,402 billed calls (1 a record)",
        '  to start from now instead: kafka.auto_offset_reset = "latest"',
    ]
    assert group_lines(group, topic) == expected
    assert group_lines(group, "", topic_pattern=f"{topic}$") == expected
    assert group_lines(group, topic, auto_offset_reset="latest") == [
        f"{new}from now on: {there}, stay unread",
        '  to read them instead: kafka.auto_offset_reset = "earliest"',
    ]
    assert asyncio.run(kafka.committed(group, topic)) == {}


def test_a_group_that_was_here_before_says_how_far_it_is_behind(
    kafka: Kafka, group_lines: Callable[..., list[str]]
) -> None:
    """And of partitions that are new to it, or whose committed offsets are gone, where it starts there."""
    topic, group = asyncio.run(kafka.create_topic(partitions=4)), fresh_name("group")
    for partition in range(4):
        asyncio.run(kafka.produce(topic, page_views(10, partition)))
    asyncio.run(kafka.delete_records((topic, 2), 4))
    asyncio.run(kafka.commit(group, {(topic, 0): 3, (topic, 1): 9, (topic, 2): 2}))
    name = f"group {group}: "
    gone = f"{name}its committed offsets are gone (retention, or the topic was made anew), so it goes on from"
    there = "6 records in 1 partition, back to 2025-11-02 08:18 UTC"
    assert group_lines(group, topic) == [
        f"{name}8 records behind in 2 partitions",
        f"{gone} the earliest record: {there}",
        f"{name}a first start, from the earliest record: 10 records in 1 partition, back to 2025-11-02 08:14 UTC",
        "  about 11 billed calls (1.1 a record)",
        '  to start from now instead: kafka.auto_offset_reset = "latest"',
    ]
    assert group_lines(group, topic, auto_offset_reset="latest")[:2] == [
        f"{name}8 records behind in 2 partitions",
        f"{gone} now: {there}, stay unread",
    ]
    asyncio.run(kafka.commit(group, asyncio.run(kafka.end_offsets(topic))))
    assert group_lines(group, topic) == [f"group {group}: 0 records behind in 4 partitions"]


def test_a_kafka_that_tells_nothing_of_the_group_is_given_up() -> None:
    """In a sentence, within the time that it has."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            settings = config(kafka__bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}")
            calls = make_calls(settings, KEY, make_transform(settings, KEY))
            async with asyncio.timeout(5):
                with pytest.raises(StartError, match="group streamer"):
                    [line async for line in waiting(settings, [("events", 0)], calls, 0.3)]

    asyncio.run(main())


def test_what_a_user_may_not_read(require: Any, file: Path) -> None:
    """A user that may see a topic but not the group, or the group but not read the topic, is told which it is."""
    require("java", "mvn")
    port, login_port, controller_port = free_port(), free_port(), free_port()
    listeners = f"PLAINTEXT://127.0.0.1:{port},LOGIN://127.0.0.1:{login_port}"
    properties = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller_port}",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,LOGIN:SASL_PLAINTEXT",
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.login.plain.sasl.jaas.config": (
            'org.apache.kafka.common.security.plain.PlainLoginModule required user_streamer="right";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    file.write_text(
        f"""{file.read_text()}
        [kafka]
        bootstrap_servers = "127.0.0.1:{login_port}"
        topics = "events"
        security_protocol = "SASL_PLAINTEXT"
        sasl_mechanism = "PLAIN"
        sasl_username = "streamer"
        sasl_password = "right"
        """
    )

    with KafkaBroker(properties, port=port) as broker:
        kafka = Kafka(broker.bootstrap)
        asyncio.run(kafka.create_topic("events", partitions=1))
        asyncio.run(kafka.produce("events", page_views(3)))

        def allow(kind: ResourceType, name: str, operation: AclOperation) -> None:
            acl = AclBinding(
                kind, name, ResourcePatternType.LITERAL, "User:streamer", "*", operation,
                AclPermissionType.ALLOW,
            )  # fmt: skip
            for done in kafka._admin.create_acls([acl]).values():
                done.result(30)

        allow(ResourceType.TOPIC, "events", AclOperation.DESCRIBE)
        with pytest.raises(StartError, match=r"kafka\.group_id: .* group streamer: it needs READ"):
            check(file)
        allow(ResourceType.GROUP, "streamer", AclOperation.READ)
        with pytest.raises(StartError, match=r"read kafka\.topics: it needs READ"):
            check(file)
        allow(ResourceType.TOPIC, "events", AclOperation.READ)
        check(file)


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
