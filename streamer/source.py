"""One member of a Kafka consumer group: reads records, ends and begins generations, commits what is settled.

The handler is told of everything in this order: `assigned`, then `starts_first` if it is a first start, then `read` any
number of times, then `revoked` (it brings to an end what can be, for a few seconds), then `ended`. Between `revoked`
and the next `assigned` nothing is committed: such a commit waits for JoinGroup, fails, and costs every member one more
rebalance.

Where a partition is read from is decided here: aiokafka goes elsewhere without a word when an offset is gone.

That its partitions are its own a member knows only for a time, from each heartbeat on (`Lease`). When that is over, as
after a suspension, it sends and commits nothing until the group has confirmed it again: `may_send`.

aiokafka's consumer is never cancelled inside `getmany` while it is to live, and it is made anew when it can't go on by
itself.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    NoError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.group import HeartbeatRequest, LeaveGroupRequest, SyncGroupRequest

from streamer.bootstrap import failure
from streamer.core.lease import Lease
from streamer.core.model import Restart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from aiokafka import ConsumerRecord

    from streamer.core.model import Partition

log = structlog.get_logger()

FETCH_BYTES = 512 * 1024
"""The most that one fetch brings of one partition, a single larger record apart. As much waits when reading stops."""
DRAIN_TIMEOUT = 5.0
"""Seconds that a revocation waits for requests that are under way."""

_POLL_MS = 200
_MAX_RECORDS = 500
_COMMIT_INTERVAL = 1.0
_COMMIT_TIMEOUT = 10.0
_COMMIT_TIMEOUTS_TO_REBUILD = 6
_ANSWER_TIMEOUT = 5.0
_STOP_TIMEOUT = 5.0
_GOODBYE_TIMEOUT = 1.0
"""Seconds for what a stop asks of a Kafka that left the question before unanswered."""
_RETRY_DELAY = 3.0
_REBALANCE_TIMEOUT = 30.0
_REQUEST_TIMEOUT = _REBALANCE_TIMEOUT + 10.0  # JoinGroup waits for as long as a rebalance takes
_ASSIGNMENT_TIMEOUT = 2 * _REBALANCE_TIMEOUT
"""Seconds without an assignment after which the consumer is made anew: something in it stands still."""
_CONFIRMATION_TIMEOUT = 60.0
"""Seconds without a certain membership after which the consumer is made anew."""
_POLL_TIMEOUT = 60.0
"""Seconds after which a read that doesn't return has the consumer made anew."""
_DECODE_INTERVAL = 30.0
"""Seconds after which a record that couldn't be decoded is tried again."""
_SAY_AGAIN = 600.0
_SAY_PAUSED = 5.0
"""Seconds after which it is said that nothing is read; a pause that is shorter is how reading keeps pace."""
_START_WATCH_INTERVAL = 3.0
_WATCH_INTERVAL = 5.0
_NOT_A_MEMBER_ERRORS = (UnknownMemberIdError, IllegalGenerationError)
_NOT_A_MEMBER = {error.errno for error in _NOT_A_MEMBER_ERRORS}
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

    def starts_first(self, offsets: Mapping[Partition, range]) -> None:
        """Learn of partitions of this generation without a committed offset, and of what is in them."""

    async def read(self, records: Sequence[tuple[Partition, Sequence[ConsumerRecord]]]) -> None:
        """Take records in. The chunks have to be noted before the first await."""

    def committable(self, partition: Partition, position: int | None) -> int | None:
        """Say which offset is safe to commit; see `streamer.core.offsets.Offsets.committable`."""

    def confirmed(self) -> None:
        """Go on sending: it is certain again that this member has its partitions."""

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

    def restarted(self, reason: Restart) -> None:
        """The consumer is made anew."""

    def paused(self, seconds: float) -> None:
        """Nothing was read for so long, because the memory budget was spent."""

    def skipped(self, records: int) -> None:
        """So many records went before they were read: retention, or the topic was made anew.

        How many went with a topic that was made anew, nobody knows; it counts as one at least.
        """


@dataclass(frozen=True, slots=True)
class Subscription:
    """What is read, and as whom.

    Attributes:
        topics: names; empty if `pattern` is set.
        pattern: a regular expression of names.
        group_id: the consumer group.
        auto_offset_reset: `earliest` or `latest`.
        session_timeout_seconds: without a heartbeat for so long, the group goes on without this member.
        isolation_level: `read_committed`, or `read_uncommitted` for what transactions took back too.
        metadata_max_age_seconds: after so long a new partition, or a new topic of the pattern, is found.
    """

    topics: tuple[str, ...]
    pattern: str | None
    group_id: str
    auto_offset_reset: str = "earliest"
    session_timeout_seconds: float = 45.0
    isolation_level: str = "read_committed"
    metadata_max_age_seconds: float = 60.0


class _RestartError(Exception):
    """Why the consumer has to be made anew, though aiokafka says nothing."""

    def __init__(self, reason: Restart, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(slots=True)
class _Held:
    """A partition that waits, because the record that comes next can't be decoded.

    Attributes:
        offset: from where on it can't.
        detail: why.
        retry_at: when it is tried again, in seconds.
        say_at: when it is said again.
    """

    offset: int
    detail: str
    retry_at: float = 0.0
    say_at: float = 0.0


class _Pause:
    """Logs that nothing is read because the memory budget is spent, once that lasts, and when it is over."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._said = False

    def note(self, now: float, *, full: bool) -> None:
        """Note at a time, in seconds, whether the budget is spent."""
        if full and self._since is None:
            self._since = now
        since = now if self._since is None else self._since
        if full and not self._said and now - since >= _SAY_PAUSED:
            self._said = True
            log.warning(
                "reading is paused: flush.memory_budget is spent by what waits to be sent; the lag waits in Kafka"
            )
        elif not full:
            if self._said:
                log.info("reading goes on", after_seconds=round(now - since, 1))
            self._since, self._said = None, False


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
        self._failing_since = 0.0
        self._connection = connection
        self._subscription = subscription
        self._handler = handler
        self._observer = observer
        self._consumer: AIOKafkaConsumer | None = None
        self._stopping = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._commit_timeouts = 0
        self._commit_again_until = 0.0
        self._commits_fail_since: float | None = None
        self._commit_gate = False
        self._ending = asyncio.Lock()
        self._missing: list[str] = []
        self._waiting_since = 0.0
        self._placed: frozenset[Partition] | None = None
        self._starts: dict[Partition, int] = {}
        self._read_to: dict[Partition, int] = {}  # the position behind what the handler has
        self._held: dict[Partition, _Held] = {}
        self._known: dict[str, int] | None = (
            None  # the partitions that topics had at the last assignment
        )
        self._polling_since: float | None = None
        self._lease = self._make_lease()
        self._doubtful_since: float | None = None

    async def run(self) -> None:
        """Read until `stop`; the consumer is made anew whenever it can't go on.

        Raises:
            Exception: the handler's; what it didn't take in isn't committed.
        """
        while not self._stopping.is_set():
            consumer = self._consumer = self._make_consumer()
            orderly = started = False
            try:
                await self._start(consumer)
                started = True
                await self._serve(consumer)
                orderly = True
            except _RestartError as error:
                orderly = True
                self._fail(str(error), error.reason)
            except (KafkaError, OSError) as error:
                orderly = True
                self._fail(_reason(error), Restart.ERROR if started else Restart.START)
            except asyncio.CancelledError:
                if _asked_for():
                    raise
                orderly = True
                self._fail("aiokafka gave up without a reason", Restart.CANCELLED)
            finally:
                await self._close(consumer, orderly=orderly)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_DELAY):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Read nothing more. `run` then ends the generation, leaves the group and returns."""
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

    def may_send(self) -> bool:
        """Say whether the partitions are this member's for certain; `Handler.confirmed` says when they are again."""
        if _clock() < self._lease.until:
            return True
        if self._doubtful_since is None and self.assignment is not None:
            self._doubtful_since = _clock()
            log.warning(
                "the membership in the consumer group isn't certain any more: nothing is sent until it is confirmed"
            )
        return False

    @property
    def undecodable(self) -> dict[Partition, str]:
        """Why a partition waits, if its next record can't be decoded."""
        return {p: held.detail for p, held in self._held.items() if held.say_at}

    # --- the consumer's life --------------------------------------------------------------------

    def _make_consumer(self) -> AIOKafkaConsumer:
        subscription = self._subscription
        session_ms = int(subscription.session_timeout_seconds * 1000)
        consumer = AIOKafkaConsumer(
            **self._connection,
            group_id=subscription.group_id,
            enable_auto_commit=False,
            isolation_level=subscription.isolation_level,
            auto_offset_reset="none",  # `_place` decides, and says so
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=min(3000, session_ms // 3),
            rebalance_timeout_ms=int(_REBALANCE_TIMEOUT * 1000),
            request_timeout_ms=int(_REQUEST_TIMEOUT * 1000),
            max_poll_interval_ms=300_000,
            fetch_max_wait_ms=100,  # a longer poll of an idle partition stalls the busy ones
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_bytes=16 * 1024 * 1024,
            metadata_max_age_ms=int(subscription.metadata_max_age_seconds * 1000),
            retry_backoff_ms=250,
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        )
        self._lease = self._make_lease()
        client = consumer._client  # noqa: SLF001 - nothing else tells what a heartbeat came to
        client.send = self._observed(client.send, self._lease)
        return consumer

    def _make_lease(self) -> Lease:
        return Lease(self._subscription.session_timeout_seconds, _REBALANCE_TIMEOUT)

    def _observed(
        self, send: Callable[..., Awaitable[Any]], lease: Lease
    ) -> Callable[..., Awaitable[Any]]:
        """Have the coordinator's answers keep the lease; an answer of an earlier consumer keeps only its own."""

        async def observed(node: Any, request: Any, **options: Any) -> Any:  # noqa: ANN401 - untyped
            if not isinstance(request, HeartbeatRequest | SyncGroupRequest | LeaveGroupRequest):
                return await send(node, request, **options)
            if isinstance(request, LeaveGroupRequest):
                lease.lose()
                return await send(node, request, **options)
            sent = _clock()
            response = await send(node, request, **options)
            if response.error_code == NoError.errno:
                lease.confirm(sent)
            elif response.error_code == RebalanceInProgressError.errno:
                lease.rebalancing(sent)
            elif response.error_code in _NOT_A_MEMBER:
                lease.lose()
            if self._doubtful_since is not None and _clock() < self._lease.until:
                seconds = round(_clock() - self._doubtful_since, 1)
                self._doubtful_since = None
                log.info("the consumer group confirms the membership again", after_seconds=seconds)
                self._handler.confirmed()
            return response

        return observed

    async def _start(self, consumer: AIOKafkaConsumer) -> None:
        """Join the group: return when it has given an assignment, or when it is time to stop."""
        self._waiting_since = time.monotonic()
        starting = asyncio.create_task(self._join(consumer))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while True:
                await asyncio.wait(
                    {starting, stopping},
                    timeout=_START_WATCH_INTERVAL,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if starting.done():
                    await starting
                    return
                if stopping.done():
                    return
                await self._look_at_start()
        except KafkaConnectionError as error:
            raise KafkaConnectionError(await self._why_unreachable() or _reason(error)) from None
        except UnknownTopicOrPartitionError:
            raise KafkaError(_missing(self._subscription.topics)) from None
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def _join(self, consumer: AIOKafkaConsumer) -> None:
        """Subscribe once the topics are there: asking for one by its name may make it, however it is misspelt."""
        subscription = self._subscription
        if subscription.pattern is None:
            self._missing = await self._missing_topics()
            while self._missing:
                await asyncio.sleep(_RETRY_DELAY)
                self._missing = await self._missing_topics()
            self._waiting_since = time.monotonic()
            consumer.subscribe(topics=list(subscription.topics), listener=self)
        else:
            consumer.subscribe(pattern=subscription.pattern, listener=self)
        await consumer.start()

    async def _missing_topics(self) -> list[str]:
        client = AIOKafkaClient(**self._connection)
        try:
            await client.bootstrap()
            cluster = await client.fetch_all_metadata()
        finally:
            await client.close()
        there = cluster.topics()
        return [topic for topic in self._subscription.topics if topic not in there]

    async def _look_at_start(self) -> None:
        """Find out why there is no assignment yet."""
        missing = self._missing
        reason = await self._why_unreachable() or (missing and _missing(missing))
        if not reason:  # a member that was killed is waited for, up to its rebalance time-out
            self.failing = "the consumer group hasn't shared its partitions out yet"
            self._limit_waiting()
        elif reason != self.failing:
            self._fail(reason)

    async def _why_unreachable(self) -> str:
        """Say of each server why it can't be reached; nothing if one of them can."""
        servers = self._connection["bootstrap_servers"]
        causes = await asyncio.gather(
            *(failure(server, self._connection, _ANSWER_TIMEOUT) for server in servers)
        )
        if None in causes:
            return ""
        return "; ".join(f"{server}: {why}" for server, why in zip(servers, causes, strict=True))

    def _limit_waiting(self) -> None:
        if time.monotonic() - self._waiting_since > _ASSIGNMENT_TIMEOUT:
            raise _RestartError(
                Restart.NO_ASSIGNMENT,
                f"the consumer group gave no partitions within {_ASSIGNMENT_TIMEOUT:g} s",
            )

    def _limit_silence(self) -> None:
        """Give up a consumer that stands still: its heartbeats, or a read that doesn't return."""
        doubtful, polling = self._doubtful_since, self._polling_since
        if doubtful is not None and _clock() - doubtful > _CONFIRMATION_TIMEOUT:
            raise _RestartError(
                Restart.UNCONFIRMED,
                f"the consumer group didn't confirm the membership within {_CONFIRMATION_TIMEOUT:g} s",
            )
        if polling is not None:
            since = max(polling, self._waiting_since)
            if time.monotonic() - since > _POLL_TIMEOUT:
                raise _RestartError(
                    Restart.POLL, f"a read of records didn't return within {_POLL_TIMEOUT:g} s"
                )

    async def _serve(self, consumer: AIOKafkaConsumer) -> None:
        self._commit_timeouts = 0
        reading = asyncio.create_task(self._read(consumer))
        committing = asyncio.create_task(self._commit_regularly(consumer))
        watching = asyncio.create_task(self._watch(consumer))
        stopping = asyncio.create_task(self._stopping.wait())
        tasks = {reading, committing, watching, stopping}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                await task  # raises why it ended
            # Reading ends by itself, but during a rebalance it waits for the assignment.
            done, _ = await asyncio.wait({reading}, timeout=_STOP_TIMEOUT)
            for task in done:
                await task
            await self._end_generation(consumer, committing)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _close(self, consumer: AIOKafkaConsumer, *, orderly: bool) -> None:
        """Leave the group; in order if what is settled may be committed before that."""
        self._consumer = None  # from here on it begins no generation
        if orderly:
            await self._end_generation(consumer)
        elif self.assignment is not None:
            self.assignment = None
            await self._handler.ended()
        # In a task of its own: with a hung broker it takes long, or raises a cancellation nobody asked for.
        closing = asyncio.create_task(consumer.stop())
        hurried = self._commit_timeouts or (self._stopping.is_set() and not orderly)  # no time left
        try:
            await asyncio.wait({closing}, timeout=_GOODBYE_TIMEOUT if hurried else _STOP_TIMEOUT)
        finally:  # also when there is no time for that either
            ended = closing.done() and not closing.cancelled()
            error = closing.exception() if ended else None
            if error is not None:
                log.warning("closing the consumer failed", reason=_reason(error))
            if not ended or error is not None:
                closing.cancel()
                await asyncio.gather(closing, return_exceptions=True)
                await _abandon(consumer)

    def _fail(self, reason: str, restart: Restart | None = None) -> None:
        if not self.failing:
            self._failing_since = asyncio.get_running_loop().time()
        self.failing = reason
        if restart is None or restart is Restart.START:
            log.error("no records from Kafka; trying again", reason=reason)
        else:
            log.error("the Kafka consumer is made anew", reason=str(restart), detail=reason)
        if restart is not None:
            self._observer.restarted(restart)

    # --- reading --------------------------------------------------------------------------------

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        handler = self._handler
        clock = time.monotonic
        pause = _Pause()
        while not self._stopping.is_set():
            if self.assignment is not None and self.assignment is not self._placed:
                await self._place(consumer, self.assignment)
            pause.note(clock(), full=handler.full)
            if handler.full:
                paused = clock()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_MS / 1000):
                        await handler.room()
                # The group must see that the member polls; what was fetched ahead stays where it is.
                await self._take(consumer, _NOTHING, timeout_ms=0)
                self._observer.paused(clock() - paused)
                continue
            for partition, held in list(self._held.items()):
                if held.retry_at <= clock():
                    await self._take_singly(consumer, partition)
            wanted = []
            if self._held:
                others = (self.assignment or frozenset()) - self._held.keys()
                wanted = [TopicPartition(*partition) for partition in others] or [_NOTHING]
            await self._take(consumer, *wanted, timeout_ms=_POLL_MS)

    async def _take_singly(self, consumer: AIOKafkaConsumer, partition: Partition) -> None:
        """Take in what comes before a record that can't be decoded: what is read together with that is lost."""
        for _ in range(_MAX_RECORDS):
            took = await self._take(
                consumer, TopicPartition(*partition), timeout_ms=0, max_records=1
            )
            if not took or self._handler.full or self._stopping.is_set():
                return

    async def _take(
        self,
        consumer: AIOKafkaConsumer,
        *tps: Any,  # noqa: ANN401 - untyped
        timeout_ms: int,
        max_records: int = _MAX_RECORDS,
    ) -> bool:
        """Read once, and hand on what came.

        Args:
            consumer: reads.
            tps: of which partitions; none for all.
            timeout_ms: how long to wait for records.
            max_records: at most.

        Returns:
            Whether something came.
        """
        try:
            records = await self._poll(
                consumer, *tps, timeout_ms=timeout_ms, max_records=max_records
            )
        except OffsetOutOfRangeError as error:
            await self._skip(consumer, error.args[0])
            return False
        except NoOffsetForPartitionError:
            if self.assignment is self._placed:
                raise
            return False  # of a generation that began during the call: it is placed now
        except Exception as error:
            fault = _fault(error)
            if fault is not None:
                self._hold(*fault, error, comes_next=max_records == 1)
                return False
            if isinstance(error, KafkaError):
                raise
            raise KafkaError(f"aiokafka failed: {error!r}") from error
        # Nothing may be awaited between the line above and the chunks' being noted in `read`.
        if not records or self.assignment is None:  # a stop lets no generation begin
            return False
        for tp, batch in records.items():
            partition, last = (tp.topic, tp.partition), batch[-1].offset
            self._read_to[partition] = last + 1
            held = self._held.get(partition)
            if held is not None and last >= held.offset:
                del self._held[partition]
                if held.say_at:
                    log.info("a partition is read again", topic=tp.topic, partition=tp.partition)
        await self._handler.read(
            [((tp.topic, tp.partition), batch) for tp, batch in records.items()]
        )
        return True

    async def _poll(
        self,
        consumer: AIOKafkaConsumer,
        *tps: Any,  # noqa: ANN401 - untyped
        timeout_ms: int,
        max_records: int,
    ) -> dict[Any, list[ConsumerRecord]]:
        fetching = consumer._fetcher.error_future  # noqa: SLF001 - nobody else asks it
        if fetching.done():
            fetching.result()  # raises why it ended: no records would come any more
        self._polling_since = time.monotonic()
        try:
            records = await consumer.getmany(*tps, timeout_ms=timeout_ms, max_records=max_records)
        except BaseException:
            if len(tps) != 1:
                # What the call had taken of other partitions is gone with it, though their positions are past it.
                self._rewind(consumer)
            # It leaves its counter as it is, without which `max_poll_interval_ms` isn't watched.
            consumer._subscription._fetch_count = 0  # noqa: SLF001 - there is no other way
            consumer._subscription._last_fetch_ended = time.monotonic()  # noqa: SLF001 - the same
            raise
        finally:
            self._polling_since = None
        return records  # type: ignore[no-any-return] # untyped

    def _rewind(self, consumer: AIOKafkaConsumer) -> None:
        """Have every partition go on behind what the handler has."""
        for partition, position in self._read_to.items():
            with suppress(IllegalStateError, AssertionError):  # not ours any more
                consumer.seek(TopicPartition(*partition), position)

    def _hold(self, tp: Any, offset: int, error: Exception, *, comes_next: bool) -> None:  # noqa: ANN401 - untyped
        """Have one partition wait, once what comes before the record in question was read, record by record."""
        partition = (tp.topic, tp.partition)
        why = f"{type(error).__name__}: {error}"
        detail = f"the record at offset {offset}, or the next behind it, can't be decoded ({why})"
        held = self._held.setdefault(partition, _Held(offset, detail))
        held.offset, held.detail = offset, detail
        if not comes_next:
            return
        now = time.monotonic()
        held.retry_at = now + _DECODE_INTERVAL
        if now >= held.say_at:
            held.say_at = now + _SAY_AGAIN
            log.error(
                "a record can't be decoded: its partition waits, the others go on",
                topic=tp.topic,
                partition=tp.partition,
                offset=offset,
                error=why,
                tried_again_every_seconds=_DECODE_INTERVAL,
                to_skip_it="stop the group's members and set the group's offset of this partition behind it",
            )

    async def _place(self, consumer: AIOKafkaConsumer, assignment: frozenset[Partition]) -> None:
        """Decide where the partitions of a new generation are read from."""
        tps = [TopicPartition(*partition) for partition in assignment]
        async with _answered("where to read from"):
            found = await asyncio.gather(*(consumer.committed(tp) for tp in tps))
            beginnings = await consumer.beginning_offsets(tps)
            ends = await consumer.end_offsets(tps)
        if self.assignment is not assignment:
            return
        self._placed = assignment
        reset = self._subscription.auto_offset_reset
        before, self._known = self._known, _partition_counts(consumer)
        first = {}
        for tp, committed in zip(tps, found, strict=True):
            partition = (tp.topic, tp.partition)
            begin, end = beginnings[tp], ends[tp]
            self.ends[partition] = end
            if committed is not None and begin <= committed:
                # Whether it lies past the end, only a fetch tells: the end that is known here may be that of the last
                # finished transaction.
                place = committed
                self.committed.setdefault(partition, committed)
            else:
                # What came into a partition that was made while this process ran isn't older than "latest".
                appeared = before is not None and tp.partition >= before.get(tp.topic, 0)
                place = begin if reset == "earliest" or appeared else end
                if committed is None:
                    first[partition] = range(begin, end)
                else:
                    self._say_gone(tp, committed, place, begin, end)
            self._starts[partition] = place
            consumer.seek(tp, self._read_to.setdefault(partition, place))
        if not first:
            return
        self._handler.starts_first(first)
        if reset == "latest":
            # Before anything is read: who is killed now must not begin at another end, behind what came meanwhile.
            async with self._commit_lock:
                await self._commit(consumer)

    async def _skip(self, consumer: AIOKafkaConsumer, positions: Mapping[Any, int]) -> None:
        """Go on where there are records again: Kafka says that there are none at these positions."""
        assignment = self.assignment
        if assignment is not self._placed:
            return  # `_place` sees to it
        async with _answered("where there are records"):
            beginnings = await consumer.beginning_offsets(list(positions))
            ends = await consumer.end_offsets(list(positions))
        if self.assignment is not assignment:
            return
        for tp, position in positions.items():
            partition = (tp.topic, tp.partition)
            begin, end = beginnings[tp], ends[tp]
            if begin <= position <= end:
                self._seek(consumer, tp, position)
                continue
            place = begin if self._subscription.auto_offset_reset == "earliest" else end
            if position > end:
                if position != self._starts[partition]:
                    # What is held of the old topic must not be mixed with it.
                    raise KafkaError(f"{tp.topic} was made anew")
                self._starts[partition] = place
                self.committed.pop(partition, None)
            self._say_gone(tp, position, place, begin, end)
            self._seek(consumer, tp, place)

    def _seek(self, consumer: AIOKafkaConsumer, tp: Any, offset: int) -> None:  # noqa: ANN401 - untyped
        self._read_to[tp.topic, tp.partition] = offset
        consumer.seek(tp, offset)

    def _say_gone(self, tp: Any, offset: int, place: int, begin: int, end: int) -> None:  # noqa: ANN401 - untyped
        gone = max(place - offset if offset < begin else place - begin, 1)
        self._observer.skipped(gone)
        log.error(
            "the offset to read from is gone: records were removed before they were read, or the topic was made anew",
            topic=tp.topic,
            partition=tp.partition,
            offset=offset,
            first=begin,
            end=end,
            records_gone=gone,
            goes_on_at=place,
        )

    # --- generations ----------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002 - all are
        """End the generation. aiokafka awaits this before the member joins again, while heartbeats go on."""
        try:
            if self._consumer is not None:
                await self._end_generation(self._consumer)
            else:  # it is being closed, which ends the generation: the next owner must not begin before that
                async with self._ending:
                    pass
        except Exception:
            log.exception("the end of a generation failed")

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin a generation. Heartbeats go on only after this: it asks Kafka nothing."""
        if self._consumer is None or self._stopping.is_set():
            return
        partitions = frozenset((tp.topic, tp.partition) for tp in assigned)
        self._handler.assigned(partitions)
        self.assignment = partitions
        self.committed = {}
        self.ends = {}
        self.failing = ""
        self._starts = {}
        self._read_to = {}
        self._held = {}
        self._waiting_since = time.monotonic()
        self._commit_gate = True
        self._observer.rebalanced()
        log.info("partitions assigned", count=len(partitions), which=_listed(partitions))

    async def _end_generation(
        self, consumer: AIOKafkaConsumer, committing: asyncio.Task[None] | None = None
    ) -> None:
        """Bring the generation to its end: a revocation, a stop and an error may ask for it at one time.

        Args:
            consumer: its consumer.
            committing: at a stop, the regular commits: the last one doesn't wait for one that is under way.
        """
        async with self._ending:
            if self.assignment is None:
                return
            clock = asyncio.get_running_loop().time
            started, count = clock(), len(self.assignment)
            await self._handler.revoked()
            if committing is not None:
                committing.cancel()
            async with self._commit_lock:  # a commit that is under way belongs to this generation
                if self._commit_gate:
                    await self._commit(consumer)
                self.assignment = None
            self._waiting_since = time.monotonic()
            why = "a rebalance" if self._consumer is not None else "the consumer is made anew"
            log.info(
                "partitions given back",
                count=count,
                why="a stop" if self._stopping.is_set() else why,
                after_seconds=round(clock() - started, 1),
            )
            await self._handler.ended()

    async def _watch(self, consumer: AIOKafkaConsumer) -> None:
        """Ask for the ends of the partitions, which shows too whether Kafka answers.

        A consumer whose broker is gone says nothing: it gives no records, like one that has read everything. And what
        a fetch says of an end stands still while nothing is fetched.
        """
        while True:
            await asyncio.sleep(_WATCH_INTERVAL)
            assignment = self.assignment
            if assignment is None:
                self._limit_waiting()
            else:
                self._limit_silence()
            tps = [TopicPartition(*partition) for partition in assignment or ()]
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT):
                    ends = await consumer.end_offsets(tps) if tps else await consumer.topics()
            except (KafkaError, TimeoutError) as error:
                reason = await self._why_unreachable() or f"it doesn't answer ({_reason(error)})"
                if reason != self.failing:
                    self._fail(reason)
            else:
                if tps and self.assignment is assignment:
                    self.ends.update({(tp.topic, tp.partition): end for tp, end in ends.items()})
                if self.failing:
                    after = round(asyncio.get_running_loop().time() - self._failing_since, 1)
                    log.info("Kafka answers again", after_seconds=after)
                self.failing = ""

    # --- commits --------------------------------------------------------------------------------

    async def _commit_regularly(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            await asyncio.sleep(_COMMIT_INTERVAL)
            async with self._commit_lock:
                if self._commit_gate:
                    await self._commit(consumer)
            if self._commit_timeouts >= _COMMIT_TIMEOUTS_TO_REBUILD:
                raise _RestartError(
                    Restart.COMMITS,
                    f"{self._commit_timeouts} commits in a row got no answer within {_COMMIT_TIMEOUT:g} s",
                )

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        """Commit what is settled and wasn't committed, if the member has a generation, and still has it for certain."""
        if not self.may_send():
            return
        offsets = {}
        again = time.monotonic() < self._commit_again_until
        for partition in self.assignment or ():
            # Before it is placed, a read that failed may have moved a position past what nobody has.
            placed = self.assignment is self._placed
            read_to = self._read_to.get(partition)
            position = await self._position(consumer, partition) if placed else read_to
            # No await between the position and this: a record read in between would be skipped.
            committable = self._handler.committable(partition, position)
            news = again or committable != self.committed.get(partition)
            if committable is not None and news:
                offsets[partition] = committable
        if not offsets:
            return
        timeout = _COMMIT_TIMEOUT
        if self._stopping.is_set():
            timeout = _GOODBYE_TIMEOUT if self._commit_timeouts else _STOP_TIMEOUT
        started = time.monotonic()
        result = "error"
        try:
            async with asyncio.timeout(timeout):
                await consumer.commit({TopicPartition(*p): offset for p, offset in offsets.items()})
            result = "ok"
            self.committed.update(offsets)
            self._commit_timeouts = 0
            if self._commits_fail_since is not None:
                now = asyncio.get_running_loop().time()
                after = round(now - self._commits_fail_since, 1)
                self._commits_fail_since = None
                log.info("commits are answered again", after_seconds=after)
        except TimeoutError:
            result = "timeout"
            self._commit_timeouts += 1
            # aiokafka goes on with the request, which may arrive behind the next one's.
            self._commit_again_until = time.monotonic() + _REQUEST_TIMEOUT
            _forget_commits()
            self._say_commits_fail(f"no answer within {timeout:g} s")
        except (CommitFailedError, IllegalStateError) as error:
            # Not ours any more: what wasn't committed is read again by the next owner. Another commit before the next
            # assignment could reset the generation that is being made.
            result = "rebalance"
            if isinstance(error.__cause__, _NOT_A_MEMBER_ERRORS):
                self._lease.lose()
            self._commit_gate = False
        except KafkaError as error:
            self._say_commits_fail(f"{type(error).__name__}: {error}")
        finally:
            self._observer.committed(result, time.monotonic() - started)

    def _say_commits_fail(self, reason: str) -> None:
        if self._commits_fail_since is None:
            self._commits_fail_since = asyncio.get_running_loop().time()
            log.warning("commits fail; they are tried again", reason=reason)

    async def _position(self, consumer: AIOKafkaConsumer, partition: Partition) -> int | None:
        try:
            async with asyncio.timeout(0):  # it waits only when it isn't known yet
                return await consumer.position(TopicPartition(*partition))  # type: ignore[no-any-return] # untyped
        except (TimeoutError, KafkaError):
            return None  # not known yet, or not ours any more


def _forget_commits() -> None:
    """Let requests to commit that were given up end as they may: nobody waits for them, their failure is no news."""
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__qualname__", "") == "GroupCoordinator._do_commit_offsets":
            task.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _abandon(consumer: AIOKafkaConsumer) -> None:
    """End what `AIOKafkaConsumer.stop` didn't come to, because what it does first hung or failed.

    Else its heartbeats would go on holding partitions that nobody reads, and its fetcher would go on fetching.
    """
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001 - there is no other way
    parts = [consumer._client.close]  # noqa: SLF001 - the same
    if fetcher is not None:
        parts.insert(0, fetcher.close)
    if coordinator is not None:
        parts.insert(0, coordinator._stop_heartbeat_task)  # noqa: SLF001 - the same
        parts.insert(0, coordinator._stop_commit_offsets_refresh_task)  # noqa: SLF001 - the same
    for part in parts:
        ending = asyncio.create_task(part())
        await asyncio.wait({ending}, timeout=_GOODBYE_TIMEOUT)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)


@asynccontextmanager
async def _answered(question: str) -> AsyncIterator[None]:
    """Limit how long what is asked of Kafka may take."""
    try:
        async with asyncio.timeout(_COMMIT_TIMEOUT):
            yield
    except TimeoutError:
        raise _RestartError(
            Restart.NO_ANSWER, f"Kafka didn't say within {_COMMIT_TIMEOUT:g} s {question}"
        ) from None


def _fault(error: Exception) -> tuple[Any, int] | None:
    """Say in which partition, and from which offset on, aiokafka was unpacking records when it failed, if it was."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        fetched = frame.f_locals.get("self")
        if isinstance(fetched, FetchResult):
            return fetched._topic_partition, fetched._partition_records.next_fetch_offset  # noqa: SLF001
    return None


def _partition_counts(consumer: AIOKafkaConsumer) -> dict[str, int]:
    """Count the partitions of each topic that is read, as far as the client knows them."""
    return {
        topic: len(consumer.partitions_for_topic(topic) or ()) for topic in consumer.subscription()
    }


def _listed(partitions: Iterable[Partition]) -> str:
    """Name partitions: topic by topic, those in a row by the first and the last."""
    runs: dict[str, list[list[int]]] = {}
    for topic, number in sorted(partitions):
        of_topic = runs.setdefault(topic, [])
        if of_topic and of_topic[-1][-1] == number - 1:
            of_topic[-1][1:] = [number]
        else:
            of_topic.append([number])
    return "; ".join(
        f"{topic} {', '.join('-'.join(map(str, run)) for run in of_topic)}"
        for topic, of_topic in runs.items()
    )


def _missing(topics: Iterable[str]) -> str:
    return f"there is no topic {', '.join(topics)}, or none that this user may see"


def _reason(error: BaseException) -> str:
    if type(error) in {KafkaError, KafkaConnectionError} and error.args:
        return str(error.args[0])  # without the name that aiokafka puts before it
    return str(error) or type(error).__name__


def _boot_clock() -> Callable[[], float]:
    """Choose a clock that goes on while the machine is suspended, where there is one."""
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):  # macOS has no other, and there it goes on
        if (clock := getattr(time, name, None)) is not None:
            return partial(time.clock_gettime, clock)
    return time.monotonic


_clock = _boot_clock()


def _asked_for() -> bool:
    """Whether somebody cancelled this task; aiokafka sometimes raises a cancellation of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
