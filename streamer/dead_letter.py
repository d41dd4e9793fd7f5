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
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

from streamer.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from streamer.core.budget import Share
    from streamer.core.model import DeadLetter

log = structlog.get_logger()

LETTER_OVERHEAD = 1000
"""Bytes of memory that a letter takes besides its key, value and headers, for the budget."""
_WRITTEN_TOGETHER = 500
_BYTES_TOGETHER = 1_000_000  # as much as a cluster that allows little takes within a time-out
_FIRST_DELAY, _LAST_DELAY = 0.5, 10.0  # seconds between two tries
_SHOWN_CHARACTERS = 300  # of what is wrong, in a line of the log
_METADATA_PACE = 0.25
_TRUNCATED_BYTES = 100_000  # of the value, when Kafka refuses the letter for its size
_FOR_EVER = MessageSizeTooLargeError, RecordListTooLargeError, InvalidTimestampError


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
    `streamer-partition`, `streamer-offset`, `streamer-time` (ISO-8601), `streamer-tries`, and of a call
    `streamer-batch`, the batch's name in the log. What Kafka would refuse for ever is written as far as Kafka takes it:
    too large, with a part of the value, without the record's headers and with `streamer-truncated`, the bytes that the
    value had; with a timestamp that the topic doesn't allow, without it and with `streamer-timestamp`. Aiokafka can't
    write a record that has neither key nor value: it gets an empty value.

    Args:
        topic: its name.
        connection: how to reach Kafka, as aiokafka's arguments.
        timeout_seconds: for a write; the producer itself has no limit that holds when a broker hangs.
    """

    def __init__(
        self, topic: str, connection: Mapping[str, Any], timeout_seconds: float = 15.0
    ) -> None:
        self._topic = topic
        self._connection = connection
        self._timeout_seconds = timeout_seconds
        self._producer: AIOKafkaProducer | None = None
        self._metadata: _PacedMetadata | None = None
        self._alone = False  # whether each letter goes in a batch of its own

    async def write(self, letters: Sequence[DeadLetter]) -> tuple[int, str]:
        """See `Sink.write`."""
        unwritten = {number: _Form(letter) for number, letter in enumerate(letters)}
        why = ""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                while unwritten and not why:
                    why = await self._write(unwritten)
        except TimeoutError:
            why = f"no acknowledgement within {self._timeout_seconds:g} s"
        except (KafkaError, OSError) as error:
            why = _said(error)
        if why or self._alone:  # left to itself, a producer goes on with what is pending
            await self.close()
            self._alone = False
        return min(unwritten, default=len(letters)), why

    async def close(self) -> None:
        """See `Sink.close`."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        # Left to itself, `stop` waits for what can't be sent as long as it can't; and a task of it that is cancelled
        # while a request is under way ends with a second cancellation only.
        sending = producer._sender.sender_task  # noqa: SLF001 - aiokafka gives no other way
        while sending is not None and not sending.done():
            sending.cancel()
            await asyncio.wait({sending}, timeout=0.1)
        unsent = producer._message_accumulator  # noqa: SLF001 - the same
        unsent._batches.clear()  # noqa: SLF001 - the same
        unsent._pending_batches.clear()  # noqa: SLF001 - the same
        if self._metadata is not None:
            self._metadata.cancel()
        stopping = asyncio.create_task(producer.stop())  # a cancellation of its own stays in it
        await asyncio.wait({stopping})
        if not stopping.cancelled():
            stopping.exception()  # it is thrown away, whatever it says

    async def _write(self, unwritten: dict[int, _Form]) -> str:
        """Write all, and take what is acknowledged out.

        Returns:
            Why what is left can't be written now; an empty text if it is worth another try at once.
        """
        producer = await self._connected()
        sent: dict[int, asyncio.Future[Any]] = {}
        for number, form in unwritten.items():
            try:
                sent[number] = await producer.send(self._topic, **form.arguments())
            except KafkaError as error:
                sent[number] = asyncio.get_running_loop().create_future()
                sent[number].set_exception(error)
        try:
            await asyncio.gather(*sent.values(), return_exceptions=True)
        finally:  # when the time is over, what was acknowledged until then still is
            failures = {number: _failure(future) for number, future in sent.items()}
            for number, failure in failures.items():
                if failure is None:
                    del unwritten[number]
        refused = {n: error for n, error in failures.items() if isinstance(error, _FOR_EVER)}
        if refused and not self._alone:
            # Kafka refuses whole batches, and what an idempotent producer sends behind a refusal. Sent without both,
            # each letter gets the answer that is meant for it.
            await self.close()
            self._alone = True
            return ""
        for number, failure in failures.items():
            if failure is not None and (
                number not in refused or not unwritten[number].reduce(failure)
            ):
                return _said(failure)
        return ""

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                **self._connection,
                acks="all",
                enable_idempotence=not self._alone,
                max_batch_size=1 if self._alone else 16_384,
                linger_ms=0 if self._alone else 5,
                request_timeout_ms=10_000,
                max_request_size=1 << 30,  # the broker's own limit decides, not the client's
            )
            self._producer = producer
            self._metadata = _PacedMetadata(producer.client)
            await producer.start()
        return self._producer


def _failure(future: asyncio.Future[Any]) -> BaseException | None:
    """Why a letter isn't acknowledged, None if it is."""
    return asyncio.CancelledError() if future.cancelled() else future.exception()


class _PacedMetadata:
    """Asks for metadata a few times a second at most.

    A producer asks for it for as long as a partition has no leader, which is so after a broker's graceful stop; where
    nothing listens it gets no answer at once, asks again, and takes all of a core.

    Args:
        client: of the producer.
    """

    def __init__(self, client: Any) -> None:  # noqa: ANN401 - aiokafka has no types
        self._ask = client.force_metadata_update
        self._asking: asyncio.Task[Any] | None = None
        self._next = 0.0
        client.force_metadata_update = self._paced

    def cancel(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()

    def _paced(self) -> asyncio.Future[Any]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_in_time())
        return asyncio.shield(self._asking)

    async def _ask_in_time(self) -> Any:  # noqa: ANN401 - aiokafka has no types
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(self._next - clock(), 0.0))
        self._next = clock() + _METADATA_PACE
        return await self._ask()


class _Form:
    """A letter as it is sent to Kafka: as it is at first, then as far as Kafka takes it."""

    def __init__(self, letter: DeadLetter) -> None:
        self._letter = letter
        self._more: tuple[tuple[str, bytes], ...] = ()

    def arguments(self) -> dict[str, Any]:
        """What `AIOKafkaProducer.send` is called with."""
        letter = self._letter
        value = b"" if letter.key is None and letter.value is None else letter.value
        return {
            "value": value,
            "key": letter.key,
            "timestamp_ms": letter.timestamp_ms,
            "headers": [*letter.headers, *headers(letter), *self._more],
        }

    def reduce(self, error: BaseException) -> bool:
        """Leave out what Kafka refuses for ever.

        Args:
            error: one of `_FOR_EVER`.

        Returns:
            False if nothing is left to leave out.
        """
        letter = self._letter
        if isinstance(error, InvalidTimestampError) and letter.timestamp_ms is not None:
            self._more += (("streamer-timestamp", str(letter.timestamp_ms).encode()),)
            self._letter = replace(letter, timestamp_ms=None)
            return True
        if isinstance(error, InvalidTimestampError) or not (
            letter.value or letter.key or letter.headers
        ):
            return False
        value = letter.value or b""
        if not any(name == "streamer-truncated" for name, _ in self._more):
            self._more += (("streamer-truncated", str(len(value)).encode()),)
            self._letter = replace(letter, value=value[:_TRUNCATED_BYTES], headers=())
        else:
            self._letter = replace(letter, value=b"", key=None)
        log.warning(
            "a dead letter is too large for its topic; a part of it is written",
            **_batch(letter),
            topic=letter.topic,
            partition=letter.partition,
            offset=letter.offset,
            bytes=len(value),
        )
        return True


class FileSink:
    """Appends to an NDJSON file, a line a letter.

    Keys: kind, reason, detail, topic, partition, offset, time, timestamp (Kafka's, in milliseconds), tries, of a call
    batch, key, value, headers. What isn't UTF-8 stands base64-encoded under `key_base64`, `value_base64` or, for
    headers, in place of the text as `{"base64": ...}`.

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

    def check(self) -> None:
        """See that it can be written, at the start, where a person looks; later a failure is only tried again.

        Raises:
            StartError: it can't.
        """
        try:
            with self._path.open("ab"):
                pass
        except OSError as error:
            raise StartError(
                f"dead_letter.file = {self._path}: can't be written: {error.strerror or error}"
            ) from None

    def _append(self, lines: bytes) -> None:
        with self._path.open("ab+", buffering=0) as file:
            whole = file.seek(0, os.SEEK_END)
            if whole and os.pread(file.fileno(), 1, whole - 1) != b"\n":
                lines = b"\n" + lines  # a process that was killed left a part of a line
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(whole)  # they are written again, from the first on
                raise


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
        self._failing_since = 0.0
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
        size = LETTER_OVERHEAD + len(letter.value or b"") + len(letter.key or b"")
        size += sum(len(name) + len(value or b"") for name, value in letter.headers)
        share.take(size)
        self._waiting.append(_Waiting(letter, share, size, acknowledged))
        self._more.set()

    def _next(self) -> list[_Waiting]:
        """Choose what is written together: the first letters, one at least."""
        together: list[_Waiting] = []
        size = 0
        for waiting in self._waiting:
            size += waiting.size
            if together and (size > _BYTES_TOGETHER or len(together) >= _WRITTEN_TOGETHER):
                break
            together.append(waiting)
        return together

    async def run(self) -> None:
        """Write until cancelled."""
        clock = asyncio.get_running_loop().time
        delay = _FIRST_DELAY
        try:
            while True:
                self._more.clear()
                if not self._waiting:
                    await self._more.wait()
                together = self._next()
                written, why = await self._sink.write([waiting.letter for waiting in together])
                kept = []
                for waiting in together[:written]:
                    if self._waiting and self._waiting[0] is waiting:  # else its generation ended
                        self._waiting.popleft()
                        waiting.share.give(waiting.size)
                        waiting.acknowledged()
                        kept.append(waiting.letter)
                _log_kept(kept)
                self._progress.set()
                if why:
                    self._failed()
                    if not self.failing:
                        self._failing_since = clock()
                        log.error(
                            "dead letters can't be written; their records stay uncommitted, and the"
                            " write is tried again",
                            reason=why,
                            waiting=len(self._waiting),
                        )
                    self.failing = why
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _LAST_DELAY)
                else:
                    if self.failing:
                        log.info(
                            "dead letters are written again",
                            after_seconds=round(clock() - self._failing_since, 1),
                        )
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
        for waiting in self._waiting:
            waiting.share.give(waiting.size)
        self._waiting.clear()
        self._progress.set()


def _log_kept(letters: Iterable[DeadLetter]) -> None:
    """Log letters that were written together: a line for each reason and batch, which shows the first."""
    alike: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        alike.setdefault((letter.reason, letter.batch), []).append(letter)
    for first, *others in alike.values():
        log.warning(
            "dead letters",
            reason=str(first.reason),
            letters=1 + len(others),
            kind=first.kind,
            **_batch(first),
            topic=first.topic,
            partition=first.partition,
            offset=first.offset,
            detail=first.detail[:_SHOWN_CHARACTERS],
        )


def headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The Kafka headers that say what a letter is."""
    said = {
        "kind": letter.kind,
        "reason": str(letter.reason),
        "detail": letter.detail.encode("utf-8", "replace").decode(),  # site code may say anything
        "topic": letter.topic,
        "partition": str(letter.partition),
        "offset": str(letter.offset),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "tries": str(letter.tries),
        **_batch(letter),
    }
    return [(f"streamer-{name}", text.encode("utf-8", "replace")) for name, text in said.items()]


def _batch(letter: DeadLetter) -> dict[str, str]:
    return {"batch": letter.batch} if letter.batch else {}


def _line(letter: DeadLetter) -> dict[str, Any]:
    return {
        "kind": letter.kind,
        "reason": str(letter.reason),
        "detail": letter.detail.encode("utf-8", "replace").decode(),  # site code may say anything
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "timestamp": letter.timestamp_ms,
        "tries": letter.tries,
        **_batch(letter),
        **_text("key", letter.key),
        **_text("value", letter.value),
        "headers": [[name, _readable(value)] for name, value in letter.headers],
    }


def _text(name: str, value: bytes | None) -> dict[str, Any]:
    said = _readable(value)
    return {f"{name}_base64": said["base64"]} if isinstance(said, dict) else {name: said}


def _readable(value: bytes | None) -> str | dict[str, str] | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value or b"").decode()}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
