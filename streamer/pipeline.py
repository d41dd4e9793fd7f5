"""The spine: Kafka, source, transform, aggregate, batch, delivery, Segment; and back, the offsets.

A generation is one assignment of partitions: its offsets, its ledger, its share of memory and its lanes begin and end
together. After every await between reading a record and adding its calls, the generation is looked at again.

Records take the short way, one call of `Transform.format` each, unless site code or `[segment.sites]` has a say.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import structlog
from prometheus_client import CollectorRegistry

from streamer import __version__
from streamer.backlog import MANY_CALLS, Calls, look
from streamer.config import ADAPTIVE, MOST_CONCURRENCY, duration_text, require_write_key
from streamer.console import Console
from streamer.core.account import Account
from streamer.core.aggregate import Lane, Merging
from streamer.core.batch import Limits
from streamer.core.budget import Budget
from streamer.core.destination import State
from streamer.core.exclude import Exclusions
from streamer.core.mapping import overlay
from streamer.core.model import (
    CALL_TYPES,
    DeadLetter,
    Delivered,
    Filtered,
    Formatted,
    Reason,
    Reject,
)
from streamer.core.offsets import Chunk, Offsets
from streamer.core.sites import Sites, listed
from streamer.core.suppression import Digests, Suppression
from streamer.core.transform import PROFILES, Transform
from streamer.dead_letter import DeadLetters, FileSink, KafkaSink
from streamer.delivery import Delivery, states
from streamer.errors import MappingError
from streamer.formatter import RECORD_BYTES, SLICE_BYTES, Formatter, Value
from streamer.handlers import Actions, Filters, at_start
from streamer.hooks import (
    AFTER_SEND,
    API_WRITE_KEY,
    FORMATTED_DATA,
    GROUPS,
    MAPPING,
    REQUEST_FAILURE,
    REQUEST_SUCCESS,
    handler_name,
    registered,
)
from streamer.live import LiveSettings
from streamer.metrics import Metrics, Readings
from streamer.segment import Segment
from streamer.server import Pages, serve
from streamer.source import DRAIN_TIMEOUT, Source, Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from aiokafka import ConsumerRecord

    from streamer.config import Config
    from streamer.core.account import Ledger
    from streamer.core.batch import Batch
    from streamer.core.bisection import Piece
    from streamer.core.budget import Share
    from streamer.core.destination import Destination
    from streamer.core.model import Partition, Response
    from streamer.dead_letter import Sink
    from streamer.delivery import Answer, Pace
    from streamer.handlers import Observer as HookObserver
    from streamer.hooks import Hooks

log = structlog.get_logger()

_T = TypeVar("_T")

MAX_LANES = 1000
"""So many write keys may have calls in one generation: visitors may have a say in which key an event has."""
_TOO_MANY_WRITE_KEYS = Reject(
    Reason.TOO_MANY_WRITE_KEYS,
    f"The event's write key is none of the {MAX_LANES} that this process has calls for, and there may not be more.",
)
_SITE_CODE_TIMEOUT = 120.0
"""Seconds that site code may take for one read, of up to 500 chunks: after 300 the group gives a member up that doesn't
poll."""
_ACTIONS_TIMEOUT = 5.0
"""Seconds that a stop waits for actions, at most: Kafka and Segment have all by then."""
_NAMED = 5
"""So many destinations are named in a sentence of `/readyz`."""
_SHOWN_DESTINATIONS = 20
"""So many that are held are shown in the console, one by one."""
_LAST_LETTERS = 20
"""So many dead letters are shown in the console."""
_DETAIL_CHARACTERS = 300
_DIGESTS_SHARE = 0.25
"""How much of the memory budget what was last delivered may take, for suppression."""
_DRAIN_SHARE, _COMMIT_SHARE = 0.8, 0.9
"""How much of `shutdown_timeout` may pass before the offsets are committed and the group is left, and before a Kafka
that doesn't answer is left without that."""


def make_transform(
    config: Config, write_key: str, hooks: Hooks = registered, *, checked: bool = True
) -> Transform:
    """Compile the mapping that the configuration and site code describe.

    Args:
        config: all settings.
        write_key: what the calls' ids are keyed with.
        hooks: what site code has registered.
        checked: whether what Segment would throw away is rejected; the profile `default` does so in any case.

    Raises:
        MappingError: the mapping or a group map breaks the grammar.
        PluginError: a filter of the mapping or of the groups fails.
    """
    try:
        return _compiled(config, write_key, hooks, checked=checked)
    except MappingError as error:
        handlers = [one for name in (MAPPING, GROUPS) for one in hooks.handlers(name)]
        if not handlers and not hooks.groups:
            raise
        who = ", ".join(map(handler_name, handlers)) or "the group maps that it registered"
        raise MappingError(f"{error}\nThat is as site code left it: {who}") from None


def _compiled(config: Config, write_key: str, hooks: Hooks, *, checked: bool) -> Transform:
    settings = config.transform
    groups = [group.model_dump(exclude_unset=True) for group in config.groups]
    return Transform(
        write_key=write_key,
        mapping=overlay(PROFILES[settings.profile].mapping(), settings.mapping),
        groups=at_start(hooks, GROUPS, [*groups, *hooks.groups]),
        callbacks=hooks.callbacks,
        exclusions=Exclusions(
            frozenset(settings.drop_events),
            settings.drop_traits,
            settings.drop_properties,
            settings.sample,
        ),
        profile=settings.profile,
        checked=checked,
        change=lambda tree, call_type: at_start(hooks, MAPPING, tree, call_type),
    )


def make_formatter(
    config: Config,
    transform: Transform,
    hooks: Hooks,
    observer: HookObserver,
    *,
    checked: bool = True,
) -> Formatter:
    """Make the transform stage, with the sites and with site code.

    Args:
        config: all settings.
        transform: what `make_transform` gave.
        hooks: what site code has registered.
        observer: is told of handlers that fail.
        checked: whether what Segment would throw away is rejected of what site code made.
    """
    filters = Filters(hooks, config.hook_timeout, observer)
    return Formatter(transform, make_sites(config), filters, checked=checked)


def make_sites(config: Config) -> Sites:
    """Say which write key an event has by its site.

    Args:
        config: all settings.
    """
    segment = config.segment
    key = segment.write_key
    return Sites(
        segment.sites.field,
        {site: one.get_secret_value() for site, one in segment.sites.write_keys.items()},
        key.get_secret_value() if key else "",
    )


def config_hash(config: Config) -> str:
    """Give 8 hexadecimal digits that change when a setting does; secrets have no part in them.

    Args:
        config: all settings; a dump of it has asterisks in place of the secrets.
    """
    return blake2b(config.model_dump_json().encode(), digest_size=4).hexdigest()


def make_digests(config: Config, share: Share) -> Digests:
    """Make what one generation remembers of what was delivered, for suppression.

    Args:
        config: all settings.
        share: the generation's share of the memory budget.
    """
    return Digests(int(config.flush.memory_budget * _DIGESTS_SHARE), share)


def make_lane(
    config: Config, write_key: str, ledger: Ledger, share: Share, digests: Digests
) -> Lane:
    """Make a lane for one generation, as the configuration says.

    Args:
        config: all settings.
        write_key: Segment's.
        ledger: where the calls' fates are written.
        share: the generation's share of the memory budget.
        digests: what the generation remembers of what was delivered.
    """
    aggregate = config.aggregate
    merges = PROFILES[config.transform.profile].mends
    return Lane(
        write_key=write_key,
        limits=make_limits(config),
        merging=Merging(merges and aggregate.identify, merges and aggregate.group),
        nonce=secrets.token_bytes(16),
        ledger=ledger,
        share=share,
        suppression=make_suppression(config, write_key, digests),
    )


def make_limits(config: Config) -> Limits:
    """Say what a batch may hold.

    Args:
        config: all settings.
    """
    return Limits(config.flush.max_calls, config.flush.max_bytes)


def make_pace(config: Config) -> Pace:
    """Say how fast delivery may send, and how long it waits for more.

    Args:
        config: all settings.
    """
    flush = config.flush
    return {
        "concurrency": None if flush.concurrency == ADAPTIVE else flush.concurrency,
        "max_requests_per_second": flush.max_requests_per_second,
        "interval_seconds": flush.interval,
    }


def make_suppression(config: Config, write_key: str, digests: Digests) -> Suppression | None:
    """Make what says which calls of a lane needn't be sent; None if all are.

    Args:
        config: all settings.
        write_key: the lane's.
        digests: what its generation remembers of what was delivered.
    """
    aggregate = config.aggregate
    if not aggregate.suppress_for or not PROFILES[config.transform.profile].mends:
        return None
    return Suppression(
        digests,
        write_key=write_key,
        seconds=aggregate.suppress_for,
        ignore_traits=frozenset(aggregate.ignore_traits),
    )


def make_calls(
    config: Config, write_key: str, transform: Transform, hooks: Hooks = registered
) -> Calls:
    """Say how records become billed calls, for who only wants to count them.

    Args:
        config: all settings.
        write_key: Segment's.
        transform: what `make_transform` gave.
        hooks: what site code has registered.
    """

    def lane(ledger: Ledger, share: Share) -> Lane:
        return make_lane(config, write_key, ledger, share, make_digests(config, share))

    others = ["segment.sites"] if config.segment.sites.write_keys else []
    others += [name for name in (API_WRITE_KEY, FORMATTED_DATA) if hooks.handlers(name)]
    note = f"not counted in: what {', '.join(others)} may leave out or add" if others else ""
    return Calls(transform.format, lane, note)


@dataclass(slots=True)
class Generation:
    """One assignment of partitions.

    Attributes:
        offsets: what is safe to commit.
        ledger: what writes the account.
        share: of the memory budget.
        digests: what was last delivered, for suppression.
        lanes: what is open, waiting and in flight, by write key.
        over: set when its partitions are taken away.
    """

    offsets: Offsets
    ledger: Ledger
    share: Share
    digests: Digests
    lanes: dict[str, Lane] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether its partitions were taken away."""
        return self.over.is_set()


class Pipeline:
    """Forwards from Kafka to Segment until it is told to stop.

    Args:
        config: all settings.
        hooks: what site code has registered.
        load: reads the settings again, as at the start; raises ConfigError. Without it they are those of the start.

    Attributes:
        settings: the settings in force, which may change.
        account: every record's and every call's fate.
        registry: the metrics.
        port: where the server listens, while the pipeline runs.

    Raises:
        ConfigError: there is no write key, the mapping breaks the grammar, or a filter of it fails, or a certificate
            can't be used.
        StartError: the file for dead letters can't be written.
    """

    def __init__(
        self,
        config: Config,
        hooks: Hooks = registered,
        load: Callable[[], Config] | None = None,
    ) -> None:
        self.account = Account()
        self.registry = CollectorRegistry()
        self.port = 0
        self._config = config
        self._write_key = require_write_key(config, elsewhere=bool(hooks.handlers(API_WRITE_KEY)))
        transform = make_transform(config, self._write_key, hooks)
        self._format = transform.format
        self._calls = make_calls(config, self._write_key, transform, hooks)
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
            config_hash=config_hash(config),
        )
        self._console = Console(self.registry)
        self._last_letters: deque[dict[str, Any]] = deque(maxlen=_LAST_LETTERS)
        self.settings = LiveSettings(config, load or (lambda: config), self._tune, self._metrics)
        self._sites = make_sites(config)
        self._formatter = make_formatter(config, transform, hooks, self._metrics)
        self._actions = Actions(hooks, config.hook_timeout, self._metrics)
        self._responses: dict[Batch, Response | Exception] = {}  # the last of each, for after_send
        self._source = Source(
            connection,
            Subscription(
                topics=config.kafka.topics,
                pattern=config.kafka.topic_pattern,
                group_id=config.kafka.group_id,
                auto_offset_reset=config.kafka.auto_offset_reset,
                session_timeout_seconds=config.kafka.session_timeout,
                isolation_level=config.kafka.isolation_level,
            ),
            handler=self,
            observer=self._metrics,
        )
        self._segment = Segment(
            config.segment.url,
            gzip=config.segment.gzip,
            timeout_seconds=config.segment.timeout,
            connections=MOST_CONCURRENCY,
        )
        self._delivery = Delivery(
            self._segment,
            handler=self,
            observer=self._metrics,
            **make_pace(config),
            max_hold_seconds=config.segment.max_hold,
            may_send=self._source.may_send,
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
        token = server.token.get_secret_value() if server.token else None
        pages = Pages(
            self.registry, self.not_ready, self.held, self.settings, self._console, self._state
        )
        async with (
            serve(server.host, server.port, pages, token) as self.port,
            self._segment,
            asyncio.TaskGroup() as tasks,
        ):
            kafka = self._config.kafka
            log.info(
                "streamer runs",
                version=__version__,
                settings=", ".join(self._config.files)
                or "no file (--config names one), the environment",
                reads=", ".join(kafka.topics) or kafka.topic_pattern,
                group=kafka.group_id,
                sends_to=self._config.segment.url,
                metrics=f"http://{server.host}:{self.port}/metrics",
                console=f"http://{server.host}:{self.port}/",
            )
            background = [
                tasks.create_task(self._delivery.run()),
                tasks.create_task(self._letters.run()),
                tasks.create_task(self._metrics.watch_loop()),
                tasks.create_task(self._announce()),
                tasks.create_task(self._console.run()),
            ]
            source = tasks.create_task(self._source.run())
            await stop.wait()
            await self._stop(source)
            for task in background:
                task.cancel()

    def _tune(self, config: Config) -> None:
        """Go on with other settings, which hold for the open batches too.

        Args:
            config: all settings; what `streamer.config.take_live` leaves as it was is.
        """
        suppress_for = self._config.aggregate.suppress_for
        self._config = config
        flush, generation = config.flush, self._generation
        self._metrics.tuned(flush.interval, flush.max_calls, flush.max_bytes, config_hash(config))
        if generation is not None:
            now = asyncio.get_running_loop().time()
            if not config.aggregate.suppress_for:
                generation.digests.clear()  # nothing is noted from now on
            for write_key, lane in generation.lanes.items():
                lane.limit(make_limits(config), now)
                if config.aggregate.suppress_for != suppress_for:
                    lane.suppress(make_suppression(config, write_key, generation.digests))
        self._delivery.tune(**make_pace(config))

    def not_ready(self) -> list[str]:
        """Say why this process can't do its work now: a sentence each, none when it can."""
        reasons = []
        if self._source.failing:
            reasons.append(f"Kafka: {self._source.failing}")
        elif self._source.assignment is None:
            reasons.append("Kafka: the consumer group is sharing its partitions out")
        elif not self._source.may_send():
            reasons.append(
                "Kafka: the consumer group hasn't confirmed the membership for a session: nothing is sent until it does"
            )
        reasons += [
            f"Kafka: partition {number} of {topic} waits: {why}"
            for (topic, number), why in self._source.undecodable.items()
        ]
        reasons += self._held(State.MISCONFIGURED)
        if self._stop_at is not None:
            reasons.append("stopping")
        return reasons

    def held(self) -> list[str]:
        """Say which destinations are held for a while, and why: a sentence for each reason."""
        return self._held(State.PAUSED) + self._held(State.BACKING_OFF)

    def _held(self, state: State) -> list[str]:
        names = defaultdict(list)  # many keys may be held for one reason
        for destination in self._delivery.served:
            if destination.state is state:
                names[destination.reason].append(destination.name)
        return [
            f"Segment: {listed(held, _NAMED)}: {_words(state)}: {reason}"
            for reason, held in names.items()
        ]

    def _state(self) -> dict[str, Any]:
        """Give what the console shows beside the metrics' samples, as JSON has it."""
        reasons = self.not_ready()
        source, live = self._source, self.settings.live
        rows = {row.key: row for row in self.settings.shown()}
        served = self._delivery.served
        held = [one for one in served if not one.flowing]
        destinations = [
            {"name": one.name, "state": _words(one.state), "reason": one.reason}
            for one in held[:_SHOWN_DESTINATIONS]
        ]
        if len(held) < len(served):
            flowing = len(served) - len(held)
            name = f"{flowing} others" if held else served[0].name if flowing == 1 else f"{flowing}"
            destinations.append({"name": name, "state": _words(State.FLOWING), "reason": ""})
        return {
            "version": __version__,
            "ready": not reasons,
            "reasons": reasons,
            "held": self.held(),
            "settings": [rows[key]._asdict() for key in live],
            "destinations": destinations,
            "lag": [
                {
                    "topic": partition[0],
                    "partition": partition[1],
                    "lag": lag,
                    "committed": source.committed.get(partition),
                }
                for partition, lag in sorted(source.lag().items())
            ],
            "letters": list(self._last_letters),
        }

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
            undecodable=len(self._source.undecodable),
            requests=delivery.in_flight,
            concurrency=delivery.concurrency,
            destinations=states(delivery.served),
            open_profiles=(
                sum(lane.open_profiles for lane in generation.lanes.values()) if generation else 0
            ),
            suppression_keys=len(generation.digests) if generation else 0,
            oldest_pending_ms=generation.offsets.oldest_timestamp() if generation else None,
        )

    @property
    def destinations(self) -> list[Destination]:
        """Every destination with its state, and why it is held."""
        return self._delivery.served

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
        self._generation = Generation(Offsets(), ledger, share, make_digests(self._config, share))
        if self._write_key:
            self._begin_lane(self._generation, self._write_key)

    def starts_first(self, offsets: Mapping[Partition, range]) -> None:
        """Have a first start announced, once for each partition: a rebalance may come before the first commit."""
        new = {p: span for p, span in offsets.items() if p not in self._announced}
        if new:
            self._announced |= new.keys()
            self._first_starts.put_nowait(new)

    async def read(self, records: Sequence[tuple[Partition, Sequence[ConsumerRecord]]]) -> None:
        """Take in what was read: note it all, then transform it slice by slice, or with site code chunk by chunk."""
        generation = self._generation
        if generation is None or generation.ended:
            return  # read while the partitions were taken away: the next owner reads it again
        now = asyncio.get_running_loop().time()
        chunks = [
            (self._note(generation, partition, together, now), together)
            for partition, together in records
        ]
        done = SLICE_BYTES  # fetching and noting were a stretch of their own
        needed = self._formatter.needed or self._actions.wanted(AFTER_SEND) or not self._write_key
        for (chunk, size), together in chunks:
            if needed:
                await self._process_with_site_code(
                    generation, chunk, together, now + _SITE_CODE_TIMEOUT
                )
            else:
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
        lane = generation.lanes[self._write_key]
        make, add = self._format, lane.add
        made = dict.fromkeys(CALL_TYPES, 0)
        for number, record in enumerate(records):
            if done >= SLICE_BYTES:
                done = 0
                _note_made(generation.ledger, made)
                if lane.ready:  # what is open waits for its interval: `read` says so at its end
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
            done += RECORD_BYTES + (len(value) if value else 0)
        _note_made(generation.ledger, made)
        return done

    async def _process_with_site_code(
        self,
        generation: Generation,
        chunk: Chunk,
        records: Sequence[ConsumerRecord],
        deadline: float,
    ) -> None:
        """Process a chunk with site code or sites; what comes back after its generation has ended counts nowhere."""
        values = [Value(record.value, record.timestamp) for record in records]
        formatted = await _unless(generation.over, self._formatter.format(values, deadline))
        if formatted is None:
            return
        ledger, keep = generation.ledger, self._actions.wanted(AFTER_SEND)
        undecided = done = 0
        for number, (record, (write_key, result)) in enumerate(
            zip(records, formatted, strict=True)
        ):
            if done >= SLICE_BYTES:
                done = 0
                self._delivery.notify()
                await asyncio.sleep(0)
                if generation.ended:
                    return
            done += RECORD_BYTES + (len(record.value) if record.value else 0)
            if isinstance(result, Reject):
                self._reject(generation, chunk, record, result)
                continue
            if isinstance(result, Filtered):
                ledger.filtered(result.reason)
                continue
            lane = generation.lanes.get(write_key)
            if lane is None:
                if len(generation.lanes) >= MAX_LANES:
                    self._reject(generation, chunk, record, _TOO_MANY_WRITE_KEYS)
                    continue
                lane = self._begin_lane(generation, write_key)
            if keep:
                chunk.keep(number, result.as_json())
            if isinstance(result, Formatted):
                for contribution in result.contributions:
                    ledger.made(contribution.type)
                ledger.made(result.type)
                lane.add(result, chunk, number)
            else:
                for call in result.taken:
                    ledger.made(call.type)
                lane.add_changed(result, chunk, number)
                undecided += not result.decided
        if undecided:
            chunk.on_settled = partial(ledger.settled, undecided)

    def _begin_lane(self, generation: Generation, write_key: str) -> Lane:
        lane = make_lane(
            self._config, write_key, generation.ledger, generation.share, generation.digests
        )
        generation.lanes[write_key] = lane
        self._delivery.begin(lane, self._sites.name(write_key))
        return lane

    def committable(self, partition: Partition, position: int | None) -> int | None:
        """Say which offset is safe to commit."""
        generation = self._generation
        return None if generation is None else generation.offsets.committable(partition, position)

    def confirmed(self) -> None:
        """Go on sending."""
        self._delivery.notify()

    async def revoked(self) -> None:
        """Take in nothing more of this generation, and send what flows."""
        generation = self._generation
        if generation is None:
            return
        generation.over.set()
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
        self._responses.clear()
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

    def refused(
        self, lane: Lane, batch: Batch, place: int, detail: str, reason: Reason = Reason.REFUSED
    ) -> None:
        """Make a dead letter of a call that Segment refused when it stood alone, or that waited for too long."""
        lane.refused(batch, place)
        chunk = batch.chunks[batch.chunk_numbers[place]]
        number = batch.records[place]
        kind, decides = batch.kind(place), batch.decides(place)
        why = (
            f"Segment refused this {kind} call"
            if reason is Reason.REFUSED
            else f"Nothing went to this {kind} call's write key for {duration_text(self._config.segment.max_hold)}"
        )
        timestamp = chunk.timestamps[number]
        letter = DeadLetter(
            kind="call",
            reason=reason,
            detail=f"{why}: {detail}",
            topic=chunk.partition[0],
            partition=chunk.partition[1],
            offset=chunk.offsets[number],
            timestamp_ms=timestamp if timestamp >= 0 else None,
            key=chunk.keys[number],
            value=batch.calls[place],
            tries=batch.tries,
            batch=batch.name,
        )
        self._put(
            letter,
            chunk,
            lane.share,
            lambda: lane.ledger.refused(kind, reason if decides else None),
        )

    def _put(
        self, letter: DeadLetter, chunk: Chunk, share: Share, count: Callable[[], None]
    ) -> None:
        self._last_letters.appendleft(
            {
                "at": time.time(), "reason": letter.reason, "kind": letter.kind, "topic": letter.topic,
                "partition": letter.partition, "offset": letter.offset, "detail": letter.detail[:_DETAIL_CHARACTERS],
            }
        )  # fmt: skip
        chunk.hold()

        def acknowledged() -> None:
            count()
            chunk.let_go()

        self._letters.put(letter, share, acknowledged)

    # --- what actions are told ------------------------------------------------------------------

    def answered(self, batch: Batch, piece: Piece, answer: Answer) -> None:
        """Tell site code what came of a request, if it wants to know."""
        actions = self._actions
        if actions.wanted(AFTER_SEND):
            self._responses[batch] = answer.response
        hook = REQUEST_SUCCESS if isinstance(answer.outcome, Delivered) else REQUEST_FAILURE
        if actions.wanted(hook):
            calls = batch.calls[slice(*piece)]
            actions.tell(
                hook,
                lambda: (answer.response, list(map(orjson.loads, calls))),
                sum(map(len, calls)),
            )

    def settled(self, batch: Batch) -> None:
        """Tell site code that nothing of a batch is left to send, if it wants to know."""
        response = self._responses.pop(batch, None)
        if response is None or not self._actions.wanted(
            AFTER_SEND
        ):  # or it came before the handler
            return
        calls = batch.calls
        events = [
            made
            for place, number in enumerate(batch.chunk_numbers)
            if batch.decides(place)
            and (made := batch.chunks[number].formatted.get(batch.records[place])) is not None
        ]
        self._actions.tell(
            AFTER_SEND,
            lambda: (
                [response],
                [list(map(orjson.loads, calls))],
                [[call for one in events for call in orjson.loads(one)]],
            ),
            sum(map(len, calls)) + sum(map(len, events)),
        )

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
            if calls is not None and self._calls.note:
                facts["note"] = self._calls.note
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
        done, _ = await asyncio.wait({source}, timeout=timeout * _COMMIT_SHARE)
        if not done:
            log.warning("not everything could be committed in time; it is read again")
            source.cancel()
        left = now + timeout - asyncio.get_running_loop().time()
        await self._actions.drain(min(max(left, 0.0), _ACTIONS_TIMEOUT))
        self._formatter.close()


def _words(state: State) -> str:
    return str(state).replace("_", " ")


async def _unless(over: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T | None:
    """Do work unless something is over before: then it is cancelled, and None is given back."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(over.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return None if over.is_set() else await working
    finally:
        waiting.cancel()
        working.cancel()


def _note_made(ledger: Ledger, made: dict[str, int]) -> None:
    """Note calls in the account once for many records, and begin to count anew."""
    for kind in CALL_TYPES:
        ledger.made(kind, made[kind])
        made[kind] = 0
