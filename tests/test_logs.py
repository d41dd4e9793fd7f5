"""Behaviour of logging: one pipeline, no secrets, no floods."""

from __future__ import annotations

import base64
import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import logs
from streamer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "wk_8fJq2nW0"
NOT_NUL = st.characters(exclude_characters="\0", codec="utf-8")
PASSWORD = 'pa"ss\\wörd!'


def refuse(*what: str) -> None:
    raise ValueError(what)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, kafka = logging.getLogger(), logging.getLogger("aiokafka")
    handlers, level, kafka_level = root.handlers[:], root.level, kafka.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    kafka.setLevel(kafka_level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_json_when_nobody_looks() -> None:
    """Where standard error isn't a terminal, each line is one JSON object with event, level, logger and time."""
    stream = io.StringIO()
    logs.configure(stream=stream, environ={})
    structlog.get_logger("streamer.source").info("joined", partitions=4)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "joined",
        "level": "info",
        "logger": "streamer.source",
        "partitions": 4,
    }


def test_a_terminal_gets_the_console_form() -> None:
    """On a terminal a line is for reading, with colours unless NO_COLOR forbids them."""
    coloured, plain = Terminal(), Terminal()
    logs.configure(stream=coloured, environ={})
    structlog.get_logger("x").info("joined", partitions=4)
    logs.configure(stream=plain, environ={"NO_COLOR": "1"})
    structlog.get_logger("x").info("joined", partitions=4)
    assert "\x1b[" in coloured.getvalue()
    assert "joined" in plain.getvalue()
    assert "partitions=4" in plain.getvalue()
    assert "\x1b[" not in plain.getvalue()


def test_the_variable_decides_over_the_terminal() -> None:
    """STREAMER_LOG_FORMAT picks the form whatever the stream is."""
    terminal, pipe = Terminal(), io.StringIO()
    logs.configure(stream=terminal, environ={"STREAMER_LOG_FORMAT": "json"})
    structlog.get_logger("x").info("a")
    logs.configure(stream=pipe, environ={"STREAMER_LOG_FORMAT": "console"})
    structlog.get_logger("x").info("b")
    assert lines(terminal)[0]["event"] == "a"
    assert not pipe.getvalue().startswith("{")


def test_libraries_share_the_pipeline() -> None:
    """What a library logs with the standard module looks like streamer's own lines, arguments put in."""
    stream = io.StringIO()
    logs.configure(stream=stream, environ={})
    logging.getLogger("aiohttp.server").error("request from %s failed", "127.0.0.1")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == (
        "request from 127.0.0.1 failed",
        "error",
        "aiohttp.server",
    )


def test_the_level_is_kept() -> None:
    """Lines below the level are left out, whoever logs them."""
    stream = io.StringIO()
    logs.configure("warning", stream=stream, environ={})
    structlog.get_logger("x").info("no")
    logging.getLogger("y").info("no")
    structlog.get_logger("x").warning("yes")
    logging.getLogger("y").warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("level", "shown"), [("info", ["warning"]), ("debug", ["debug", "info", "warning"])]
)
def test_aiokafka_talks_below_warning_only_at_debug(level: str, shown: list[str]) -> None:
    """Info lines of aiokafka are left out unless everything is wanted."""
    stream = io.StringIO()
    logs.configure(level, stream=stream, environ={})
    for name in ("debug", "info", "warning"):
        getattr(logging.getLogger("aiokafka.cluster"), name)(name)
    assert [line["event"] for line in lines(stream)] == shown


@pytest.mark.parametrize("style", ["json", "console"])
def test_secrets_never_show(style: str) -> None:
    """A secret is masked in messages, arguments, values, keys, nested values and tracebacks, however it is escaped."""
    stream = io.StringIO()
    logs.configure(secrets=[KEY, PASSWORD], stream=stream, environ={"STREAMER_LOG_FORMAT": style})
    log = structlog.get_logger("x")
    log.warning("key %s", KEY, a=KEY, b={"c": [PASSWORD]}, **{KEY: 1})
    log.warning("header", authorization="Basic " + base64.b64encode(f"{KEY}:".encode()).decode())
    logging.getLogger("y").warning("a %s, b %r", KEY, [PASSWORD])
    try:
        refuse(KEY, PASSWORD)
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert text.count(logs.MASK) >= 8
    for part in (KEY, PASSWORD, "wörd", "w\\u00f6rd", base64.b64encode(KEY.encode()).decode()[:8]):
        assert part not in text
    if style == "json":
        assert len(lines(stream)) == 4


def test_a_short_secret_leaves_words_alone() -> None:
    """A password that is part of common words is masked only where it stands alone."""
    mask: Any = logs.masker(["info"])
    assert mask(None, "", "information for user=info") == "information for user=[secret]"


@settings(deadline=None)
@given(st.text(NOT_NUL, min_size=1), st.text(), st.text())
def test_a_long_secret_is_masked_whatever_stands_around_it(
    secret: str, before: str, after: str
) -> None:
    """No text around a secret of eight characters and more lets it through."""
    secret = secret * 8
    mask: Any = logs.masker([secret])
    assert secret not in mask(None, "", before + secret + after).replace(logs.MASK, "\0")


def test_no_secrets_mask_nothing() -> None:
    """Empty secrets, and none, leave every line as it is."""
    mask: Any = logs.masker(["", ""])
    assert mask(None, "", "a b") == "a b"


def test_configuring_again_replaces() -> None:
    """A second call leaves one handler, and reaches loggers that exist already."""
    first, second = io.StringIO(), io.StringIO()
    logs.configure(stream=first, environ={})
    log = structlog.get_logger("x")
    log.info("a")
    logs.configure(stream=second, environ={})
    log.info("b")
    logging.getLogger("y").info("c")
    assert [line["event"] for line in lines(first)] == ["a"]
    assert [line["event"] for line in lines(second)] == ["b", "c"]


@pytest.mark.parametrize(
    ("level", "environ", "says"),
    [("loud", {}, "--log-level"), ("info", {"STREAMER_LOG_FORMAT": "xml"}, "STREAMER_LOG_FORMAT")],
)
def test_a_wrong_choice_is_named(level: str, environ: dict[str, str], says: str) -> None:
    """A level or format that isn't known is a ConfigError that names it."""
    with pytest.raises(ConfigError, match=says):
        logs.configure(level, environ=environ)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def record(
    message: str, *args: object, name: str = "aiokafka.conn", level: int = logging.ERROR
) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, message, args, None)


def test_a_flood_is_one_line_and_a_count() -> None:
    """Of one shape one line passes in ten seconds, and the next that passes says how many were held back."""
    clock = Clock()
    limit = logs.RateLimit("aiokafka", 10.0, clock)
    passed = []
    for tick in range(400):
        clock.now = tick * 0.1
        line = record("Unable to connect to %s: %s", "10.0.0.1", tick)
        if limit.filter(line):
            passed.append((clock.now, getattr(line, "suppressed", 0)))
    assert passed == [(0.0, 0), (10.0, 99), (20.0, 99), (30.0, 99)]


def test_shapes_are_told_apart() -> None:
    """Another message, level or logger is another shape; numbers in a message aren't."""
    limit = logs.RateLimit("aiokafka", 10.0, Clock())
    assert limit.filter(record("node 1 is gone"))
    assert not limit.filter(record("node 27 is gone"))
    assert limit.filter(record("node 1 is back"))
    assert limit.filter(record("node 1 is gone", level=logging.WARNING))
    assert limit.filter(record("node 1 is gone", name="aiokafka.client"))


def test_only_the_named_logger_is_limited() -> None:
    """Lines of other loggers, and debug lines, always pass."""
    limit = logs.RateLimit("aiokafka", 10.0, Clock())
    assert all(limit.filter(record("x", name="streamer.source")) for _ in range(3))
    assert all(limit.filter(record("x", level=logging.DEBUG)) for _ in range(3))


def test_shapes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limiter's memory doesn't grow with the number of shapes, and forgets the oldest first."""
    monkeypatch.setattr(logs.RateLimit, "_MOST_SHAPES", 2)
    limit = logs.RateLimit("aiokafka", 10.0, Clock())
    assert [limit.filter(record(text)) for text in ("a", "b", "c", "a", "c")] == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert len(limit._shapes) == 2


def test_the_count_reaches_the_line() -> None:
    """How many lines were held back stands in the line that is written."""
    stream = io.StringIO()
    logs.configure(stream=stream, environ={})
    (handler,) = [known for known in logging.getLogger().handlers if known.get_name() == "streamer"]
    (limit,) = handler.filters
    assert isinstance(limit, logs.RateLimit)
    limit._clock = clock = Clock()
    for clock.now in (0.0, 1.0, 2.0, 11.0):
        logging.getLogger("aiokafka.client").error("gone")
    assert [line.get("suppressed") for line in lines(stream)] == [None, 2]
