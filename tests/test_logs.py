"""Behaviour of logging: one pipeline, no secrets, no floods."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import logs
from streamer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(capture=False)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
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
    ("level", "shown"), [("info", ["warning"]), ("debug", ["info", "warning"])]
)
def test_aiokafka_talks_below_warning_only_at_debug(level: str, shown: list[str]) -> None:
    """Its own debug lines are a thousand a second, which nobody can follow."""
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
    mask = logs.masker(["info"])
    assert mask("information for user=info") == "information for user=[secret]"


@settings(deadline=None)
@given(st.text(NOT_NUL, min_size=1), st.text(), st.text())
def test_a_long_secret_is_masked_whatever_stands_around_it(
    secret: str, before: str, after: str
) -> None:
    """No text around a secret of eight characters and more lets it through."""
    secret = secret * 8
    mask = logs.masker([secret])
    assert secret not in mask(before + secret + after).replace(logs.MASK, "\0")


def test_no_secrets_mask_nothing() -> None:
    """Empty secrets, and none, leave every line as it is."""
    mask = logs.masker(["", ""])
    assert mask("a b") == "a b"


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


# --- what a line may not do -----------------------------------------------------------------------


class Odd:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def written(style: str, log: Callable[[], None]) -> str:
    stream = io.StringIO()
    logging.getLogger().handlers.clear()  # pytest's own fail at what ours take
    logs.configure(stream=stream, environ={"STREAMER_LOG_FORMAT": style})
    log()
    return stream.getvalue()


ANY = st.text(st.characters(codec=None), max_size=20)
NASTY = st.one_of(
    ANY,
    st.sampled_from(
        ["a\n2026-01-01T00:00:00.000Z [error] b", "\x1b[2J\x9b1m", "\u202e", "\udcff", "\r", ""]
    ),
)


def nasty(text: str, key: str) -> None:
    """Everything that a line can have, of one text."""
    log = structlog.get_logger("streamer.x")
    facts = {f"x{key}": text, "list": [text, {text: Odd(text)}], "odd": Odd(text), "stack": text}
    began = f"began {text}"
    log.info(began, **facts)
    logging.getLogger(f"site.{text}").warning("%s: %r", text, [text])
    try:
        refuse(text)
    except ValueError:
        log.exception(text)


@settings(deadline=None)
@given(NASTY, NASTY)
def test_a_line_of_json_is_one_object_whatever_is_in_it(text: str, key: str) -> None:
    said = written("json", lambda: nasty(text, key))
    assert said.isascii()
    assert all(one.isprintable() for one in said.replace("\n", "").replace("\x7f", ""))
    first, second, third = map(orjson.loads, said.splitlines())
    assert first["event"].startswith("began ")
    assert second["level"] == "warning"
    assert "Traceback" in third["exception"]


@settings(deadline=None)
@given(NASTY, NASTY)
def test_nothing_begins_a_line_or_moves_the_cursor_on_a_terminal(text: str, key: str) -> None:
    said = written("console", lambda: nasty(text, key))
    assert all(one.isprintable() for one in said.replace("\n", ""))
    began = [line for line in said.split("\n")[:-1] if not line.startswith("    ")]
    assert len(began) == 3
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z \[(info|warning|error) ", line) for line in began
    )


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_long_text_is_cut_and_half_a_secret_never_left(style: str) -> None:
    secret = "s3cret-" * 20
    stream = io.StringIO()
    logs.configure(secrets=[secret], stream=stream, environ={"STREAMER_LOG_FORMAT": style})
    text = "x" * (logs.MOST_CHARACTERS - 50) + secret * 1000
    structlog.get_logger("x").info(text, value=text, nested=[text])
    logging.getLogger("x").error("%s", text)
    try:
        refuse(secret * 1000)
    except ValueError:
        logging.getLogger("x").exception("failed")
    said = stream.getvalue()
    assert "s3cret" not in said
    assert len(said) < 40 * logs.MOST_CHARACTERS
    assert "characters)" in said


def test_what_cannot_be_a_value_of_json_is_told_all_the_same() -> None:
    said = {
        "nan": float("nan"),
        "bytes": b"a",
        "set": {1},
        "keys": {1: 2},
        "int": 2**70,
        "none": None,
    }
    line = orjson.loads(written("json", lambda: structlog.get_logger("x").info("a", **said)))
    assert {key: line[key] for key in said} == {
        "nan": "nan", "bytes": "b'a'", "set": "{1}", "keys": {"1": 2}, "int": 2**70, "none": None,
    }  # fmt: skip


def test_a_line_that_cannot_be_written_is_said_without_what_is_in_it() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError(KEY)

    def log() -> None:
        structlog.get_logger("a").info("a", broken=Broken())
        logging.getLogger("b").info("%d", KEY)

    said = written("json", log)
    assert KEY not in said
    assert [orjson.loads(line)["event"] for line in said.splitlines()] == [
        "a line of a can't be written: RuntimeError",
        "a line of b can't be written: TypeError",
    ]


def test_what_nobody_catches_and_warnings_are_lines_too() -> None:
    """The last words of a process are one line of JSON, as all before."""
    program = f"""
import threading, warnings
from streamer import logs
logs.configure(secrets=[{KEY!r}], environ={{"STREAMER_LOG_FORMAT": "json"}})
logs.catch_all()
warnings.warn("old", RuntimeWarning)
def fail():
    raise ValueError({KEY!r})
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert KEY not in done.stderr
    warned, thread, process = map(orjson.loads, done.stderr.splitlines())
    assert "RuntimeWarning: old" in warned["event"]
    assert (thread["event"], process["event"]) == ("a thread ended", "streamer ends: a bug")
    assert thread["exception"].endswith("ValueError: [secret]")
    assert (process["level"], process["logger"]) == ("critical", "streamer")


# --- how many lines -------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def record(
    message: str,
    *args: object,
    name: str = "streamer.x",
    level: int = logging.ERROR,
    **facts: object,
) -> logging.LogRecord:
    """A line of the standard library, or with facts one of structlog."""
    said: Any = {"event": message, **facts} if facts else message
    return logging.LogRecord(name, level, "", 0, said, args, None)


class Limited:
    """A limit in a time of its own, and what it let through: when, which, and how many it had held back."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.limit = logs.RateLimit(clock=self.clock)
        self.written: list[tuple[float, str, int]] = []

    def at(self, seconds: float, *records: logging.LogRecord) -> None:
        """Log, after the timer has done what it would have done until then."""
        while self.limit.holds and self.clock.now + self.limit.seconds_left() <= seconds:
            self.clock.now += self.limit.seconds_left()
            self._note(self.limit.due())
        self.clock.now = seconds
        for one in records:
            one.created = seconds
            self._note(self.limit.take(one))

    def _note(self, records: Iterable[logging.LogRecord]) -> None:
        for one in records:
            said = one.msg["event"] if isinstance(one.msg, dict) else one.getMessage()
            held_back = one.__dict__.get("held_back", 0)
            self.written.append((self.clock.now, said, held_back))

    def said(self) -> list[str]:
        said = [text for _, text, _ in self.written]
        self.written.clear()
        return said


def test_a_flood_is_a_few_lines_and_then_fewer_and_fewer() -> None:
    """The pause between two lines doubles up to ten minutes, and no line is lost from the count."""
    limited = Limited()
    for tick in range(36_000):
        limited.at(tick * 0.1, record(f"line {tick}"))
    times = [at for at, _, _ in limited.written]
    assert times == pytest.approx([0, 0.1, 0.2, 30, 60, 120, 240, 480, 960, 1560, 2160, 2760, 3360])
    counts = [held_back for _, _, held_back in limited.written]
    assert sum(counts) + len(counts) == pytest.approx(33_600, abs=1)
    limited.at(3700)
    assert limited.written[-1][1] == "line 35999", "and the last one, once none comes any more"
    assert sum(held_back for _, _, held_back in limited.written) + len(limited.written) == 36_000
    limited.said()
    limited.at(4000, record("line 1"), record("line 2"))
    assert limited.said() == ["line 1", "line 2"], "all is as at first"


def test_the_first_lines_of_aiokafka_are_one() -> None:
    limited = Limited()
    limited.at(0, *(record("node %s is gone", n, name="aiokafka.conn") for n in range(9)))
    assert limited.said() == ["node 0 is gone"]
    limited.at(31)
    assert limited.written == [(30, "node 8 is gone", 7)]


def test_lines_that_differ_in_more_than_numbers_are_told_apart() -> None:
    """By message, level and logger, and streamer's own by what they are about."""
    limited = Limited()
    for _ in range(logs.MOST_LINES):
        limited.at(0, record("node 1 is gone at a7-fade-c7"))
    for held in (record("node 27 is gone at 7fa3-b0-1b"), record("a", reason="b 1")):
        limited.at(0, *[held] * (logs.MOST_LINES + 1))
    limited.said()
    others = [
        record("node 1 is back"),
        record("node 1 is gone at 0x1", level=logging.WARNING),
        record("node 1 is gone at 0x1", name="streamer.y"),
        record("a", destination="1"),
        record("a", destination="2"),
        record("a", hook="1"),
        record("a", reason="c"),
        record("a", topic="t", partition=1),
        record("a", topic="t", partition=2),
        record("a", topic="u", partition=2),
    ]
    limited.at(1, *others, record("a", reason="b 2"))
    assert len(limited.said()) == len(others)


def test_the_last_state_of_a_destination_is_the_last_line_of_it() -> None:
    """However long it has gone to and fro, and in the order in which it went."""
    limited = Limited()
    for tick in range(1000):
        event = "accepts" if tick % 2 else "doesn't accept"
        limited.at(tick * 7.0, record(event, destination="a"))
        limited.at(tick * 7.0, record("refused", destination="a"))
    limited.at(7100)
    times = [at for at, _, _ in limited.written]
    assert times[-1] < 7000 + 2 * logs.PERIOD
    *_, (_, before, _), (_, last, _) = [line for line in limited.written if line[1] != "refused"]
    assert (before, last) == ("doesn't accept", "accepts")
    assert len(limited.written) < 60


def test_news_of_one_thing_does_not_wait_for_a_flood_of_another() -> None:
    limited = Limited()
    for tick in range(10_000):
        limited.at(tick * 0.1, record("down", destination="a"))
    limited.said()
    limited.at(1000, record("down", destination="b"), record("given up", destination="a"))
    assert limited.said() == ["down", "given up"]


def test_a_thousand_destinations_that_fail_at_once_are_not_a_thousand_lines() -> None:
    limited = Limited()
    limited.at(0, *(record("down", destination=f"d{n}") for n in range(1000)))
    assert len(limited.said()) == logs.MOST_KINDS + logs.MOST_LINES
    limited.at(31)
    assert limited.written == [(30, "down", 1000 - logs.MOST_KINDS - logs.MOST_LINES - 1)]


def test_memory_does_not_grow_with_what_is_logged() -> None:
    limited = Limited()
    letters = ["".join(pair) for pair in product("abcdefghijklmnopqrst", repeat=2)]
    for name in letters:
        limited.at(
            0, *(record(f"{a} {b}", name=name) for a, b in zip(letters, letters, strict=True))
        )
    loggers = limited.limit._loggers
    assert len(loggers) == logs.MOST_LOGGERS + 1
    assert max(map(len, loggers.values())) == logs.MOST_KINDS + 1
    limited.at(100, record("calm"))
    assert len(loggers) == 1, "what is calm is forgotten"


def limited_handler(stream: io.StringIO) -> tuple[Any, Clock]:
    logs.configure(stream=stream, environ={})
    (handler,) = [known for known in logging.getLogger().handlers if known.get_name() == "streamer"]
    assert isinstance(handler, logs._Handler)
    assert handler._limit is not None
    handler._limit._clock = clock = Clock()
    return handler, clock


def test_what_is_held_back_is_written_when_its_time_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if nothing else is logged, with its own time and the traceback that there was."""
    timers = []

    class Timer:
        daemon = False

        def __init__(self, seconds: float, function: Callable[[], None]) -> None:
            timers.append((seconds, function))

        def start(self) -> None:
            assert self.daemon, "no end of a process waits for it"

        def cancel(self) -> None:
            timers.clear()

    monkeypatch.setattr(threading, "Timer", Timer)
    stream = io.StringIO()
    handler, clock = limited_handler(stream)
    for number in range(6):
        clock.now = float(number)
        try:
            refuse(str(number))
        except ValueError:
            structlog.get_logger("streamer.x").exception("gone", number=number)
    assert len(lines(stream)) == 3
    ((seconds, later),) = timers
    assert seconds == 27.0
    clock.now = 30.0
    later()
    *_, last = lines(stream)
    assert (last["number"], last["held_back"]) == (5, 2)
    assert last["exception"].endswith("ValueError: ('5',)")
    assert last["timestamp"] < f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.999}Z"
    structlog.get_logger("streamer.x").info("gone")
    assert len(timers) == 1
    handler.close()


def test_the_end_writes_what_is_held_back() -> None:
    stream = io.StringIO()
    limited_handler(stream)
    for number in range(9):
        logging.getLogger("streamer.x").error("gone %s", number)
    logs.release()
    assert [line["event"] for line in lines(stream)] == ["gone 0", "gone 1", "gone 2", "gone 8"]
    assert lines(stream)[-1]["held_back"] == 5


def test_who_asks_for_debug_gets_every_line_but_a_flood_of_aiokafka() -> None:
    stream = io.StringIO()
    logs.configure("debug", stream=stream, environ={})
    for number in range(50):
        logging.getLogger("aiokafka.conn").error("gone")
        structlog.get_logger("streamer.x").error("gone", number=number)
        logging.getLogger("site").info("seen %s", number)
        structlog.get_logger("streamer.x").debug("looked", number=number)
    counts = Counter(line["event"].split()[0] for line in lines(stream))
    assert counts == {"gone": 1 + 50, "seen": 50, "looked": 50}
