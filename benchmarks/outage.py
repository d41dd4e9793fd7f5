"""What an outage of Segment costs: memory, the place in the group, and how fast the backlog drains after it.

A real Apache Kafka, `streamer run` as a process of its own, and a receiver here that takes batches, hangs, or answers
503. Two outages of the same shape, a short one and a long one: while nothing is accepted the topic is filled with more
than memory holds, then the receiver takes batches again until all is committed. What the short one drains at is the
speed that the long one is held against.

    python benchmarks/outage.py [--minutes 10] [--how hang] [--event-bytes 2000] [--write]

Needs Java 17 and Maven. The exit status is 1 if memory grows by more than the budget and 20 MB over what the process
took before it read anything, if it leaves the group, or if it drains at less than three quarters of the speed.
"""

# ruff: noqa: T201, ASYNC110 - a script, which prints, and asks other processes how far they are

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import aiohttp
import orjson
from aiohttp import web
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

# The tests of the whole pipeline have what this needs.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from end_to_end import LATENCY_SECONDS, SEED, Child

from kafka_broker.broker import KafkaBroker
from kafka_broker.topics import Kafka, ToProduce, fresh_name
from streamer.demo.events import generate

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
BUDGET = 32_000_000
"""The default of `flush.memory_budget`."""
MORE_THAN_BUDGET = 20_000_000
"""What memory may grow by over the budget: aiokafka's prefetch, and what the allocator doesn't give back."""
SLOWEST = 0.75
"""How fast the backlog of the long outage has to drain, beside that of the short one."""
SHORT_SECONDS = 20.0
BACKLOG_BYTES = 200_000_000
"""What waits in Kafka at the end of each outage: some six times the budget."""
MOST_EVENTS = 400_000
TIMEOUT_SECONDS = 900.0


class Receiver:
    """Answers every batch as Segment does, or is down, while its context is open.

    Args:
        how: what it does while it is down: `hang` or `503`.

    Attributes:
        down: whether nothing is accepted.
        url: where it takes batches.
    """

    url: str

    def __init__(self, how: str) -> None:
        self.down = False
        self._how = how

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.post("/v1/batch", self._batch)])
        self._runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,
            shutdown_timeout=1,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1/batch"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _batch(self, request: web.Request) -> web.Response:
        async for _ in request.content.iter_any():
            pass
        if self.down and self._how == "503":
            return web.Response(status=503)
        if self.down:
            await asyncio.sleep(TIMEOUT_SECONDS)  # until the sender goes
        await asyncio.sleep(LATENCY_SECONDS)
        return web.Response(body=b'{"success": true}', content_type="application/json")


@dataclass
class Outage:
    """What was measured of one outage.

    Attributes:
        seconds: how long it was.
        events: how many were produced meanwhile.
        rss: bytes of resident memory, once a second.
        used: bytes of the memory budget, by streamer's own count, likewise.
        recovered_after: seconds from its end to the first delivery.
        per_second: events delivered a second from then on.
        members: ids of the group's members, as the broker had them.
    """

    seconds: float
    events: int
    rss: list[int] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    recovered_after: float = 0.0
    per_second: float = 0.0
    members: set[str] = field(default_factory=set)


class Watched(Child):
    """`streamer run`, and what it says of itself."""

    @property
    def rss(self) -> int:
        """Bytes of resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        if found is None:
            raise SystemExit(f"streamer ended\n{self.said()}")
        return int(found[1]) * 1024

    async def metric(self, name: str, **labels: str) -> float:
        """Ask for a sum of samples."""
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", self.said())
        if found is None:
            return 0.0
        async with aiohttp.ClientSession() as session, session.get(found[0]) as response:
            text = await response.text()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def delivered(self) -> float:
        """How many events Segment has."""
        return await self.metric("streamer_events_settled_total", outcome="delivered")


def events_of(size: int) -> Iterator[ToProduce]:
    """Make events of one visitor each.

    Args:
        size: bytes of each, about; 0 for the demo's events.
    """
    if not size:
        for event in generate(SEED):
            yield ToProduce(event.key, event.value)
    number = 0
    while True:
        number += 1
        key = b"visitor-%d" % number
        event = {
            "event_type": "read",  # of other types than pageView all attributes go to Segment
            "event_timestamp": 1643673911400 + number,
            "attributes": {"title": "News"},
            "endpoint": {"Id": key.decode()},
        }
        filled = len(orjson.dumps(event))
        # Attributes of at most 1,000 bytes.
        for place in range(0, max(0, size - filled), 1000):
            event["attributes"][f"a{place}"] = f"{number:09d} " * min(
                100, (size - filled - place) // 10
            )
        yield ToProduce(key, orjson.dumps(event))


class Bench:
    """One process, and the outages that it goes through.

    Args:
        bootstrap: of Kafka.
        receiver: where it sends.
        size: of an event; see `events_of`.
    """

    def __init__(self, bootstrap: str, receiver: Receiver, size: int) -> None:
        self._kafka = Kafka(bootstrap)
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        self._receiver = receiver
        self._events = events_of(size)
        self._group = fresh_name("outage")
        self._produced = 0
        self.mean_bytes = 0.0

    async def run(self, seconds: float) -> tuple[int, Outage, Outage, int, float]:
        """Measure.

        Returns:
            Bytes of memory at the start, both outages, peak memory of all, and how many rebalances there were.
        """
        self._topic = await self._kafka.create_topic(partitions=4)
        await self._kafka.create_topic(f"{self._topic}.dead-letter", partitions=1)
        environment = {
            "STREAMER_KAFKA__BOOTSTRAP_SERVERS": self._kafka.bootstrap,
            "STREAMER_KAFKA__TOPICS": self._topic,
            "STREAMER_KAFKA__GROUP_ID": self._group,
            "STREAMER_SEGMENT__ENDPOINT": self._receiver.url,
            "STREAMER_SERVER__PORT": "0",
            "SEGMENT_API_WRITE_KEY": "benchmark",
        }
        command = [str(Path(sys.executable).with_name("streamer")), "run"]
        with Watched(command, environment) as child:
            async with asyncio.timeout(60):
                while await child.metric("streamer_assigned_partitions") < 4:
                    await asyncio.sleep(0.2)
            at_start = child.rss
            short = await self._outage(child, SHORT_SECONDS)
            long = await self._outage(child, seconds)
            rebalances = await child.metric("streamer_rebalances_total")
            child.alive()
            child.stop()
            row = await asyncio.to_thread(child.row, "streamer", self._produced, None, 0.0, 0.0)
        return at_start, short, long, row.peak_bytes, rebalances

    async def _outage(self, child: Watched, seconds: float) -> Outage:
        print(f"an outage of {seconds:g} s", file=sys.stderr)
        self._receiver.down = True
        outage = Outage(seconds, 0)
        ends = time.monotonic() + seconds
        producing = asyncio.create_task(self._fill(outage))
        while time.monotonic() < ends or not producing.done():
            outage.rss.append(child.rss)
            outage.used.append(await child.metric("streamer_memory_used_bytes"))
            if len(outage.rss) % 10 == 1:
                outage.members |= await asyncio.to_thread(self._members)
            await asyncio.sleep(1.0)
        await producing
        before = await child.delivered()
        self._receiver.down = False
        healed = time.monotonic()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (delivered := await child.delivered()) == before:
                await asyncio.sleep(0.05)
            began, first = time.monotonic(), delivered
            while (delivered := await child.delivered()) < self._produced:
                await asyncio.sleep(0.25)
            outage.per_second = (delivered - first) / (time.monotonic() - began)
            while (
                sum((await self._kafka.committed(self._group, self._topic)).values())
                < self._produced
            ):
                await asyncio.sleep(0.2)
        outage.recovered_after = began - healed
        outage.members |= await asyncio.to_thread(self._members)
        return outage

    async def _fill(self, outage: Outage) -> None:
        produced = 0
        while produced < BACKLOG_BYTES and outage.events < MOST_EVENTS:
            piece = list(islice(self._events, 5000))
            produced += sum(len(event.value or b"") for event in piece)
            outage.events += len(piece)
            await self._kafka.produce(self._topic, piece)
        self._produced += outage.events
        self.mean_bytes = produced / outage.events

    def _members(self) -> set[str]:
        described = self._admin.describe_consumer_groups([self._group])[self._group].result()
        return {member.member_id for member in described.members}


async def main(minutes: float, how: str, size: int) -> tuple[str, bool]:
    """Measure, and hold what was measured against the limits.

    Args:
        minutes: how long the long outage is.
        how: what the receiver does meanwhile.
        size: of an event; see `events_of`.

    Returns:
        The report, and whether every limit holds.
    """
    with KafkaBroker() as broker:
        async with Receiver(how) as receiver:
            bench = Bench(broker.bootstrap, receiver, size)
            at_start, short, long, peak, rebalances = await bench.run(minutes * 60)
    grown = max(long.rss) - at_start
    members = short.members | long.members
    speed = long.per_second / short.per_second
    limits = {
        f"memory grew by {grown / 1e6:.1f} MB during the outage, of"
        f" {(BUDGET + MORE_THAN_BUDGET) / 1e6:.0f} MB": grown <= BUDGET + MORE_THAN_BUDGET,
        f"{len(members)} member, {rebalances:.0f} rebalance": len(members) == rebalances == 1,
        f"drained at {speed:.0%} of the speed of the short outage": speed >= SLOWEST,
    }
    half = len(long.rss) // 2
    what = (
        f"{short.events + long.events:,} events of {bench.mean_bytes:,.0f} bytes, 4 partitions, default settings;"
        f" the receiver {'hangs' if how == 'hang' else 'answers 503'}"
    )
    columns = (
        "| outage | memory before reading | most in its first half | in its second | most used of the budget"
        " | first delivery after its end | drained, events a second |"
    )
    lines = [what, "", columns, "|" + "---|" * 7]
    for outage in (short, long):
        half = len(outage.rss) // 2
        lines.append(
            f"| {outage.seconds:g} s | {at_start / 1e6:.1f} MB | {max(outage.rss[:half]) / 1e6:.1f} MB"
            f" | {max(outage.rss[half:]) / 1e6:.1f} MB | {max(outage.used) / 1e6:.1f} MB"
            f" | {outage.recovered_after:.1f} s | {outage.per_second:,.0f} |"
        )
    lines += ["", f"peak memory, drains included: {peak / 1e6:.1f} MB", ""]
    lines += [f"- {text}: {'holds' if holds else 'FAILS'}" for text, holds in limits.items()]
    return "\n".join(lines), all(limits.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What an outage costs.")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--how", choices=("hang", "503"), default="hang")
    parser.add_argument("--event-bytes", type=int, default=0, help="default: the demo's events")
    parser.add_argument(
        "--write", action="store_true", help="keep the report in benchmarks/results/"
    )
    given = parser.parse_args()
    table, holds = asyncio.run(main(given.minutes, given.how, given.event_bytes))
    print(table)
    if given.write:
        name = f"{datetime.now(UTC):%Y-%m-%d}-outage-{given.how}.md"
        (HERE / "results" / name).write_text(
            f"# `benchmarks/outage.py`\n\n{table}\n", encoding="utf-8"
        )
    sys.exit(0 if holds else 1)
