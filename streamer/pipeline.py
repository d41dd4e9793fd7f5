"""The spine: Kafka, source, transform, aggregate, batch, delivery, Segment; and back, the offsets.

A generation is one assignment of partitions: its offsets, its ledger, its share of memory and its lanes begin and end
together. After every await between reading a record and adding its calls, the generation is looked at again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from streamer.backlog import MANY_CALLS, Calls, look
from streamer.config import require_write_key
from streamer.core.account import Account
from streamer.core.aggregate import Lane, Merging
from streamer.core.batch import Limits
from streamer.core.budget import Budget
from streamer.core.destination import State
from streamer.core.exclude import Exclusions
from streamer.core.mapping import overlay
from streamer.core.model import CALL_TYPES, DeadLetter, Formatted, Reason, Reject
from streamer.core.offsets import Chunk, Offsets
from streamer.core.transform import PROFILES, Transform
from streamer.dead_letter import DeadLetters, FileSink, KafkaSink
from streamer.delivery import Delivery, states
from streamer.metrics import Metrics, Readings
from streamer.segment import Segment
from streamer.server import serve
from streamer.source import DRAIN_TIMEOUT, Source, Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aiokafka import ConsumerRecord

    from streamer.config import Config
    from streamer.core.account import Ledger
    from streamer.core.batch import Batch
    from streamer.core.budget import Share
    from streamer.core.destination import Destination
    from streamer.core.model import Partition
    from streamer.dead_letter import Sink

log = structlog.get_logger()

_SLICE_BYTES = 192_000
_RECORD_BYTES = 1000
"""So many bytes of records are processed in one stretch, each record counted with so many more: some 5 ms of the event
loop's time, of which heartbeats need their share."""
_DRAIN_SHARE = 0.8
"""How much of `shutdown_timeout` may pass before the offsets are committed and the group is left."""


def make_transform(config: Config, write_key: str, *, checked: bool = True) -> Transform:
    """Compile the mapping that the configuration describes.

    Args:
        config: all settings.
        write_key: what the calls' ids are keyed with.
        checked: whether what Segment would throw away is rejected; the profile `default` does so in any case.

    Raises:
        MappingError: the mapping or a group map breaks the grammar.
    """
    settings = config.transform
    return Transform(
        write_key=write_key,
        mapping=overlay(PROFILES[settings.profile].mapping(), settings.mapping),
        groups=[group.model_dump(exclude_unset=True) for group in config.groups],
        exclusions=Exclusions(
            frozenset(settings.drop_events),
            settings.drop_traits,
            settings.drop_properties,
            settings.sample,
        ),
        profile=settings.profile,
        checked=checked,
    )


def make_lane(config: Config, write_key: str, ledger: Ledger, share: Share) -> Lane:
    """Make a lane for one generation, as the configuration says.

    Args:
        config: all settings.
        write_key: Segment's.
        ledger: where the calls' fates are written.
        share: the generation's share of the memory budget.
    """
    flush, aggregate = config.flush, config.aggregate
    merges = PROFILES[config.transform.profile].mends
    return Lane(
        write_key=write_key,
        limits=Limits(flush.max_calls, flush.max_bytes),
        merging=Merging(merges and aggregate.identify, merges and aggregate.group),
        nonce=secrets.token_bytes(16),
        ledger=ledger,
        share=share,
    )


def make_calls(config: Config, write_key: str, transform: Transform) -> Calls:
    """Say how records become billed calls, for who only wants to count them.

    Args:
        config: all settings.
        write_key: Segment's.
        transform: what `make_transform` gave.
    """
    return Calls(transform.format, partial(make_lane, config, write_key))


@dataclass(slots=True)
class Generation:
    """One assignment of partitions.

    Attributes:
        offsets: what is safe to commit.
        ledger: what writes the account.
        share: of the memory budget.
        lane: what is open, waiting and in flight.
        ended: whether its partitions were taken away.
    """

    offsets: Offsets
    ledger: Ledger
    share: Share
    lane: Lane
    ended: bool = False


class Pipeline:
    """Forwards from Kafka to Segment until it is told to stop.

    Args:
        config: all settings.

    Attributes:
        account: every record's and every call's fate.
        registry: the metrics.
        port: where the server listens, while the pipeline runs.

    Raises:
        ConfigError: there is no write key, the mapping breaks the grammar, or a certificate can't be used.
        StartError: the file for dead letters can't be written.
    """

    def __init__(self, config: Config) -> None:
        self.account = Account()
        self.registry = CollectorRegistry()
        self.port = 0
        self._config = config
        self._write_key = require_write_key(config)
        transform = make_transform(config, self._write_key)
        self._format = transform.format
        self._calls = make_calls(config, self._write_key, transform)
        self._budget = Budget(config.flush.memory_budget)
        self._generation: Generation | None = None
        self._room = asyncio.Event()
        self._stop_at: float | None = None
        self._first_starts: asyncio.Queue[dict[Partition, range]] = asyncio.Queue()
        self._announced: set[Partition] = set()
        self._connection = connection = config.kafka.connection()
        self._metrics = Metrics(
            self.registry,
            self.readings,
            interval_seconds=config.flush.interval,
            max_calls=config.flush.max_calls,
            max_bytes=config.flush.max_bytes,
        )
        self._source = Source(
            connection,
            Subscription(
                topics=config.kafka.topics,
                pattern=config.kafka.topic_pattern,
                group_id=config.kafka.group_id,
                auto_offset_reset=config.kafka.auto_offset_reset,
                session_timeout_seconds=config.kafka.session_timeout,
            ),
            handler=self,
            observer=self._metrics,
        )
        self._segment = Segment(
            config.segment.url,
            gzip=config.segment.gzip,
            timeout_seconds=config.segment.timeout,
            connections=config.flush.concurrency,
        )
        self._delivery = Delivery(
            self._segment,
            handler=self,
            observer=self._metrics,
            concurrency=config.flush.concurrency,
            max_requests_per_second=config.flush.max_requests_per_second,
            interval_seconds=config.flush.interval,
        )
        letters = config.dead_letter
        sink: Sink = KafkaSink(str(letters.topic), connection)
        if letters.file:
            sink = file = FileSink(letters.file)
            file.check()
        self._letters = DeadLetters(sink, self._metrics.letter_failed)

    async def run(self, stop: asyncio.Event) -> None:
        """Forward until `stop` is set; then send what flows, commit, leave the group, and return.

        Args:
            stop: set by a signal.

        Raises:
            StartError: the server's port is taken.
        """
        server = self._config.server
        async with (
            serve(server.host, server.port, self.registry, self.not_ready) as self.port,
            self._segment,
            asyncio.TaskGroup() as tasks,
        ):
            kafka = self._config.kafka
            log.info(
                "streamer runs",
                settings=", ".join(self._config.files)
                or "no file (--config names one), the environment",
                reads=", ".join(kafka.topics) or kafka.topic_pattern,
                group=kafka.group_id,
                sends_to=self._config.segment.url,
                metrics=f"http://{server.host}:{self.port}/metrics",
            )
            background = [
                tasks.create_task(self._delivery.run()),
                tasks.create_task(self._letters.run()),
                tasks.create_task(self._metrics.watch_loop()),
                tasks.create_task(self._announce()),
            ]
            source = tasks.create_task(self._source.run())
            await stop.wait()
            await self._stop(source)
            for task in background:
                task.cancel()

    def not_ready(self) -> list[str]:
        """Say why this process can't do its work now: a sentence each, none when it can."""
        reasons = []
        if self._source.failing:
            reasons.append(f"Kafka: {self._source.failing}")
        elif self._source.assignment is None:
            reasons.append("Kafka: the consumer group is sharing its partitions out")
        reasons += [
            f"Segment: {destination.reason}"
            for destination in self._delivery.destinations.values()
            if destination.state is State.MISCONFIGURED
        ]
        if self._stop_at is not None:
            reasons.append("stopping")
        return reasons

    def readings(self) -> Readings:
        """Read what a scrape of the metrics shows, all at one time."""
        generation, delivery = self._generation, self._delivery
        return Readings(
            account=self.account,
            memory_limit=self._budget.limit,
            memory_used=self._budget.used,
            lag=self._source.lag(),
            committed=self._source.committed,
            assigned=len(self._source.assignment or ()),
            requests=delivery.in_flight,
            concurrency=delivery.concurrency,
            destinations=states(delivery.destinations.values()),
            open_profiles=generation.lane.open_profiles if generation else 0,
            oldest_pending_ms=generation.offsets.oldest_timestamp() if generation else None,
        )

    @property
    def destinations(self) -> list[Destination]:
        """Every destination with its state, and why it is held."""
        return list(self._delivery.destinations.values())

    # --- records in: what the source asks -------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the memory budget is spent."""
        return self._budget.spent

    async def room(self) -> None:
        """Wait until the memory budget isn't spent."""
        while self._budget.spent:
            self._room.clear()
            await self._room.wait()

    def assigned(self, partitions: frozenset[Partition]) -> None:  # noqa: ARG002 - offsets come with the chunks
        """Begin a generation."""
        ledger, share = self.account.ledger(), self._budget.share()
        lane = make_lane(self._config, self._write_key, ledger, share)
        self._generation = Generation(Offsets(), ledger, share, lane)
        self._delivery.begin(lane)

    def starts_first(self, offsets: Mapping[Partition, range]) -> None:
        """Have a first start announced, once for each partition: a rebalance may come before the first commit."""
        new = {p: span for p, span in offsets.items() if p not in self._announced}
        if new:
            self._announced |= new.keys()
            self._first_starts.put_nowait(new)

    async def read(self, records: Sequence[tuple[Partition, Sequence[ConsumerRecord]]]) -> None:
        """Take in what was read: note it all, then transform it slice by slice."""
        generation = self._generation
        if generation is None or generation.ended:
            return  # read while the partitions were taken away: the next owner reads it again
        now = asyncio.get_running_loop().time()
        chunks = [
            (self._note(generation, partition, together, now), together)
            for partition, together in records
        ]
        done = _SLICE_BYTES  # fetching and noting were a stretch of their own
        for (chunk, size), together in chunks:
            done = await self._process(generation, chunk, together, done)
            if generation.ended:
                return
            chunk.let_go()
            generation.share.give(size)
        self._delivery.notify()

    def _note(
        self,
        generation: Generation,
        partition: Partition,
        records: Sequence[ConsumerRecord],
        now: float,
    ) -> tuple[Chunk, int]:
        chunk = Chunk(
            partition,
            [record.offset for record in records],
            [record.timestamp for record in records],
            [record.key for record in records],
            generation.share,
            now,
        )
        size = sum(len(record.value) for record in records if record.value is not None)
        generation.offsets.add(chunk)
        generation.ledger.consumed(partition[0], len(records), size)
        generation.share.take(size)
        return chunk, size

    async def _process(
        self,
        generation: Generation,
        chunk: Chunk,
        records: Sequence[ConsumerRecord],
        done: int,
    ) -> int:
        """Process a chunk, of which a slice may go on where that of the chunk before it ended.

        Args:
            generation: its generation.
            chunk: the chunk.
            records: its records.
            done: bytes since the event loop had its last turn.

        Returns:
            The same, at the chunk's end.
        """
        make, add = self._format, generation.lane.add
        made = dict.fromkeys(CALL_TYPES, 0)
        for number, record in enumerate(records):
            if done >= _SLICE_BYTES:
                done = 0
                _note_made(generation.ledger, made)
                if (
                    generation.lane.ready
                ):  # what is open waits for its interval: `read` says so at its end
                    self._delivery.notify()
                await asyncio.sleep(0)
                if generation.ended:
                    return done
            value = record.value
            formatted = make(value, record.timestamp)
            if isinstance(formatted, Formatted):
                add(formatted, chunk, number)
                made[formatted.type] += 1
                for contribution in formatted.contributions:
                    made[contribution.type] += 1
            elif isinstance(formatted, Reject):
                self._reject(generation, chunk, record, formatted)
            else:
                generation.ledger.filtered(formatted.reason)
            done += _RECORD_BYTES + (len(value) if value else 0)
        _note_made(generation.ledger, made)
        return done

    def committable(self, partition: Partition, position: int | None) -> int | None:
        """Say which offset is safe to commit."""
        generation = self._generation
        return None if generation is None else generation.offsets.committable(partition, position)

    async def revoked(self) -> None:
        """Take in nothing more of this generation, and send what flows."""
        generation = self._generation
        if generation is None:
            return
        generation.ended = True
        clock = asyncio.get_running_loop().time
        if self._stop_at is None:
            trigger, deadline = "rebalance", clock() + DRAIN_TIMEOUT
        else:
            trigger, deadline = "shutdown", self._stop_at
        await self._delivery.drain(trigger, deadline - clock())
        await self._letters.drain(max(deadline - clock(), 0.0))

    async def ended(self) -> None:
        """Throw away what is left of the generation; it is read again by who has the partitions next."""
        generation, self._generation = self._generation, None
        if generation is None:
            return
        await self._delivery.end()
        self._letters.forget()
        if generation.ledger.records:
            log.info("records go back to Kafka undelivered", records=generation.ledger.records)
        generation.ledger.end()
        generation.share.end()
        self._room.set()

    # --- dead letters ---------------------------------------------------------------------------

    def _reject(
        self, generation: Generation, chunk: Chunk, record: ConsumerRecord, reject: Reject
    ) -> None:
        letter = DeadLetter(
            kind="record",
            reason=reject.reason,
            detail=reject.detail,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp if record.timestamp >= 0 else None,
            key=record.key,
            value=record.value,
            headers=tuple(record.headers),
        )
        ledger = generation.ledger
        self._put(letter, chunk, generation.share, lambda: ledger.dead_lettered(reject.reason))

    def refused(self, lane: Lane, batch: Batch, place: int, detail: str) -> None:
        """Make a dead letter of a call that Segment refused when it stood alone."""
        chunk = batch.chunks[batch.chunk_numbers[place]]
        number = batch.records[place]
        kind = CALL_TYPES[batch.types[place]]
        timestamp = chunk.timestamps[number]
        letter = DeadLetter(
            kind="call",
            reason=Reason.REFUSED,
            detail=f"Segment refused this {kind} call: {detail}",
            topic=chunk.partition[0],
            partition=chunk.partition[1],
            offset=chunk.offsets[number],
            timestamp_ms=timestamp if timestamp >= 0 else None,
            key=chunk.keys[number],
            value=batch.calls[place],
            tries=batch.tries,
        )
        self._put(letter, chunk, lane.share, lambda: lane.ledger.refused(kind, Reason.REFUSED))

    def _put(
        self, letter: DeadLetter, chunk: Chunk, share: Share, count: Callable[[], None]
    ) -> None:
        chunk.hold()

        def acknowledged() -> None:
            count()
            chunk.let_go()

        self._letters.put(letter, share, acknowledged)

    # --- the rest -------------------------------------------------------------------------------

    async def _announce(self) -> None:
        """Say of each first start what it reads and what that costs, beside the stream that has begun."""
        kafka = self._config.kafka
        while True:
            offsets = await self._first_starts.get()
            earliest = kafka.auto_offset_reset == "earliest"
            backlog = await look(self._connection, offsets, self._calls if earliest else None)
            said = backlog.first_start(kafka.auto_offset_reset)
            facts: dict[str, object] = dict(zip(("starts", "costs"), said, strict=False))
            if backlog.offsets:
                other, what = ("latest", "skip") if earliest else ("earliest", "read")
                facts["instead"] = (
                    f'to {what} them: stop, and start with kafka.auto_offset_reset = "{other}" and another'
                    " kafka.group_id"
                )
            calls = backlog.calls
            log.log(
                logging.WARNING if calls is not None and calls >= MANY_CALLS else logging.INFO,
                "a first start",
                group=kafka.group_id,
                records=backlog.offsets,
                billed_calls=calls,
                **facts,
            )

    def progressed(self) -> None:
        """Look whether there is room to read again."""
        if not self._budget.spent:
            self._room.set()

    async def _stop(self, source: asyncio.Task[None]) -> None:
        timeout = self._config.shutdown_timeout
        now = asyncio.get_running_loop().time()
        log.info(
            "stopping: sending what flows, then committing",
            seconds_at_most=timeout,
            to_stop_at_once="send a second signal",
        )
        self._stop_at = now + timeout * _DRAIN_SHARE
        self._source.stop()
        done, _ = await asyncio.wait({source}, timeout=timeout)
        if not done:
            log.warning("not everything could be committed in time; it is read again")
            source.cancel()


def _note_made(ledger: Ledger, made: dict[str, int]) -> None:
    """Note calls in the account once for many records, and begin to count anew."""
    for kind in CALL_TYPES:
        ledger.made(kind, made[kind])
        made[kind] = 0
