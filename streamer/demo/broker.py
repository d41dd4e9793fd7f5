"""A Kafka broker that needs nothing installed: librdkafka's mock broker, in a process of its own.

For the demo and quick tests, not for data: it keeps about 5 MB a partition and forgets the rest, has 4 partitions a
topic, and nothing survives its process. That process (`python -m streamer.demo.broker`) prints its address, and ends
when its standard input does.
"""

from __future__ import annotations

import sys
from typing import Self

from streamer.demo.child import Child
from streamer.errors import StartError

MOST_AHEAD_BYTES = 2_000_000
"""So far may a producer be ahead of what is committed, in each partition: well within what the broker keeps."""

_START_SECONDS = 20.0
_NOT_INSTALLED = 3  # the child's exit status


class EmbeddedBroker(Child):
    """Starts a broker on loopback when it is entered and stops it when it is left.

    Attributes:
        bootstrap: `host:port`, once it is entered.
    """

    bootstrap: str

    def __init__(self) -> None:
        super().__init__("the embedded broker", "-m", "streamer.demo.broker", quiet=True)

    async def __aenter__(self) -> Self:
        """Start it.

        Raises:
            StartError: confluent-kafka isn't installed, or the broker didn't come up.
        """
        self.bootstrap = await self.start()
        if not self.bootstrap:
            status = await self.stop()
            if status == _NOT_INSTALLED:
                raise StartError(
                    "the embedded broker needs confluent-kafka: pip install confluent-kafka, or take a broker of your"
                    " own: --kafka HOST:PORT"
                )
            raise StartError(f"the embedded broker ended at its start, with status {status}")
        return self


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
