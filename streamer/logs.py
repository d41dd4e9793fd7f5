"""Logging: one pipeline for streamer's own lines and the libraries', for people or for machines, without secrets.

Modules log through `structlog.get_logger()`; a command calls `configure` once, before anything else runs.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
import time
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Any

import structlog

from streamer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from structlog.typing import EventDict, Processor

LEVELS = ("debug", "info", "warning", "error")
FORMAT_VARIABLE = "STREAMER_LOG_FORMAT"
MASK = "[secret]"

_HANDLER_NAME = "streamer"
_SHORT_SECRET = (
    8  # below, a secret is masked only where it stands alone: "info" must not eat "information"
)


def configure(
    level: str = "info",
    secrets: Iterable[str] = (),
    stream: IO[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Send everything that is logged, by structlog or the standard library, through one handler.

    Calling it again replaces what the last call set up.

    Args:
        level: `debug`, `info`, `warning` or `error`. aiokafka's lines below `warning` only show at `debug`.
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

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(allow=["suppressed"]),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # so that calling this again reaches every logger
    )
    render: list[Processor]
    if style == "console":
        # structlog's own choice of tracebacks, rich's, prints local variables.
        plain = structlog.dev.plain_traceback
        render = [
            structlog.dev.ConsoleRenderer(
                colors=terminal and not environ.get("NO_COLOR"), exception_formatter=plain
            )
        ]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(stream)
    handler.set_name(_HANDLER_NAME)
    handler.addFilter(RateLimit("aiokafka"))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *render,
                masker(secrets),
            ],
        )
    )
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if known.get_name() == _HANDLER_NAME]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("aiokafka").setLevel(
        logging.DEBUG if level.lower() == "debug" else max(logging.WARNING, root.level)
    )


def masker(secrets: Iterable[str]) -> Processor:
    """Make the last processor: it replaces secrets in the rendered line, wherever in it they stand.

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

    def mask(_logger: Any, _method: str, line: EventDict | str) -> str:  # noqa: ANN401 - structlog's signature
        return pattern.sub(MASK, str(line)) if pattern else str(line)

    return mask


class RateLimit(logging.Filter):
    """Lets one line of each shape pass in a while, and says on the next one how many it held back.

    aiokafka logs 15 to 30 lines a second while a broker is away. A shape is a logger, a level, and a message before its
    arguments are put in, numbers aside. `debug` lines always pass: who asks for them wants them all.

    Args:
        name: the logger whose lines, and whose children's, are limited.
        every_seconds: how long a shape is held back after a line of it.
        clock: monotonic seconds.
    """

    _MOST_SHAPES = 1000  # those heard longest ago are forgotten first

    def __init__(
        self,
        name: str,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name)
        self._every_seconds = every_seconds
        self._clock = clock
        self._shapes: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line passes; one that does after others were held back gets a `suppressed` count."""
        if record.levelno <= logging.DEBUG or not super().filter(record):
            return True
        shape = (record.name, record.levelno, re.sub(r"\d+", "#", str(record.msg)))
        now = self._clock()
        passed_at, suppressed = self._shapes.get(shape, (float("-inf"), 0))
        if now - passed_at < self._every_seconds:
            self._shapes[shape] = (passed_at, suppressed + 1)
            return False
        if suppressed:
            record.suppressed = suppressed
        self._shapes[shape] = (now, 0)
        self._shapes.move_to_end(shape)
        if len(self._shapes) > self._MOST_SHAPES:
            self._shapes.popitem(last=False)
        return True
