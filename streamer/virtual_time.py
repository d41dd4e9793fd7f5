"""An event loop whose clock stands still while anything is ready, and jumps to the next timer when nothing is.

Hours pass in milliseconds, in the same order every time. What would wait for ever fails at once instead. `simulation`
plays with it what streamer would do, and tests live in it.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

START = 1000.0
"""What the clock shows first, in seconds: not zero, which code may take for "never"."""

_RESOLUTION = 1e-9


class StuckError(Exception):
    """Nothing is ready and no timer is set: what is waited for never comes."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop. It has no sockets and no threads: what comes from outside would come at no time of this clock."""

    def __init__(self) -> None:
        self.now = START
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """The virtual clock, in seconds."""
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    """What an event loop sleeps in: this one moves the clock instead."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError("nothing is ready and no timer is set")
        now = self._loop.now = self._loop.now + max(timeout, 0.0)
        # A timer runs if it is due before the clock and this: after half a year a nanosecond is less than its steps.
        self._loop._clock_resolution = max(_RESOLUTION, math.ulp(now))  # type: ignore[attr-defined] # noqa: SLF001
        return []


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, as `asyncio.run` does, in virtual time.

    Args:
        main: what to run.

    Returns:
        What it returns.

    Raises:
        StuckError: it waits for what never comes.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
