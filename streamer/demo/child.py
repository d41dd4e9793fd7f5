"""A Python process of our own, which can't outlive who started it, however that one ends.

What the demo brings along runs apart from the pipeline that it shows: the broker, the producer and mock Segment, so
that the judged and its judges don't wait for one another on one event loop. Each ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Self

from streamer.errors import StartError

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_LONGEST_LINE = 1 << 20


class Child:
    """A process that says a line when it is ready, and reads its standard input until that ends.

    Args:
        name: what it is, for messages: "the embedded broker".
        arguments: Python's, such as `-m` and a module.
        quiet: whether what it writes to standard error is thrown away.
    """

    def __init__(self, name: str, *arguments: str, quiet: bool = False) -> None:
        self.name = name
        self._arguments = arguments
        self._quiet = quiet
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Start it.

        Returns:
            Its first line; an empty text if it ended without one, of which `stop` tells the status.

        Raises:
            StartError: it said nothing in time.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL if self._quiet else None,
            limit=_LONGEST_LINE,
            start_new_session=True,  # Ctrl-C is for the parent, which stops it when it is done with it
        )
        try:
            return await asyncio.wait_for(self.line(), _START_SECONDS)
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                raise StartError(f"{self.name} didn't start within {_START_SECONDS:g} s") from None
            raise

    async def line(self) -> str:
        """Wait for its next line, without the line's end; an empty text if it has ended."""
        assert self._process is not None  # noqa: S101 - it was started
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        return (await self._process.stdout.readline()).decode().strip()

    def tell(self, line: str) -> None:
        """Write a line to its standard input; nothing happens if it has ended."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(line.encode() + b"\n")

    async def stop(self) -> int | None:
        """End its standard input, and wait until it is gone; it is killed if that takes too long.

        Returns:
            Its exit status; None if it wasn't started.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        if process.stdin is not None:
            process.stdin.close()
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            # What it still writes is read, or it would wait for a reader.
            ended = asyncio.gather(process.stdout.read(), process.wait())
            await asyncio.wait_for(ended, _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        return process.returncode

    async def __aenter__(self) -> Self:
        """Start it; subclasses say what they need of its first line."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop it, and wait until it is gone."""
        await self.stop()
