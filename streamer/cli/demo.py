"""`streamer demo`: the whole pipeline with nothing installed."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from rich.console import Console
from rich.table import Table

from streamer.config import load_config
from streamer.core.model import CALL_TYPES
from streamer.demo.broker import EmbeddedBroker
from streamer.demo.events import generate
from streamer.logs import configure
from streamer.mock_segment import Fault, MockSegment
from streamer.pipeline import Pipeline

if TYPE_CHECKING:
    from streamer.core.account import Account
    from streamer.mock_segment.stats import Stats

TOPIC = "analytics-events"
WRITE_KEY = "the-demo-has-no-secrets"
_PIECES_A_SECOND = 10
_AHEAD = 3000
"""Records that may be produced and not settled: 1.5 MB in each of the four partitions. The embedded broker forgets
what is older than about 5 MB."""
_SETTLE_TIMEOUT = 60.0


@dataclass(slots=True)
class _Progress:
    produced: int = 0
    stopped: bool = False


def demo(
    events: Annotated[int, typer.Option(min=1, help="How many events to produce.")] = 10_000,
    rate: Annotated[int, typer.Option(min=1, help="How many of them a second.")] = 1000,
    interval: Annotated[str, typer.Option(help="The flush interval.")] = "1s",
    seed: Annotated[int, typer.Option(help="Of the generated events.")] = 1,
) -> None:
    """Run the whole pipeline: an embedded broker, generated events, and Segment played on loopback.

    Ends with the account of every record and call. Exits with status 1 if it doesn't balance, or if mock Segment
    counted otherwise.
    """
    configure("error")
    if not asyncio.run(_demo(events, rate, interval, seed)):
        raise typer.Exit(1)


async def _demo(events: int, rate: int, interval: str, seed: int) -> bool:
    console = Console(highlight=False)
    started = time.monotonic()
    latency = Fault(kind="delay", seconds=0.05, jitter_seconds=0.05)
    async with (
        EmbeddedBroker() as broker,
        MockSegment(faults=[latency], keep_calls=False) as segment,
    ):
        config = load_config(
            None,
            {
                "kafka.bootstrap_servers": broker.bootstrap,
                "kafka.topics": [TOPIC],
                "segment.endpoint": segment.url,
                "segment.write_key": WRITE_KEY,
                "groups": [{"field": "endpoint.Attributes.AudienceId", "each": True}],
                "flush.interval": interval,
                "server.port": 0,
            },
            environ={},
        )
        await _make_topic(broker.bootstrap)
        pipeline = Pipeline(config)
        stop, progress = asyncio.Event(), _Progress()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(
                number, lambda: setattr(progress, "stopped", True)
            )
        console.print(
            f"{events} events at {rate} a second, flush interval {interval}; Ctrl-C ends it\n"
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(pipeline.run(stop))
            # The group is being made.
            while pipeline.not_ready() and not progress.stopped:  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0.05)
            watching = tasks.create_task(_watch(console, pipeline, segment, progress))
            await _produce(broker.bootstrap, pipeline, progress, events, rate, seed)
            settled = await _settled(pipeline, progress)
            watching.cancel()
            stop.set()
            await running
        wrong = pipeline.account.balance()
        if not settled:
            wrong.append(
                f"{progress.produced} records produced, {_decided(pipeline.account)} settled"
                f" within {_SETTLE_TIMEOUT:g} s"
            )
        wrong += _compare(pipeline.account, segment.stats, progress.produced)
        _print_account(console, pipeline.account, segment.stats, progress.produced)
        for sentence in wrong:
            console.print(f"[red]{sentence}[/red]")
        seconds = time.monotonic() - started
        console.print(
            f"\n{'the account balances' if not wrong else 'the account does not balance'}"
            f" ({seconds:.0f} s in all)"
        )
        return not wrong


async def _make_topic(bootstrap: str) -> None:
    """Asking the embedded broker for a topic makes it; a consumer that came before would wait for its next look."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:
        await client.bootstrap()
        await client.add_topic(TOPIC)
    finally:
        await client.close()


async def _produce(
    bootstrap: str, pipeline: Pipeline, progress: _Progress, events: int, rate: int, seed: int
) -> None:
    """Produce in a rhythm, never further ahead of the pipeline than the broker can keep."""
    source = islice(
        generate(
            seed,
            broken=0.002,
            missing_ids=0.001,
            oversized=0.0005,
            start_ms=int(time.time() * 1000),
            rate=min(rate, 1000),
        ),
        events,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", linger_ms=5, max_batch_size=256_000
    )
    await producer.start()
    try:
        begun = time.monotonic()
        while not progress.stopped:
            due = int((time.monotonic() - begun) * rate) + 1 - progress.produced
            room = _AHEAD - (progress.produced - _decided(pipeline.account))
            piece = list(islice(source, max(min(due, room), 0)))
            sent = [await producer.send(TOPIC, event.value, key=event.key) for event in piece]
            await asyncio.gather(*sent)
            progress.produced += len(piece)
            if progress.produced >= events:
                return
            await asyncio.sleep(1 / _PIECES_A_SECOND)
    finally:
        await producer.stop()


async def _settled(pipeline: Pipeline, progress: _Progress) -> bool:
    """Wait until every record that was produced is settled."""
    deadline = time.monotonic() + _SETTLE_TIMEOUT
    while _decided(pipeline.account) < progress.produced:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def _watch(
    console: Console, pipeline: Pipeline, segment: MockSegment, progress: _Progress
) -> None:
    """Print a line a second."""
    columns = ("produced", "delivered", "dead letters", "in flight", "requests", "calls merged")
    console.print("  ".join(columns))
    while True:
        await asyncio.sleep(1)
        account, stats = pipeline.account, segment.stats
        numbers = (
            progress.produced,
            account.delivered,
            account.dead_lettered.total(),
            account.in_flight,
            stats.requests_total,
            sum(account.merged.values()),
        )
        console.print("  ".join(f"{n:>{len(c)}}" for n, c in zip(numbers, columns, strict=True)))


def _decided(account: Account) -> int:
    return account.delivered + account.filtered.total() + account.dead_lettered.total()


def _compare(account: Account, stats: Stats, produced: int) -> list[str]:
    """Hold the account against what was produced, and against what mock Segment counted."""
    wrong = []
    consumed = account.consumed.total()
    if consumed != produced:
        wrong.append(f"{produced} records were produced, {consumed} consumed")
    for kind in CALL_TYPES:
        accepted = stats.accepted[kind]
        if account.calls_delivered[kind] != accepted:
            wrong.append(
                f"{account.calls_delivered[kind]} {kind} calls delivered, {accepted} accepted by mock Segment"
            )
    if stats.discarded.total():
        wrong.append(
            f"mock Segment threw {stats.discarded.total()} calls away: {dict(stats.discards)}"
        )
    return wrong


def _print_account(console: Console, account: Account, stats: Stats, produced: int) -> None:
    records = Table(title="Records", title_justify="left", show_header=False)
    letters = ", ".join(f"{reason} {n}" for reason, n in sorted(account.dead_lettered.items()))
    for what, number in (
        ("produced", produced),
        ("consumed", account.consumed.total()),
        ("delivered", account.delivered),
        ("dead letters" + (f" ({letters})" if letters else ""), account.dead_lettered.total()),
        ("released", account.released),
        ("in flight", account.in_flight),
    ):
        records.add_row(what, f"{number:,}")
    calls = Table(title="Calls", title_justify="left")
    for column in ("type", "made", "merged", "refused", "delivered", "accepted by mock Segment"):
        calls.add_column(column, justify="left" if column == "type" else "right")
    for kind in CALL_TYPES:
        row = (
            account.made[kind],
            account.merged[kind],
            account.refused[kind],
            account.calls_delivered[kind],
            stats.accepted[kind],
        )
        calls.add_row(kind, *(f"{number:,}" for number in row))
    console.print()
    console.print(records)
    console.print(calls)
    answers = ", ".join(f"{answer}: {n}" for answer, n in sorted(stats.answers.items()))
    console.print(f"{stats.requests_total} requests ({answers})")
