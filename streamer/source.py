"""One member of a Kafka consumer group: reads records, ends and begins generations, commits what is settled.

The handler is told of everything in this order: `assigned`, then `read` any number of times, then `revoked` (it brings
to an end what can be, for a few seconds), then `ended`. Between `revoked` and the next `assigned` nothing is committed:
such a commit waits for JoinGroup, fails, and costs every member one more rebalance.

aiokafka's consumer is never cancelled inside `getmany` (it would stop watching `max_poll_interval_ms` for good), and it
is made anew when it can't go on by itself.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
)

from streamer.bootstrap import failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiokafka import ConsumerRecord

    from streamer.core.model import Partition

log = structlog.get_logger()

FETCH_BYTES = 1024 * 1024
"""The most that one fetch brings of one partition, a single larger record apart."""
DRAIN_TIMEOUT = 5.0
"""Seconds that a revocation waits for requests that are under way."""

_POLL_MS = 200
_MAX_RECORDS = 500
_COMMIT_INTERVAL = 1.0
_COMMIT_TIMEOUT = 10.0
_COMMIT_TIMEOUTS_TO_REBUILD = 6
_POSITION_TIMEOUT = 0.2
_START_TIMEOUT = 20.0
_STOP_TIMEOUT = 5.0
_PROBE_TIMEOUT = 5.0
_RETRY_DELAY = 3.0
_REBALANCE_TIMEOUT = 30.0
_END_OFFSETS_INTERVAL = 10.0
_NOTHING = TopicPartition("streamer.nothing", 0)
"""Asked for while nothing is wanted: an empty list would mean every partition."""


class Handler(Protocol):
    """What the pipeline does with what the source says."""

    @property
    def full(self) -> bool:
        """Whether nothing more should be read now."""

    async def room(self) -> None:
        """Wait until it isn't full."""

    def assigned(self, partitions: frozenset[Partition]) -> None:
        """Begin a generation. Nothing is awaited before this returns."""

    async def read(self, records: Sequence[tuple[Partition, Sequence[ConsumerRecord]]]) -> None:
        """Take records in. The chunks have to be noted before the first await."""

    def committable(self, partition: Partition, position: int | None) -> int | None:
        """Say which offset is safe to commit; see `streamer.core.offsets.Offsets.committable`."""

    async def revoked(self) -> None:
        """Read nothing more of this generation, and bring what flows to an end."""

    async def ended(self) -> None:
        """Throw away what is left of the generation."""


class Observer(Protocol):
    """Is told what the metrics need."""

    def rebalanced(self) -> None:
        """Partitions were assigned."""

    def committed(self, result: str, seconds: float) -> None:
        """A commit ended: `ok`, `timeout`, `rebalance` or `error`."""

    def paused(self, seconds: float) -> None:
        """Nothing was read for so long, because the memory budget was spent."""

    def skipped(self, records: int) -> None:
        """So many records went before they were read: retention, or the topic was made anew."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What is read, and as whom.

    Attributes:
        topics: names; empty if `pattern` is set.
        pattern: a regular expression of names.
        group_id: the consumer group.
        auto_offset_reset: `earliest` or `latest`.
        session_timeout_seconds: without a heartbeat for so long, the group goes on without this member.
    """

    topics: tuple[str, ...]
    pattern: str | None
    group_id: str
    auto_offset_reset: str = "earliest"
    session_timeout_seconds: float = 45.0


class Source(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """Reads until it is told to stop.

    Args:
        connection: how to reach Kafka, as aiokafka's arguments.
        subscription: what to read.
        handler: takes the records.
        observer: is told what the metrics need.

    Attributes:
        assignment: the partitions of this generation; None while the member has none, or isn't one.
        committed: the offset last committed, by partition of this generation.
        ends: the offset behind the last record, by partition, as far as it is known.
        failing: why no records come, or an empty text.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        subscription: Subscription,
        handler: Handler,
        observer: Observer,
    ) -> None:
        self.assignment: frozenset[Partition] | None = None
        self.committed: dict[Partition, int] = {}
        self.ends: dict[Partition, int] = {}
        self.failing = "not connected to Kafka yet"
        self._connection = connection
        self._subscription = subscription
        self._handler = handler
        self._observer = observer
        self._consumer: AIOKafkaConsumer | None = None
        self._stopping = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._commit_timeouts = 0
        self._commit_gate = False
        self._starts: dict[Partition, int] = {}

    async def run(self) -> None:
        """Read until `stop`; the consumer is made anew whenever it can't go on."""
        while not self._stopping.is_set():
            consumer = self._consumer = self._make_consumer()
            try:
                await self._start(consumer)
                await self._serve(consumer)
            except (KafkaError, OSError, TimeoutError) as error:
                self._say(error)
            except asyncio.CancelledError:
                if _asked_for():
                    raise
                self._say(RuntimeError("aiokafka gave up without a reason"))
            finally:
                await self._close(consumer, orderly=not _asked_for())
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_DELAY):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Read nothing more. `run` then waits for `leave`."""
        self._stopping.set()

    def lag(self) -> dict[Partition, int]:
        """Count the records between what is committed and the end, by partition, as far as both are known."""
        consumer = self._consumer
        lag = {}
        for partition in self.assignment or ():
            if consumer is not None:
                with suppress(Exception):  # the partition may have gone since
                    highwater = consumer.highwater(TopicPartition(*partition))
                    if highwater is not None:
                        self.ends[partition] = max(highwater, self.ends.get(partition, 0))
            committed = self.committed.get(partition, self._starts.get(partition))
            if partition in self.ends and committed is not None:
                lag[partition] = max(self.ends[partition] - committed, 0)
        return lag

    # --- the consumer's life --------------------------------------------------------------------

    def _make_consumer(self) -> AIOKafkaConsumer:
        subscription = self._subscription
        session_ms = int(subscription.session_timeout_seconds * 1000)
        return AIOKafkaConsumer(
            **self._connection,
            group_id=subscription.group_id,
            enable_auto_commit=False,
            auto_offset_reset=subscription.auto_offset_reset,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=min(3000, session_ms // 3),
            rebalance_timeout_ms=int(_REBALANCE_TIMEOUT * 1000),
            request_timeout_ms=int(_REBALANCE_TIMEOUT * 1000) + 10_000,  # JoinGroup waits so long
            max_poll_interval_ms=300_000,
            fetch_max_wait_ms=100,  # a longer poll of an idle partition stalls the busy ones
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_bytes=16 * 1024 * 1024,
            metadata_max_age_ms=60_000,
            retry_backoff_ms=250,
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        )

    async def _start(self, consumer: AIOKafkaConsumer) -> None:
        subscription = self._subscription
        if subscription.pattern is None:
            consumer.subscribe(topics=list(subscription.topics), listener=self)
        else:
            consumer.subscribe(pattern=subscription.pattern, listener=self)
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                await consumer.start()
        except KafkaConnectionError as error:
            raise KafkaConnectionError(await self._why_unreachable() or str(error)) from None
        except TimeoutError:
            topics = ", ".join(subscription.topics) or subscription.pattern
            raise TimeoutError(
                f"Kafka gave no partitions of {topics} within {_START_TIMEOUT:g} s; does the topic exist?"
            ) from None

    async def _why_unreachable(self) -> str:
        causes = []
        for server in self._connection["bootstrap_servers"]:
            cause = await failure(server, self._connection, _PROBE_TIMEOUT)
            if cause:
                causes.append(f"{server}: {cause}")
        return "; ".join(causes)

    async def _serve(self, consumer: AIOKafkaConsumer) -> None:
        self._commit_timeouts = 0
        tasks = {
            asyncio.create_task(self._read(consumer), name="read"),
            asyncio.create_task(self._commit_regularly(consumer), name="commit"),
            asyncio.create_task(self._ask_for_ends(consumer), name="ends"),
        }
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                await task  # raises why it ended
            await self._leave(consumer, next(task for task in tasks if task.get_name() == "read"))
        finally:
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)

    async def _leave(self, consumer: AIOKafkaConsumer, reading: asyncio.Task[None]) -> None:
        """End the generation in order; `AIOKafkaConsumer.stop` doesn't tell its listener."""
        with suppress(TimeoutError):  # a read during a rebalance waits for the assignment
            async with asyncio.timeout(_STOP_TIMEOUT):
                await asyncio.shield(reading)
        await self._end_generation(consumer)

    async def _close(self, consumer: AIOKafkaConsumer, *, orderly: bool) -> None:
        if self.assignment is not None:
            if orderly:  # what is settled is committed, if the consumer still can
                await self._end_generation(consumer)
            self.assignment = None
            await self._handler.ended()
        self._consumer = None
        # In a task of its own: with a hung broker it takes long, or raises a cancellation nobody asked for.
        closing = asyncio.create_task(consumer.stop())
        await asyncio.wait({closing}, timeout=_STOP_TIMEOUT)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)

    def _say(self, error: BaseException) -> None:
        # aiokafka's errors print their name before what they say.
        said = error.args[0] if isinstance(error, KafkaError) and error.args else error
        self.failing = str(said) or type(error).__name__
        log.error("no records from Kafka; trying again", reason=self.failing)

    # --- reading --------------------------------------------------------------------------------

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        handler = self._handler
        clock = time.monotonic
        while not self._stopping.is_set():
            if handler.full:
                paused = clock()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_MS / 1000):
                        await handler.room()
                # The group must see that the member polls; what was fetched ahead stays where it is.
                await consumer.getmany(_NOTHING, timeout_ms=0)
                self._observer.paused(clock() - paused)
                continue
            records = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_MAX_RECORDS)
            # Nothing may be awaited between the line above and the chunks' being noted in `read`.
            if records:
                await handler.read(
                    [((tp.topic, tp.partition), batch) for tp, batch in records.items()]
                )

    # --- generations ----------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002 - all are
        """End the generation. aiokafka awaits this before the member joins again, while heartbeats go on."""
        try:
            if self._consumer is not None:
                await self._end_generation(self._consumer)
        except Exception:
            log.exception("the end of a generation failed")

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin a generation."""
        partitions = frozenset((tp.topic, tp.partition) for tp in assigned)
        self.assignment = partitions
        self.committed = {}
        self.ends = {}
        self.failing = ""
        self._starts = {}
        self._commit_gate = True
        self._handler.assigned(partitions)
        self._observer.rebalanced()
        log.info("partitions assigned", count=len(partitions))
        if self._consumer is not None and partitions:
            try:
                await self._compare_with_committed(self._consumer, partitions)
            except (KafkaError, TimeoutError) as error:
                log.warning("can't compare committed offsets with the topics", reason=str(error))

    async def _end_generation(self, consumer: AIOKafkaConsumer) -> None:
        if self.assignment is None:
            return
        await self._handler.revoked()
        async with self._commit_lock:  # a commit that is under way belongs to this generation
            await self._commit(consumer)
            self.assignment = None
        await self._handler.ended()

    async def _compare_with_committed(
        self, consumer: AIOKafkaConsumer, partitions: Iterable[Partition]
    ) -> None:
        """Say it when a committed offset doesn't exist any more; aiokafka starts elsewhere without a word."""
        tps = [TopicPartition(*partition) for partition in partitions]
        async with asyncio.timeout(_COMMIT_TIMEOUT):
            beginnings = await consumer.beginning_offsets(tps)
            ends = await consumer.end_offsets(tps)
            for tp in tps:
                self.ends[tp.topic, tp.partition] = ends[tp]
                committed = await consumer.committed(tp)
                if committed is None:
                    first = self._subscription.auto_offset_reset == "earliest"
                    self._starts[tp.topic, tp.partition] = (beginnings if first else ends)[tp]
                    continue
                self.committed.setdefault((tp.topic, tp.partition), committed)
                if beginnings[tp] <= committed <= ends[tp]:
                    continue
                gone = max(beginnings[tp] - committed, 0)
                self._observer.skipped(gone)
                log.error(
                    "the committed offset is gone: records were removed before they were read, or the"
                    " topic was made anew",
                    topic=tp.topic,
                    partition=tp.partition,
                    committed=committed,
                    first=beginnings[tp],
                    end=ends[tp],
                    records_gone=gone,
                    goes_on_from=self._subscription.auto_offset_reset,
                )

    async def _ask_for_ends(self, consumer: AIOKafkaConsumer) -> None:
        """Ask for the ends of the partitions, which shows too whether Kafka answers.

        A consumer whose broker is gone says nothing: it gives no records, like one that has read everything. And what
        a fetch says of an end stands still while nothing is fetched.
        """
        while True:
            await asyncio.sleep(_END_OFFSETS_INTERVAL)
            tps = [TopicPartition(*partition) for partition in self.assignment or ()]
            if not tps:
                continue
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT):
                    ends = await consumer.end_offsets(tps)
            except (KafkaError, TimeoutError) as error:
                if not self.failing:
                    reason = str(error) or type(error).__name__
                    log.error("Kafka does not answer", reason=reason)  # noqa: TRY400 - an outage, not a bug
                self.failing = "it doesn't answer"
            else:
                self.ends.update({(tp.topic, tp.partition): end for tp, end in ends.items()})
                if self.failing:
                    log.info("Kafka answers again")
                self.failing = ""

    # --- commits --------------------------------------------------------------------------------

    async def _commit_regularly(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            await asyncio.sleep(_COMMIT_INTERVAL)
            async with self._commit_lock:
                if self._commit_gate:
                    await self._commit(consumer)
            if self._commit_timeouts >= _COMMIT_TIMEOUTS_TO_REBUILD:
                raise TimeoutError(
                    f"{self._commit_timeouts} commits in a row got no answer within {_COMMIT_TIMEOUT:g} s"
                )

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        """Commit what is settled and wasn't committed, if the member has a generation."""
        offsets = {}
        for partition in self.assignment or ():
            position = await self._position(consumer, partition)
            # No await between the position and this: a record read in between would be skipped.
            committable = self._handler.committable(partition, position)
            if committable is not None and committable != self.committed.get(partition):
                offsets[partition] = committable
        if not offsets:
            return
        started = time.monotonic()
        result = "error"
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT):
                await consumer.commit({TopicPartition(*p): offset for p, offset in offsets.items()})
            result = "ok"
            self.committed.update(offsets)
            self._commit_timeouts = 0
        except TimeoutError:
            result = "timeout"
            self._commit_timeouts += 1
            log.warning("a commit got no answer; trying again", seconds=_COMMIT_TIMEOUT)
        except (CommitFailedError, IllegalStateError):
            # Not ours any more: what wasn't committed is read again by the next owner. Another commit before the next
            # assignment could reset the generation that is being made.
            result = "rebalance"
            self._commit_gate = False
        except KafkaError as error:
            log.warning("a commit failed; trying again", reason=f"{type(error).__name__}: {error}")
        finally:
            self._observer.committed(result, time.monotonic() - started)

    async def _position(self, consumer: AIOKafkaConsumer, partition: Partition) -> int | None:
        try:
            async with asyncio.timeout(_POSITION_TIMEOUT):
                return await consumer.position(TopicPartition(*partition))  # type: ignore[no-any-return] # untyped
        except (TimeoutError, KafkaError):
            return None  # not known yet, or not ours any more


def _asked_for() -> bool:
    """Whether somebody cancelled this task; aiokafka sometimes raises a cancellation of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
