"""Logging: one pipeline for streamer's own lines and the libraries', for people or for machines.

Whatever is in a line, it is one line, without secrets, and no longer than a person reads; of one kind there are no more
than a person follows. Modules log through `structlog.get_logger()`; a command calls `configure` once, before anything
else runs.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from typing import IO, TYPE_CHECKING, Any, TypeVar

import orjson
import structlog

from streamer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from structlog.typing import EventDict, Processor

LEVELS = ("debug", "info", "warning", "error")
FORMAT_VARIABLE = "STREAMER_LOG_FORMAT"
MASK = "[secret]"

PERIOD = 30.0
"""Seconds; when they are over, what is held back is written, and after so long without a line all is as at first."""
LONGEST_PAUSE = 20
"""So many periods pass at most between two lines of a kind that doesn't stop coming."""
MOST_LINES = 3
"""So many lines that are alike are written at once, before others are held back."""
MOST_KINDS = 20
"""So many kinds are told apart of one logger; all others of it are one more."""
MOST_LOGGERS = 200
"""So many loggers are told apart; all others are one more."""
MOST_CHARACTERS = 2000
"""No text of a line is longer; of a traceback, ten times as much is shown, its end."""

_HANDLER_NAME = "streamer"
_SHORT_SECRET = (
    8  # below, a secret is masked only where it stands alone: "info" must not eat "information"
)
_NUMBER = re.compile(r"\b[^\W\d]*\d[\w-]*")  # a word with a digit, ids among them
_BARE = re.compile(r"[^\s=\"'\\]+")  # a value that is shown without quotes
_K = TypeVar("_K")
_V = TypeVar("_V")


def configure(
    level: str = "info",
    secrets: Iterable[str] = (),
    stream: IO[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Send everything that is logged, by structlog or the standard library, and warnings, through one handler.

    Calling it again replaces what the last call set up.

    Args:
        level: `debug`, `info`, `warning` or `error`. With `debug` no line is held back but aiokafka's, of which those
            of the level `info` show then, too; at its own `debug` it writes a thousand lines a second.
        secrets: texts that no line may show, in the clear: write keys and passwords.
        stream: where lines go, standard error by default.
        environ: holds `STREAMER_LOG_FORMAT`: `console` or `json`; without it, console if `stream` is a terminal.

    Raises:
        ConfigError: the level or the format isn't one of these.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"--log-level = {json.dumps(level)}: must be one of {', '.join(LEVELS)}")
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    style = environ.get(FORMAT_VARIABLE, "").strip().lower() or ("console" if terminal else "json")
    if style not in {"console", "json"}:
        raise ConfigError(f"{FORMAT_VARIABLE} = {json.dumps(style)}: must be console or json")

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,  # here: a line may be written when the exception has gone
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # so that calling this again reaches every logger
    )
    mask = masker(secrets)
    console = style == "console"
    everything = level.lower() == "debug"
    handler = _Handler(stream, RateLimit("aiokafka" if everything else ""))
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.processors.format_exc_info,
                _Line(mask, console=console),
                _console(colours=terminal and not environ.get("NO_COLOR"))
                if console
                else structlog.processors.JSONRenderer(),
                lambda _logger, _method, line: mask(str(line)),
            ],
        )
    )
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if known.get_name() == _HANDLER_NAME]:
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("aiokafka").setLevel(
        logging.INFO if everything else max(logging.WARNING, root.level)
    )
    logging.captureWarnings(capture=True)


def catch_all() -> None:
    """Have what ends the process, or a thread of site code, logged: a traceback of Python's own is many lines."""
    log = logging.getLogger("streamer")

    def ends(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            log.critical("streamer ends: a bug", exc_info=(kind, error, trace))

    def thread_ends(ended: threading.ExceptHookArgs) -> None:
        error = ended.exc_value or ended.exc_type()
        log.error("a thread ended", exc_info=(ended.exc_type, error, ended.exc_traceback))

    sys.excepthook, threading.excepthook = ends, thread_ends


def release() -> None:
    """Write what is held back, before the last line."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.release_held()


def masker(secrets: Iterable[str]) -> Callable[[str], str]:
    """Make what replaces secrets in a text, wherever in it they stand.

    It looks for each secret as it is, as JSON and `repr` write it, and as HTTP Basic encodes it for a user name with an
    empty password, which is how Segment's write key travels.
    """
    forms: set[str] = set()
    for secret in secrets:
        if secret:
            forms |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
            forms |= {
                json.dumps(form)[1:-1] for form in forms
            }  # what was escaped once stands in a JSON line escaped twice
            forms.add(base64.b64encode(f"{secret}:".encode()).decode())
    patterns = [
        re.escape(form) if len(form) >= _SHORT_SECRET else rf"(?<!\w){re.escape(form)}(?!\w)"
        for form in sorted(forms, key=len, reverse=True)
    ]
    pattern = re.compile("|".join(patterns)) if patterns else None
    return lambda text: pattern.sub(MASK, text) if pattern else text


# --- one line -------------------------------------------------------------------------------------


class _Line:
    """Makes what was logged into what is shown: in one order, each text masked and cut.

    Args:
        mask: replaces secrets; here already, since a cut would leave half of one.
        console: whether a terminal shows it: then nothing of an event, or of an answer, may begin a line or move the
            cursor. JSON escapes that by itself.
    """

    def __init__(self, mask: Callable[[str], str], *, console: bool) -> None:
        self._mask = mask
        self._console = console

    def __call__(self, _logger: Any, _method: str, said: EventDict) -> dict[str, Any]:  # noqa: ANN401 - structlog's signature
        record: logging.LogRecord = said.pop("_record")
        del said["_from_structlog"]
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "timestamp": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z",
            "level": record.levelname.lower(),
            "event": self._flat(self._text(str(said.pop("event", "")))),
            "logger": self._flat(self._text(record.name)),
        }
        below = [said.pop(name, None) for name in ("stack", "exception")]
        for key, value in said.items():
            line.setdefault(self._flat(self._text(str(key))), self._value(value))
        if held_back := getattr(record, "held_back", 0):
            line["held_back"] = held_back
        if any(below):
            line["exception"] = self._below("\n".join(str(text) for text in below if text))
        return line

    def _value(self, value: object) -> object:
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float):
            return value if isfinite(value) else str(value)
        if isinstance(value, str):
            return self._text(str(value))
        try:
            as_json = orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS)
        except TypeError:
            return self._text(repr(value))
        return (
            self._text(as_json.decode())
            if len(as_json) > MOST_CHARACTERS
            else orjson.loads(as_json)
        )

    def _text(self, text: str) -> str:
        text = self._mask(text.encode(errors="backslashreplace").decode())
        if len(text) <= MOST_CHARACTERS:
            return text
        return f"{text[:MOST_CHARACTERS]}… ({len(text):,} characters)"

    def _flat(self, text: str) -> str:
        if not self._console or text.isprintable():
            return text
        return "".join(one if one.isprintable() else _escaped(one) for one in text)

    def _below(self, text: str) -> str:
        text = self._mask(text.encode(errors="backslashreplace").decode())
        most = 10 * MOST_CHARACTERS
        if len(text) > most:
            text = f"({len(text):,} characters) …{text[-most:]}"
        # A line that begins with a time is one of streamer's.
        return (
            "\n".join(f"    {self._flat(one)}" for one in text.splitlines())
            if self._console
            else text
        )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _console(*, colours: bool) -> Processor:
    """Make what renders a line for a person: time, level, what happened, then key=value in the order of the code."""
    dev = structlog.dev
    dim, bright, key, value, reset = (
        (dev.DIM, dev.BRIGHT, dev.CYAN, dev.MAGENTA, dev.RESET_ALL) if colours else [""] * 5
    )
    levels = dev.ConsoleRenderer.get_default_level_styles(colours)

    def column(name: str, style: str, *around: str) -> structlog.dev.Column:
        return dev.Column(name, dev.KeyValueColumnFormatter(None, style, reset, str, 0, *around))

    return dev.ConsoleRenderer(
        columns=[
            dev.Column("", dev.KeyValueColumnFormatter(key, value, reset, _quoted)),
            column("timestamp", dim),
            dev.Column("level", dev.LogLevelColumnFormatter(levels, reset)),
            column("event", bright),
            column("logger", dim, "[", "]"),
        ],
        sort_keys=False,
        exception_formatter=dev.plain_traceback,
    )


def _quoted(value: object) -> str:
    """Write a value: as it is if it is one printable word, else as Python would."""
    if isinstance(value, str) and _BARE.fullmatch(value) and value.isprintable():
        return value
    return repr(value)


# --- how many lines -------------------------------------------------------------------------------


class _Handler(logging.StreamHandler[IO[str]]):
    """Writes lines, and what was held back of them when its time has come.

    Args:
        stream: where to.
        limit: says which lines are written when.
    """

    def __init__(self, stream: IO[str], limit: RateLimit) -> None:
        super().__init__(stream)
        self._limit: RateLimit | None = (
            limit  # None once it is closed: a process that ends starts no timer
        )
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless there are too many like it. The handler's lock is held."""
        try:
            lines = [record] if self._limit is None else self._limit.take(record)
        except Exception:  # noqa: BLE001 - what others log may fail to say what it is
            self.handleError(record)
        else:
            self._write(lines)

    def release_held(self) -> None:
        """Write what is held back."""
        self.acquire()
        try:
            if self._limit is not None:
                self._write(self._limit.end())
        finally:
            self.release()

    def close(self) -> None:
        """Write what is held back, and end."""
        self.release_held()
        self._limit = None
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Say in a line that one can't be written; logging's own report shows what is in it, secrets too."""
        error = sys.exc_info()[0]
        if record.name != __name__ and error is not None:
            lost = "a line of %s can't be written: %s"
            super().emit(
                logging.LogRecord(
                    __name__, logging.ERROR, "", 0, lost, (record.name, error.__name__), None
                )
            )

    def _write(self, lines: Iterable[logging.LogRecord]) -> None:
        for line in lines:
            super().emit(line)
        if self._limit is not None and self._limit.holds and self._timer is None:
            self._timer = threading.Timer(self._limit.seconds_left(), self._later)
            self._timer.daemon = True
            self._timer.start()

    def _later(self) -> None:
        self.acquire()
        try:
            self._timer = None
            if self._limit is not None:
                self._write(self._limit.due())
        finally:
            self.release()


@dataclass(slots=True)
class _Like:
    """Lines that differ only in words with a digit.

    Attributes:
        written: how many were, at once.
        held: how many weren't, since the last that was.
        last: the last of those.
    """

    written: int = 0
    held: int = 0
    last: logging.LogRecord | None = None


@dataclass(slots=True)
class _Kind:
    """Lines of one logger about one thing.

    Attributes:
        likes: by level and message.
        came: whether there was one in this period.
        rest: how many periods have to end until what is held back is written.
        pause: the next `rest`.
    """

    likes: dict[tuple[int, str], _Like] = field(default_factory=dict)
    came: bool = False
    rest: int = 1
    pause: int = 1

    def end_period(self, *, calm: bool) -> list[logging.LogRecord]:
        """Give what is to be written now of what is held back.

        Args:
            calm: whether none came in this period: then all of it is.
        """
        held = [like for like in self.likes.values() if like.held]
        self.came = False
        if not held:
            return []
        self.rest -= 1
        if self.rest and not calm:
            return []
        self.rest, self.pause = self.pause, min(2 * self.pause, LONGEST_PAUSE)
        due = []
        for like in held:
            if like.last is not None:
                like.last.__dict__["held_back"] = like.held - 1
                due.append(like.last)
            like.held, like.last = 0, None
        return due


class RateLimit:
    """Says which lines are written when, so that nothing floods the log and no news is lost.

    Of lines that differ only in words with a digit, `MOST_LINES` are written at once. Of those that follow, the last is
    written when a period of `PERIOD` seconds ends, and has how many others there were (`held_back`); then after one
    more, and if they don't stop coming after 2, 4, 8 and so on, at most `LONGEST_PAUSE`. After a period without any,
    what is held back is written, and all is as at first. So the last line is always written, and says how things are.

    A kind is a logger and what its lines are about: a destination, a hook, a reason or a partition, where streamer
    names one, else the message. What is held back of one kind is written together, in order. Of one logger `MOST_KINDS`
    are told apart at a time; all others of it are one more.

    Of aiokafka, which logs up to 30 lines a second while a broker is away, only the first is written at once.

    Args:
        only: the logger whose lines, and whose children's, are limited; those of all if it is empty.
        clock: monotonic seconds.

    Attributes:
        holds: whether something is held back.
    """

    def __init__(self, only: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.holds = False
        self._only = logging.Filter(only)
        self._clock = clock
        self._period_ends = 0.0
        self._loggers: dict[str, dict[str, _Kind]] = {}

    def seconds_left(self) -> float:
        """How long the period still lasts."""
        return max(self._period_ends - self._clock(), 0.0)

    def take(self, record: logging.LogRecord) -> list[logging.LogRecord]:
        """Take a line.

        Returns:
            What is to be written now: perhaps it, and before it what was held back until now.
        """
        due = self.due()
        if not self._only.filter(record):
            return [*due, record]
        kind, like = self._find(record)
        kind.came = True
        most = 1 if record.name.startswith("aiokafka") else MOST_LINES
        if like.written < most:
            like.written += 1
            return [*due, record]
        like.held += 1
        like.last = record
        self.holds = True
        return due

    def due(self) -> list[logging.LogRecord]:
        """Give what was held back until now, if the period has ended."""
        now = self._clock()
        if now < self._period_ends:
            return []
        calm = now >= self._period_ends + PERIOD
        self._period_ends = now + PERIOD
        return self._turn(calm=calm)

    def end(self) -> list[logging.LogRecord]:
        """Give all that is held back."""
        return self._turn(calm=True)

    def _find(self, record: logging.LogRecord) -> tuple[_Kind, _Like]:
        said = record.msg
        subject = ""
        if isinstance(said, dict):  # of structlog
            subject = _subject(said)
            said = said.get("event")
        message = _without_numbers(said)
        kinds = _entry(self._loggers, record.name, MOST_LOGGERS, "", dict)
        kind = _entry(kinds, subject or message, MOST_KINDS, "", _Kind)
        return kind, _entry(kind.likes, (record.levelno, message), MOST_KINDS, (0, ""), _Like)

    def _turn(self, *, calm: bool) -> list[logging.LogRecord]:
        due: list[logging.LogRecord] = []
        self.holds = False
        for name, kinds in list(self._loggers.items()):
            for subject, kind in list(kinds.items()):
                over = calm or not kind.came
                due += kind.end_period(calm=over)
                if over:
                    del kinds[subject]
                self.holds |= any(like.held for like in kind.likes.values())
            if not kinds:
                del self._loggers[name]
        return sorted(due, key=lambda record: record.created)


def _subject(said: Mapping[str, object]) -> str:
    """Say what a line of structlog's is about; an empty text if nothing in it tells."""
    if "destination" in said or "hook" in said:
        return str(said.get("destination", said.get("hook")))
    if "reason" in said:
        return _without_numbers(said["reason"])
    return f"{said.get('topic')}/{said['partition']}" if "partition" in said else ""


def _without_numbers(text: object) -> str:
    return _NUMBER.sub("#", str(text)[:MOST_CHARACTERS])


def _entry(entries: dict[_K, _V], key: _K, most: int, others: _K, make: Callable[[], _V]) -> _V:
    """Give what stands under a key, made if it isn't there; once there are so many, that of all others."""
    if key not in entries and len(entries) >= most:
        key = others
    if key not in entries:
        entries[key] = make()
    return entries[key]
