"""What can't be delivered, kept with its reason: in a Kafka topic, or in a file.

A dead letter holds its chunk until it is acknowledged, so the offset behind it isn't committed before. When the topic
or the file can't be written, letters wait in memory, within the budget, and are tried again without limit.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from streamer.core.budget import Share
    from streamer.core.model import DeadLetter

log = structlog.get_logger()

LETTER_OVERHEAD = 1000
"""Bytes of memory that a letter takes besides its value, for the budget."""
_WRITTEN_TOGETHER = 500
_FIRST_DELAY, _LAST_DELAY = 0.5, 10.0  # seconds between two tries
_SEND_TIMEOUT = 15.0  # seconds; the producer itself has no limit that holds when a broker hangs
_CLOSE_TIMEOUT = 5.0
_TRUNCATED_BYTES = 100_000  # of the value, when Kafka refuses the letter for its size


class Sink(Protocol):
    """Where letters are written."""

    async def write(self, letters: Sequence[DeadLetter]) -> tuple[int, str]:
        """Write letters, in order.

        Returns:
            How many from the first on are acknowledged; and why not all, or an empty text.
        """

    async def close(self) -> None:
        """Let go of connections and files."""


class KafkaSink:
    """Writes to a topic, with key, value, headers and timestamp of the record as they were.

    Headers say more, each a text: `streamer-kind`, `streamer-reason`, `streamer-detail`, `streamer-topic`,
    `streamer-partition`, `streamer-offset`, `streamer-time` (ISO-8601), `streamer-tries`, and `streamer-truncated`,
    the bytes that the value had, if Kafka refused it for its size.

    Args:
        topic: its name.
        connection: how to reach Kafka, as aiokafka's arguments.
    """

    def __init__(self, topic: str, connection: Mapping[str, Any]) -> None:
        self._topic = topic
        self._connection = connection
        self._producer: AIOKafkaProducer | None = None

    async def write(self, letters: Sequence[DeadLetter]) -> tuple[int, str]:
        """See `Sink.write`."""
        try:
            async with asyncio.timeout(_SEND_TIMEOUT):
                producer = await self._connected()
                waits = [await self._send(producer, letter) for letter in letters]
                results = await asyncio.gather(*waits, return_exceptions=True)
        except (KafkaError, OSError, TimeoutError) as error:
            # A producer that was left with sends pending spins: it is closed, and another one is made.
            await self.close()
            return 0, _said(error)
        for written, result in enumerate(results):
            if isinstance(result, BaseException):
                await self.close()
                return written, _said(result)
        return len(letters), ""

    async def close(self) -> None:
        """See `Sink.close`."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):  # it is thrown away, whatever it says
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await producer.stop()

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                **self._connection,
                acks="all",
                enable_idempotence=True,
                linger_ms=5,
                request_timeout_ms=10_000,
                max_request_size=16
                * 1024
                * 1024,  # the broker's own limit decides, not the client's
            )
            self._producer = producer
            await producer.start()
        return self._producer

    async def _send(self, producer: AIOKafkaProducer, letter: DeadLetter) -> asyncio.Future[Any]:
        try:
            sent = await self._send_as_it_is(producer, letter, ())
        except MessageSizeTooLargeError:  # the producer's own limit
            return await self._send_truncated(producer, letter)
        return asyncio.ensure_future(self._acknowledged(producer, letter, sent))

    async def _acknowledged(
        self, producer: AIOKafkaProducer, letter: DeadLetter, sent: asyncio.Future[Any]
    ) -> None:
        try:
            await sent
        except MessageSizeTooLargeError:  # the broker's or the topic's
            await (await self._send_truncated(producer, letter))

    async def _send_truncated(
        self, producer: AIOKafkaProducer, letter: DeadLetter
    ) -> asyncio.Future[Any]:
        value = letter.value or b""
        shorter = replace(letter, value=value[:_TRUNCATED_BYTES], headers=())
        size = ("streamer-truncated", str(len(value)).encode())
        return await self._send_as_it_is(producer, shorter, (size,))

    async def _send_as_it_is(
        self, producer: AIOKafkaProducer, letter: DeadLetter, more: tuple[tuple[str, bytes], ...]
    ) -> asyncio.Future[Any]:
        return await producer.send(  # type: ignore[no-any-return] # aiokafka has no types
            self._topic,
            value=letter.value,
            key=letter.key,
            timestamp_ms=letter.timestamp_ms,
            headers=[*letter.headers, *headers(letter), *more],
        )


class FileSink:
    """Appends to an NDJSON file, a line a letter.

    Keys: kind, reason, detail, topic, partition, offset, time, timestamp (Kafka's, in milliseconds), tries, key,
    value, headers. What isn't UTF-8 stands base64-encoded under `key_base64`, `value_base64` or, for headers, in
    place of the text as `{"base64": ...}`.

    Args:
        path: of the file; it is made if it isn't there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def write(self, letters: Sequence[DeadLetter]) -> tuple[int, str]:
        """See `Sink.write`."""
        lines = b"".join(orjson.dumps(_line(letter)) + b"\n" for letter in letters)
        try:
            await asyncio.to_thread(self._append, lines)
        except OSError as error:
            return 0, f"{self._path}: {error.strerror or error}"
        return len(letters), ""

    async def close(self) -> None:
        """See `Sink.close`."""

    def _append(self, lines: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


@dataclass(slots=True)
class _Waiting:
    letter: DeadLetter
    share: Share
    size: int
    acknowledged: Callable[[], None]


class DeadLetters:
    """Writes dead letters, in order, until each is acknowledged.

    Args:
        sink: where to.
        failed: is called for each write that failed.
    """

    def __init__(self, sink: Sink, failed: Callable[[], None] = lambda: None) -> None:
        self._sink = sink
        self._failed = failed
        self._waiting: deque[_Waiting] = deque()
        self._more = asyncio.Event()
        self._progress = asyncio.Event()
        self.failing = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, letter: DeadLetter, share: Share, acknowledged: Callable[[], None]) -> None:
        """Take a letter.

        Args:
            letter: what to write.
            share: of the memory budget, of which it is held.
            acknowledged: is called when it is written; it lets go of the letter's chunk.
        """
        size = LETTER_OVERHEAD + len(letter.value or b"")
        share.take(size)
        self._waiting.append(_Waiting(letter, share, size, acknowledged))
        self._more.set()

    async def run(self) -> None:
        """Write until cancelled."""
        delay = _FIRST_DELAY
        try:
            while True:
                self._more.clear()
                if not self._waiting:
                    await self._more.wait()
                together = [
                    self._waiting[i] for i in range(min(_WRITTEN_TOGETHER, len(self._waiting)))
                ]
                written, why = await self._sink.write([waiting.letter for waiting in together])
                for waiting in together[:written]:
                    if self._waiting and self._waiting[0] is waiting:  # else its generation ended
                        self._waiting.popleft()
                        waiting.share.give(waiting.size)
                        waiting.acknowledged()
                self._progress.set()
                if why:
                    self._failed()
                    if not self.failing:
                        log.error(
                            "dead letters can't be written; their records stay uncommitted, and the"
                            " write is tried again",
                            reason=why,
                        )
                    self.failing = why
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _LAST_DELAY)
                else:
                    if self.failing:
                        log.info("dead letters are written again")
                    self.failing = ""
                    delay = _FIRST_DELAY
        finally:
            await self._sink.close()

    async def drain(self, timeout_seconds: float) -> bool:
        """Wait until all are written.

        Returns:
            Whether they are.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._waiting:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    def forget(self) -> None:
        """Drop what isn't acknowledged: the generation has ended, and its records are read again."""
        self._waiting.clear()


def headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The Kafka headers that say what a letter is."""
    said = {
        "kind": letter.kind,
        "reason": str(letter.reason),
        "detail": letter.detail,
        "topic": letter.topic,
        "partition": str(letter.partition),
        "offset": str(letter.offset),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "tries": str(letter.tries),
    }
    return [(f"streamer-{name}", text.encode("utf-8", "replace")) for name, text in said.items()]


def _line(letter: DeadLetter) -> dict[str, Any]:
    return {
        "kind": letter.kind,
        "reason": str(letter.reason),
        "detail": letter.detail,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "timestamp": letter.timestamp_ms,
        "tries": letter.tries,
        **_text("key", letter.key),
        **_text("value", letter.value),
        "headers": [
            [name, _text("text", value).get("text", {"base64": b64encode(value).decode()})]
            for name, value in letter.headers
        ],
    }


def _text(name: str, value: bytes | None) -> dict[str, str | None]:
    try:
        return {name: None if value is None else value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(value or b"").decode()}


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no acknowledgement within {_SEND_TIMEOUT:g} s"
    return f"{type(error).__name__}: {error}"
