"""A process of our own: it says a line, is told lines, and can't outlive who started it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from streamer.demo import child
from streamer.demo.child import Child
from streamer.errors import StartError

ECHO = "import sys; print('ready', flush=True); [print(line.upper(), end='', flush=True) for line in sys.stdin]"


def test_it_hears_and_answers() -> None:
    async def main() -> tuple[str, str, int | None]:
        echo = Child("the echo", "-c", ECHO)
        ready = await echo.start()
        echo.tell("hello")
        return ready, await echo.line(), await echo.stop()

    assert asyncio.run(main()) == ("ready", "HELLO", 0)


def test_one_that_ends_at_its_start_says_nothing() -> None:
    async def main() -> tuple[str, int | None]:
        gone = Child("the gone", "-c", "raise SystemExit(7)")
        return await gone.start(), await gone.stop()

    assert asyncio.run(main()) == ("", 7)


def test_one_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor left behind."""
    monkeypatch.setattr(child, "_START_SECONDS", 0.2)

    async def main() -> None:
        await Child("the silent", "-c", "import sys; sys.stdin.read()").start()

    with pytest.raises(StartError, match=r"the silent didn't start within 0\.2 s"):
        asyncio.run(main())


def test_one_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_STOP_SECONDS", 0.2)

    async def main() -> int | None:
        deaf = Child("the deaf", "-c", "import time; print('ready', flush=True); time.sleep(600)")
        await deaf.start()
        return await deaf.stop()

    assert asyncio.run(main()) == -signal.SIGKILL


def test_a_stop_reads_what_it_still_says() -> None:
    """A child that waits for a reader would never end."""

    async def main() -> tuple[int | None, float]:
        code = "import sys; print('ready', flush=True); sys.stdin.read(); print('x' * 1_000_000)"
        loud = Child("the loud", "-c", code)
        await loud.start()
        started = time.monotonic()
        return await loud.stop(), time.monotonic() - started

    status, seconds = asyncio.run(main())
    assert status == 0
    assert seconds < 4


def test_it_ends_when_its_parent_is_killed() -> None:
    program = (
        "import asyncio, sys\n"
        "from streamer.demo.child import Child\n"
        "async def main():\n"
        "    child = Child('x', '-c', 'import os, sys; print(os.getpid(), flush=True); sys.stdin.read()')\n"
        "    print(await child.start(), flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _lives(number) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _lives(number)


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
