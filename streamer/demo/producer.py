"""Produces made-up events at a steady rate, in a process of its own: it doesn't wait for who is measured.

A record's timestamp in Kafka is the `event_timestamp` of its event: the time when it was made, just before it was sent.
So a call's `timestamp` says to the millisecond when its record was produced.

`python -m streamer.demo.producer ORDER` says `ready` when it is connected, and begins at the first line that it reads.
Each line is a JSON object of the committed offset by partition, or `stop`. It says how far it is in lines of JSON, and
ends with its standard input.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from streamer.demo.child import Child
from streamer.demo.events import Event, everyday
from streamer.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_TURN_SECONDS = 0.01
_SAY_SECONDS = 0.1
_BURST_SECONDS = 1.0
"""What it couldn't produce in time, because it was held or late, it makes up for as far as this."""
_RECORD_BYTES = 100
"""What Kafka's format adds to a record, at most."""
_LARGEST_BYTES = 50_000
"""No event that is generated is larger."""
_PENDING = 2000
"""Records that aren't acknowledged, at most: a broker that stands still must not fill the memory."""
_GOODBYE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Order:
    """What to produce.

    Attributes:
        bootstrap: `host:port` of a broker.
        topic: a topic that exists.
        rate: events a second.
        seed: of the events.
        events: how many, None for no end.
        seconds: how long, None for no end.
        most_ahead_bytes: how far it may be ahead of the committed offset in each partition; None for no limit.
    """

    bootstrap: str
    topic: str
    rate: int
    seed: int = 1
    events: int | None = None
    seconds: float | None = None
    most_ahead_bytes: int | None = None


class Producer(Child):
    """The process, as seen by who started it.

    Args:
        order: what to produce.

    Attributes:
        produced: records that Kafka has acknowledged.
        failed: records that it hasn't, and won't.
        held: whether it waits for commits now, so as not to be too far ahead of them.
        done: whether it has come to its end, or was stopped, and everything is acknowledged.
    """

    def __init__(self, order: Order) -> None:
        words = orjson.dumps(asdict(order)).decode()
        super().__init__("the producer", "-m", "streamer.demo.producer", words)
        self.produced = 0
        self.failed = 0
        self.held = False
        self.done = False
        self._order = order

    async def __aenter__(self) -> Self:
        """Start it and wait until it is connected.

        Raises:
            StartError: it can't reach the broker.
        """
        line = await self.start()
        if line != "ready":
            await self.stop()
            raise StartError(f"can't produce to {self._order.bootstrap}: {line or 'it ended'}")
        return self

    def committed(self, offsets: Mapping[int, int]) -> None:
        """Tell it what is committed, by partition; it begins with the first time."""
        self.tell(
            orjson.dumps({str(number): offset for number, offset in offsets.items()}).decode()
        )

    def finish(self) -> None:
        """Produce nothing more; `follow` ends once what was sent is acknowledged."""
        self.tell("stop")

    async def follow(self) -> None:
        """Keep the attributes up to date until it is done.

        Raises:
            StartError: it ended before that.
        """
        while not self.done:
            line = await self.line()
            if not line:
                raise StartError("the producer ended before its time")
            said = orjson.loads(line)
            self.produced, self.failed = said["produced"], said["failed"]
            self.held, self.done = said["held"], said["done"]


class _Ahead:
    """How many bytes of each partition are produced and not committed.

    Args:
        most: so many may be; None for no limit.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._bytes: Counter[int] = Counter()
        self._committed: dict[int, int] = {}
        self._waiting: dict[int, deque[tuple[int, int]]] = {}

    def has_room(self, partitions: Iterable[int]) -> bool:
        """Whether any record may be produced, whichever of these partitions it goes to."""
        if self._most is None:
            return True
        return max(self._bytes[number] for number in partitions) + _LARGEST_BYTES <= self._most

    def sent(self, partition: int, size: int) -> None:
        """A record is on its way."""
        self._bytes[partition] += size

    def acknowledged(self, partition: int, offset: int, size: int) -> None:
        """It has its offset now."""
        if self._most is None:
            return
        self._waiting.setdefault(partition, deque()).append((offset, size))
        self._free(partition)

    def failed(self, partition: int, size: int) -> None:
        """It isn't there."""
        self._bytes[partition] -= size

    def committed(self, partition: int, offset: int) -> None:
        """What lies before this offset needn't be kept any more."""
        self._committed[partition] = offset
        self._free(partition)

    def _free(self, partition: int) -> None:
        waiting = self._waiting.get(partition, deque())
        committed = self._committed.get(partition, 0)
        while waiting and waiting[0][0] < committed:
            self._bytes[partition] -= waiting.popleft()[1]


class _Run:
    """One order, being carried out."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._ahead = _Ahead(order.most_ahead_bytes)
        self._sent = 0
        self._produced = 0
        self._failed = 0
        self._held = False
        self._stop = asyncio.Event()
        self._go = asyncio.Event()

    async def carry_out(self) -> None:
        order = self._order
        producer = AIOKafkaProducer(
            bootstrap_servers=order.bootstrap,
            acks="all",
            enable_idempotence=True,  # none comes twice: the account would be right in saying so
            linger_ms=5,
            max_batch_size=256_000,
            max_request_size=1 << 20,
        )
        try:
            await producer.start()
            partitions = sorted(await producer.partitions_for(order.topic))
        except KafkaError as error:
            _say_text(str(error) or type(error).__name__)
            await producer.stop()
            return
        _say_text("ready")
        listening = asyncio.create_task(self._listen())
        await self._go.wait()
        saying = asyncio.create_task(self._say_regularly())
        try:
            await self._produce(producer, partitions)
        except KafkaError:  # the broker is gone: what wasn't acknowledged is said at the end
            self._stop.set()
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS if self._stop.is_set() else None):
                await producer.flush()
        except TimeoutError:
            pass
        saying.cancel()
        self._held = False
        self._failed = self._sent - self._produced
        self._say(done=True)
        await listening  # who started this still has to read that
        await asyncio.wait({asyncio.create_task(producer.stop())}, timeout=_GOODBYE_SECONDS)

    async def _produce(self, producer: AIOKafkaProducer, partitions: list[int]) -> None:
        order = self._order
        events = self._events()
        clock = asyncio.get_running_loop().time
        begun = before = clock()
        due = 1.0
        while not self._stop.is_set():
            now = clock()
            if order.seconds is not None and now >= begun + order.seconds:
                return
            due = min(due + (now - before) * order.rate, order.rate * _BURST_SECONDS)
            before = now
            while due >= 1 and clock() < now + _TURN_SECONDS:
                if self._sent == order.events:
                    return
                self._held = not self._ahead.has_room(partitions)
                if self._held or self._sent - self._produced >= _PENDING:
                    break
                await self._send(producer, next(events), partitions)
                due -= 1
            # A turn for what sends and listens, even if there is more to do.
            await asyncio.sleep(max(now + _TURN_SECONDS - clock(), 0))

    def _events(self) -> Iterator[Event]:
        order = self._order
        return everyday(order.seed, order.rate, lambda: time.time_ns() // 1_000_000)

    def _partition(self, event: Event, partitions: list[int]) -> int:
        if event.key is None:
            return partitions[self._sent % len(partitions)]
        chosen: int = DefaultPartitioner()(event.key, partitions, partitions)
        return chosen

    async def _send(self, producer: AIOKafkaProducer, event: Event, partitions: list[int]) -> None:
        partition = self._partition(event, partitions)
        size = len(event.value) + len(event.key or b"") + _RECORD_BYTES
        sent = await producer.send(
            self._order.topic,
            event.value,
            key=event.key,
            partition=partition,
            timestamp_ms=event.timestamp_ms,
        )
        self._sent += 1
        self._ahead.sent(partition, size)

        def ended(future: asyncio.Future[Any]) -> None:
            if future.cancelled() or future.exception() is not None:
                self._ahead.failed(partition, size)
                return
            self._produced += 1
            self._ahead.acknowledged(partition, future.result().offset, size)

        sent.add_done_callback(ended)

    async def _listen(self) -> None:
        """Read what is committed, until there is nothing more to read."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := (await reader.readline()).strip():
            if line == b"stop":
                self._stop.set()
            else:
                for number, offset in orjson.loads(line).items():
                    self._ahead.committed(int(number), offset)
            self._go.set()
        self._stop.set()
        self._go.set()

    async def _say_regularly(self) -> None:
        while True:
            self._say()
            await asyncio.sleep(_SAY_SECONDS)

    def _say(self, *, done: bool = False) -> None:
        said = {
            "produced": self._produced,
            "failed": self._failed,
            "held": self._held,
            "done": done,
        }
        _say_text(orjson.dumps(said).decode())


def _say_text(line: str) -> None:
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody is left to hear it; standard input has ended too
        pass


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # what matters is said on standard output
    asyncio.run(_Run(Order(**orjson.loads(sys.argv[1]))).carry_out())
