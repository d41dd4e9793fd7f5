"""A Kafka broker that needs nothing installed: librdkafka's mock broker, in a process of its own.

For the demo and quick tests, not for data: it keeps about 5 MB a partition and forgets the rest, has 4 partitions a
topic, and nothing survives its process. That process (`python -m streamer.demo.broker`) prints its address, and ends
when its standard input does: it can't outlive who started it, however that one ends.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Self

from streamer.errors import StartError

if TYPE_CHECKING:
    from types import TracebackType

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_NOT_INSTALLED = 3  # the child's exit status


class EmbeddedBroker:
    """Starts a broker on loopback when it is entered and stops it when it is left.

    Attributes:
        bootstrap: `host:port`, once it is entered.
    """

    bootstrap: str

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Start it.

        Raises:
            StartError: confluent-kafka isn't installed, or the broker didn't come up.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "streamer.demo.broker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # librdkafka's own chatter
            start_new_session=True,  # Ctrl-C is for the parent, which stops it when it is done with it
        )
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), _START_SECONDS)  # type: ignore[union-attr]  # it is a pipe
        except BaseException as error:
            await self._stop()
            if isinstance(error, TimeoutError):
                raise StartError(
                    f"the embedded broker didn't start within {_START_SECONDS:g} s"
                ) from None
            raise
        if not line:
            status = await self._stop()
            if status == _NOT_INSTALLED:
                raise StartError(
                    'the embedded broker needs confluent-kafka: pip install "altis-streamer[demo]"'
                )
            raise StartError(f"the embedded broker ended at its start, with status {status}")
        self.bootstrap = line.decode().strip()
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it, and wait until it is gone."""
        await self._stop()

    async def _stop(self) -> int | None:
        process = self._process
        if process is None:
            return None
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = None
        return process.returncode


def _serve() -> int:
    try:
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - it comes with an extra
    except ImportError:
        return _NOT_INSTALLED
    admin = AdminClient({"test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = admin.list_topics(timeout=_START_SECONDS).brokers.values()
    sys.stdout.write(f"{broker.host}:{broker.port}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()  # until whoever started this closes it, or is gone
    return 0


if __name__ == "__main__":
    sys.exit(_serve())
