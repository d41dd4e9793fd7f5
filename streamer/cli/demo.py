"""`streamer demo`: the whole pipeline with nothing installed.

The pipeline runs in this process, and what judges it in others: the producer, the broker, and mock Segment, which says
how late each call came and what it accepted. On one event loop they would wait for one another: a producer that waits
for the pipeline makes nothing while the pipeline stands still, and lateness would look better than it is.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
import uuid
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console

from streamer.cli.run import collect_seldom
from streamer.cli.terminal import duration_of
from streamer.config import duration_text, load_config
from streamer.core.model import CALL_TYPES
from streamer.demo.broker import MOST_AHEAD_BYTES, EmbeddedBroker
from streamer.demo.events import GROUPS
from streamer.demo.producer import Order, Producer
from streamer.demo.schedule import LATENCY, Phase, bad_day
from streamer.demo.segment import SegmentProcess
from streamer.demo.topics import Letters, let_make, make, remove
from streamer.demo.view import Figures, open_view, print_account
from streamer.errors import ConfigError, StartError, StreamerError
from streamer.logs import configure
from streamer.mock_segment import Lateness
from streamer.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamer.config import Config
    from streamer.core.account import Account
    from streamer.demo.view import View

WRITE_KEY = "the-demo-has-no-secrets"
_DEFAULT_SECONDS = 30.0
_SHUTDOWN_TIMEOUT = "10s"
_LOOK_SECONDS = 0.25
_WINDOW_SECONDS = 5.0
"""What the view calls "now": rates and percentiles are those of so long."""
_STALL_SECONDS = 60.0
"""Nothing was settled for so long: it won't be."""
_GOODBYE_SECONDS = 5.0
_HELD_SECONDS = 2.0
"""The producer is let go by each commit, and soon held again: that is one story."""


def demo(
    rate: Annotated[int, typer.Option(min=1, help="Events a second.")] = 1000,
    events: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after so many events.")
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="DURATION",
            help="End after so long, such as 90s or 5m. Without this and --events: 30s.",
        ),
    ] = None,
    interval: Annotated[
        str, typer.Option(metavar="DURATION", help="The flush interval, flush.interval.")
    ] = "1s",
    seed: Annotated[int, typer.Option(help="Of the made-up events.")] = 1,
    kafka: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Use this broker (without TLS and password) instead of the embedded one. Topics and group are new, "
            "and are removed at the end.",
        ),
    ] = None,
    faults: Annotated[
        bool,
        typer.Option(
            "--faults",
            help="Give mock Segment a bad day: slow answers, 503s, 429 with Retry-After, dropped connections.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object at the end; all else to standard error."
        ),
    ] = False,
) -> None:
    """Run the whole pipeline: an embedded broker, made-up events, and Segment played on loopback.

    Ends with the account of every record and call; Ctrl-C ends it early, a second one at once. The exit status is 1 if
    the account doesn't balance, or if mock Segment counted otherwise.
    """
    seconds = None if duration is None else duration_of("--for", duration)
    if events is None and seconds is None:
        seconds = _DEFAULT_SECONDS
    _config(
        interval, kafka or "localhost:9092", "demo", "http://localhost"
    )  # what is wrong is said at once
    wanted = _Wanted(rate, events, seconds, interval, seed, kafka, faults)
    console = Console(stderr=as_json, highlight=False)
    view = open_view(console)
    try:
        configure("error")  # after the view was opened, so that lines stand above it
        result = asyncio.run(_Demo(wanted, console, view).run())
    finally:
        view.close()
    if as_json:
        sys.stdout.write(orjson.dumps(result.as_json()).decode() + "\n")
    if result.wrong:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was asked for; see the command's options."""

    rate: int
    events: int | None
    seconds: float | None
    interval: str
    seed: int
    kafka: str | None
    faults: bool

    @property
    def length_seconds(self) -> float:
        """How long it will take, if the rate can be held."""
        by_events = float("inf") if self.events is None else self.events / self.rate
        return min(by_events, float("inf") if self.seconds is None else self.seconds)

    @property
    def what(self) -> str:
        """The same in words."""
        length = "" if self.seconds is None else f" for {duration_text(self.seconds)}"
        if self.events is None:
            much = f"{self.rate:,} events a second{length}"
        else:
            most = length and f",{length} at most"
            much = f"{self.events:,} events at {self.rate:,} a second{most}"
        return f"{much}, flush interval {self.interval}"


@dataclass(frozen=True, slots=True)
class _Result:
    """What a run came to.

    Attributes:
        figures: at the end.
        lateness: of all calls, as mock Segment measured it.
        settled_per_second: records, from the first event until all were settled, or it was stopped.
        wrong: a sentence for all that doesn't fit together.
    """

    figures: Figures
    lateness: Lateness
    settled_per_second: float
    wrong: list[str]

    def as_json(self) -> dict[str, Any]:
        """Give what `--json` prints."""
        account = self.figures.account
        fates = {
            "made": account.made,
            "delivered": account.calls_delivered,
            "merged": account.merged,
            "suppressed": account.suppressed,
            "refused": account.refused,
            "released": account.calls_released,
            "in_flight": account.calls_in_flight,
        }
        return {
            "produced": self.figures.produced,
            "consumed": account.consumed.total(),
            "delivered": account.delivered,
            "filtered": account.filtered.total(),
            "dead_lettered": account.dead_lettered.total(),
            "released": account.released,
            "in_flight": account.in_flight,
            "calls": {
                kind: {name: fate[kind] for name, fate in fates.items()} for kind in CALL_TYPES
            },
            "requests": self.figures.requests,
            "lateness_seconds": {f"p{n}": self.lateness.percentile(n) for n in (50, 95, 99)},
            "events_per_second": round(self.settled_per_second, 1),
            "peak_rss_bytes": _peak_rss_bytes(),
        }


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen at one time."""

    at: float
    settled: int
    requests: int
    calls: int
    lateness: Lateness


class _Demo:
    """One run.

    Args:
        wanted: what was asked for.
        console: where the account is printed.
        view: shows the run.
    """

    def __init__(self, wanted: _Wanted, console: Console, view: View) -> None:
        self._wanted = wanted
        self._console = console
        self._view = view
        self._phases: list[Phase] = bad_day(wanted.length_seconds) if wanted.faults else []
        self._phase: Phase | None = None
        self._figures = Figures()
        self._looks: deque[_Look] = deque()
        self._stop = asyncio.Event()
        self._started: float | None = None
        self._held_at = float("-inf")
        self._leaves = ""

    async def run(self) -> _Result:
        """Run to the end, or to the first Ctrl-C.

        Raises:
            StreamerError: something that it needs doesn't start, or ended before its time.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        try:
            async with AsyncExitStack() as stack:
                return await self._run(stack)
        except BaseExceptionGroup as group:
            found: BaseException | None = group.subgroup(StreamerError)
            if found is None:
                raise
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            raise found from None

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            # A second one means now. The processes that were started end with this one.
            self._view.close()
            if self._leaves:
                self._console.print(self._leaves, soft_wrap=True)
            os._exit(128 + number)
        self._stop.set()

    async def _run(self, stack: AsyncExitStack) -> _Result:
        wanted, view = self._wanted, self._view
        broker = "an embedded Kafka broker" if wanted.kafka is None else "topics"
        view.say(f"Starting {broker}, mock Segment and the pipeline: some five seconds")
        topic = f"streamer-demo-{uuid.uuid4().hex[:8]}" if wanted.kafka else "analytics-events"
        topics = [topic, f"{topic}.dead-letter"]
        bootstrap = await self._kafka(stack, topics)
        segment = await stack.enter_async_context(SegmentProcess())
        pipeline = Pipeline(_config(wanted.interval, bootstrap, topic, segment.url))
        letters = Letters(bootstrap, topics[1])
        order = Order(
            bootstrap=bootstrap,
            topic=topic,
            rate=wanted.rate,
            seed=wanted.seed,
            events=wanted.events,
            seconds=wanted.seconds,
            most_ahead_bytes=MOST_AHEAD_BYTES if wanted.kafka is None else None,
        )
        collect_seldom()
        halt = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(pipeline.run(halt))
            reading = tasks.create_task(letters.follow())
            async with Producer(order) as producer:
                watching = tasks.create_task(self._watch(pipeline, producer, segment, letters))
                await self._until_ready(pipeline)
                view.say(f"{wanted.what}; Ctrl-C ends it")
                console = f"http://127.0.0.1:{pipeline.port}/"
                view.say(f"the console: {console}; mock Segment counts at {segment.address}/stats")
                self._figures.phase = wanted.what
                await segment.misbehave(
                    [LATENCY, *(p.as_fault() for p in self._phases)], wanted.seed
                )
                finished = await self._produce(tasks, pipeline, producer)
            stalled = finished and not await self._until_settled(pipeline, producer)
            seconds = self._elapsed()
            self._figures.phase = "stopping: sending what flows; Ctrl-C again: at once"
            if self._stop.is_set():
                view.say(f"stopping: sending what flows, for {_SHUTDOWN_TIMEOUT} at most")
            halt.set()
            await running
            await letters.until(pipeline.account.dead_lettered.total(), _GOODBYE_SECONDS)
            for task in (watching, reading):
                task.cancel()
            stats = await self._look(pipeline, producer, segment, letters)
            self._figures.produced = producer.produced
        view.close()
        account = pipeline.account
        wrong = compare(
            account,
            stats,
            produced=producer.produced,
            committed=sum(pipeline.readings().committed.values()),
            letters=letters.counts.total(),
            finished=finished and not stalled and not self._stop.is_set(),
        )
        if stalled:
            wrong.append(f"nothing was settled any more for {_STALL_SECONDS:g} s")
        if producer.failed:
            wrong.append(f"{producer.failed} records were sent and never acknowledged by Kafka")
        lateness = Lateness.from_json(stats["lateness_seconds"])
        result = _Result(self._figures, lateness, _settled(account) / max(seconds, 0.001), wrong)
        self._print(result, stats)
        return result

    async def _kafka(self, stack: AsyncExitStack, topics: list[str]) -> str:
        """Start the embedded broker, or go to the one that was given; make the topics.

        Returns:
            Its `host:port`.
        """
        given = self._wanted.kafka
        if given is None:
            broker = await stack.enter_async_context(EmbeddedBroker())
            await let_make(broker.bootstrap, topics)
            return broker.bootstrap
        await make(given, topics)
        self._leaves = f"left at {given}: the topics {' and '.join(topics)}, the group {topics[0]}"
        stack.push_async_callback(self._remove, given, topics, topics[0])
        return given

    async def _until_ready(self, pipeline: Pipeline) -> None:
        """Wait until the group has given its partitions out."""
        while (reasons := pipeline.not_ready()) and not self._stop.is_set():
            self._figures.phase = f"starting: {reasons[0]}"
            await asyncio.sleep(0.05)

    async def _produce(
        self, tasks: asyncio.TaskGroup, pipeline: Pipeline, producer: Producer
    ) -> bool:
        """Have events produced until there are enough, or until it is stopped.

        Returns:
            Whether all of them were.
        """
        if self._stop.is_set():
            return False
        self._started = time.monotonic()
        self._looks.clear()
        feeding = tasks.create_task(self._tell_commits(pipeline, producer))
        following = tasks.create_task(producer.follow())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finished = following.done()
        if not finished:
            producer.finish()
            await asyncio.wait({following}, timeout=_GOODBYE_SECONDS)
        for task in (feeding, following, stopping):
            task.cancel()
        return finished

    async def _tell_commits(self, pipeline: Pipeline, producer: Producer) -> None:
        told: dict[int, int] | None = None
        while True:
            committed = {n: offset for (_, n), offset in pipeline.readings().committed.items()}
            if committed != told:
                producer.committed(committed)
                told = committed
            await asyncio.sleep(0.1)

    async def _until_settled(self, pipeline: Pipeline, producer: Producer) -> bool:
        """Wait until all that was produced is settled, or until it is stopped.

        Returns:
            False if nothing was settled any more.
        """
        account = pipeline.account
        self._figures.phase = "all is produced; waiting until it is settled"
        seen, since = -1, time.monotonic()
        while (settled := _settled(account)) < producer.produced and not self._stop.is_set():
            if settled != seen:
                seen, since = settled, time.monotonic()
            if time.monotonic() > since + _STALL_SECONDS:
                return False
            await asyncio.sleep(0.05)
        return True

    async def _remove(self, bootstrap: str, topics: list[str], group: str) -> None:
        try:
            await remove(bootstrap, topics, group)
        except StartError as error:
            self._console.print(f"{self._leaves} ({error})", soft_wrap=True)

    # --- what is shown --------------------------------------------------------------------------

    async def _watch(
        self, pipeline: Pipeline, producer: Producer, segment: SegmentProcess, letters: Letters
    ) -> None:
        while True:
            await self._look(pipeline, producer, segment, letters)
            self._view.show(self._figures)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(
        self, pipeline: Pipeline, producer: Producer, segment: SegmentProcess, letters: Letters
    ) -> dict[str, Any]:
        """Bring the figures up to date.

        Returns:
            What mock Segment has counted.
        """
        stats = await segment.stats()
        account, figures = pipeline.account, self._figures
        accepted = stats["calls"]["accepted"]
        look = _Look(
            time.monotonic(),
            _settled(account),
            stats["requests"]["total"],
            sum(accepted.values()),
            Lateness.from_json(stats["lateness_seconds"]),
        )
        self._looks.append(look)
        while self._looks[0].at < look.at - _WINDOW_SECONDS:
            self._looks.popleft()
        earlier = self._looks[0]
        seconds = max(look.at - earlier.at, 0.001)
        requests = look.requests - earlier.requests
        lateness = look.lateness.since(earlier.lateness)
        figures.elapsed_seconds = self._elapsed()
        figures.progress = self._progress(producer)
        # What it says comes a moment after what was read of it.
        figures.produced = max(producer.produced, account.consumed.total() - account.released)
        if producer.held:
            self._held_at = look.at
        figures.held = look.at < self._held_at + _HELD_SECONDS
        figures.account = account
        figures.events_per_second = (look.settled - earlier.settled) / seconds
        figures.requests_per_second = requests / seconds
        figures.calls_per_request = (look.calls - earlier.calls) / requests if requests else None
        figures.p50, figures.p95, figures.p99 = (lateness.percentile(n) for n in (50, 95, 99))
        figures.accepted = accepted
        figures.duplicates = sum(stats["calls"]["duplicate"].values())
        figures.requests = look.requests
        figures.lag = sum(pipeline.readings().lag.values())
        figures.letters = list(letters.last)
        for destination in pipeline.destinations:
            now = asyncio.get_running_loop().time()
            figures.state, figures.reason = destination.state, destination.reason
            figures.retry_seconds = max(destination.until - now, 0.0)
        figures.plays = self._plays(figures.elapsed_seconds)
        return stats

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else time.monotonic() - self._started

    def _progress(self, producer: Producer) -> str:
        wanted = self._wanted
        if self._started is None:
            return ""
        if wanted.events is not None:
            return f"{producer.produced:,} of {wanted.events:,} events"
        return f"{self._elapsed():.0f} of {wanted.seconds:g} s"

    def _plays(self, elapsed: float) -> str:
        """Say what mock Segment does now, and does next; to the view also when that changes."""
        now = next((p for p in self._phases if p.starts <= elapsed < p.ends), None)
        if now is not self._phase:
            self._phase = now
            self._view.say(f"mock Segment: {now.title if now else 'healthy again'}")
        if now is not None:
            return f"{now.title}, {now.ends - elapsed:.0f} s more"
        following = next((p for p in self._phases if p.starts > elapsed), None)
        if following is None:
            return "healthy: answers in 50 to 100 ms"
        return f"healthy; in {following.starts - elapsed:.0f} s: {following.title}"

    def _print(self, result: _Result, stats: Mapping[str, Any]) -> None:
        console, lateness = self._console, result.lateness
        console.print()
        print_account(console, result.figures, stats["requests"]["answers"])
        if lateness.total:
            late = ", ".join(f"p{n} {lateness.percentile(n):.2f} s" for n in (50, 95, 99))
            console.print(f"lateness {late}, Kafka's timestamp to acceptance", soft_wrap=True)
        for sentence in result.wrong:
            console.print(sentence, style="red", markup=False, soft_wrap=True)
        verdict = "the account balances" if not result.wrong else "the account does not balance"
        console.print(
            f"{verdict}; {result.settled_per_second:,.0f} events a second",
            style="bold " + ("red" if result.wrong else "green"),
        )


def compare(
    account: Account,
    stats: Mapping[str, Any],
    *,
    produced: int,
    committed: int,
    letters: int,
    finished: bool,
) -> list[str]:
    """Hold the account against what was produced, what mock Segment counted and what stands in Kafka.

    Args:
        account: streamer's own, after it has stopped.
        stats: mock Segment's.
        produced: records that Kafka has acknowledged.
        committed: records before the committed offsets.
        letters: dead letters that were read from Kafka.
        finished: whether everything was to be settled. Else records may be unread or released, and of the calls that
            were released mock Segment may have accepted some, whose answers came too late.

    Returns:
        A sentence for all that doesn't fit.
    """
    wrong = account.balance()
    if account.in_flight or any(account.calls_in_flight.values()):
        wrong.append(f"{account.in_flight} records are in flight after the stop")
    settled = _settled(account)
    if settled > produced or (finished and settled < produced):
        wrong.append(f"{produced} records were produced, {settled} settled")
    if finished and committed != produced:
        wrong.append(f"{produced} records were produced, {committed} committed")
    if committed > settled:
        wrong.append(f"{committed} records are committed, and only {settled} settled")
    if letters < account.dead_lettered.total():
        wrong.append(
            f"{account.dead_lettered.total()} dead letters counted, {letters} found in Kafka"
        )
    for kind in CALL_TYPES:
        delivered, released = account.calls_delivered[kind], account.calls_released[kind]
        accepted = stats["calls"]["accepted"].get(kind, 0)
        if not delivered <= accepted <= delivered + (0 if finished else released):
            wrong.append(f"{delivered} {kind} calls delivered, {accepted} accepted by mock Segment")
    if stats["discards"]:
        wrong.append(f"mock Segment threw calls away: {stats['discards']}")
    return wrong


def _settled(account: Account) -> int:
    return account.delivered + account.filtered.total() + account.dead_lettered.total()


def _config(interval: str, bootstrap: str, topic: str, endpoint: str) -> Config:
    try:
        return load_config(
            None,
            {
                "kafka.bootstrap_servers": bootstrap,
                "kafka.topics": [topic],
                "kafka.group_id": topic,
                "segment.endpoint": endpoint,
                "segment.write_key": WRITE_KEY,
                "groups": GROUPS,
                "flush.interval": interval,
                "server.port": 0,
                "shutdown_timeout": _SHUTDOWN_TIMEOUT,
            },
            environ={},
        )
    except ConfigError as error:
        told = str(error).replace("--bootstrap-servers: kafka.bootstrap_servers", "--kafka")
        raise ConfigError(told) from None


def _peak_rss_bytes() -> int:
    """The most memory that this process had: the pipeline and the view."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
