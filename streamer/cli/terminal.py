"""What the commands share that print numbers for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, ConsoleDimensions

from streamer.config import duration_text, parse_duration
from streamer.errors import ConfigError

if TYPE_CHECKING:
    from streamer.config import Config

_PIPED_WIDTH = 120


def open_console(*, to_stderr: bool = False) -> Console:
    """Open what is printed to: as wide as the terminal, or wide enough for every table.

    Args:
        to_stderr: whether standard output is for something else.
    """
    console = Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal:
        console.size = ConsoleDimensions(_PIPED_WIDTH, console.height)
    return console


def number_text(number: float) -> str:
    """Write a number with the digits that matter; `-` for what is none."""
    if number != number:  # noqa: PLR0124 - not a number: of nothing
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def percent_text(part: float, whole: float) -> str:
    """Write a share in percent; `-` of nothing."""
    if not whole:
        return "-"
    share = 100 * part / whole
    return "<1 %" if 0 < share < 1 else f"{share:.0f} %"


def request_time_of(text: str, settings: Config) -> float:
    """Read `--request-time`; see `duration_of`.

    Args:
        text: as it was given.
        settings: those in force.

    Raises:
        ConfigError: no request may take so long.
    """
    seconds = duration_of("--request-time", text)
    timeout = settings.segment.timeout
    if seconds >= timeout:
        raise ConfigError(
            f'--request-time = "{text}": segment.timeout is {duration_text(timeout)}: each request would be given up'
        )
    return seconds


def duration_of(option: str, text: str) -> float:
    """Read an option that is a duration.

    Args:
        option: its name, such as `--timeout`.
        text: as it was given.

    Returns:
        Seconds, more than none.

    Raises:
        ConfigError: it is no duration, or none at all.
    """
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f'{option} = "{text}": {error}') from None
    if not seconds:
        raise ConfigError(f'{option} = "{text}": must be more than nothing')
    return seconds
