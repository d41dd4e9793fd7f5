"""What forwarding an event costs, end to end: a real Kafka, `streamer run`, and a receiver that discards.

Everything is measured in one run, since machines differ and drift:

- the yardstick: `orjson.loads` of the same events, around each row;
- the floor (`benchmarks/floor.py`): the least that a forwarder in Python could do;
- streamer with aggregation and compression off: two calls an event, the work that other forwarders were measured at;
- streamer with its defaults;
- what its metrics cost of that, once more with the defaults (`benchmarks/metered.py`).

CPU is that of the whole process as the operating system counts it, its start and its stop included. The receiver, the
broker and this script are processes of their own and are charged to nobody.

    make bench
    make bench ARGS="--events 600000 --write"
"""

# ruff: noqa: T201 - a script, which prints

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import orjson
from prometheus_client.parser import text_string_to_metric_families

from kafka_broker.broker import KafkaBroker
from kafka_broker.topics import Kafka, ToProduce, fresh_name
from streamer.demo.events import generate

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
SEED = 20220201
EVENTS = 300_000
LATENCY_SECONDS = 0.05
YARDSTICK_EVENTS = 20_000
FLOOR_AT_MOST = 4.2
"""Yardsticks; a floor above that says that the machine was too busy to measure anything."""
TIMEOUT_SECONDS = 600.0
SCRAPE_SECONDS = 1.0
PROMETHEUS_ACCEPTS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
)
"""What Prometheus asks for. OpenMetrics costs the library twice as much as its older text."""
ROWS: dict[str, dict[str, str]] = {
    "aggregation off": {
        "STREAMER_AGGREGATE__IDENTIFY": "false",
        "STREAMER_AGGREGATE__GROUP": "false",
        "STREAMER_SEGMENT__GZIP": "false",
    },
    "defaults": {},
}


@dataclass(frozen=True, slots=True)
class Row:
    """What one process took.

    Attributes:
        name: of the row.
        events: how many it forwarded.
        calls: how many it delivered; None where that isn't counted.
        wall_seconds: from its start until all was done.
        cpu_seconds: user and system time of the whole process.
        peak_bytes: its largest resident set.
        yardstick: seconds of CPU of an `orjson.loads` of the same events, measured around it.
    """

    name: str
    events: int
    calls: int | None
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    yardstick: float

    @property
    def microseconds(self) -> float:
        """CPU an event."""
        return 1e6 * self.cpu_seconds / self.events

    @property
    def ratio(self) -> float:
        """CPU an event, in yardsticks."""
        return self.cpu_seconds / self.events / self.yardstick


class Child:
    """A process that is measured; it ends with its context.

    Args:
        arguments: of the command.
        environment: over that of this process.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - it lives as long as this
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            arguments,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._peak = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def alive(self) -> bool:
        """Whether it still runs; notes its peak memory, which is gone with it."""
        # `ru_maxrss` of a child begins with that of its parent.
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found is None:  # a zombie has no memory
            return False
        self._peak = int(found[1]) * 1024
        return True

    def said(self) -> str:
        """What it has written so far."""
        return Path(self._log.name).read_text(encoding="utf-8")

    def stop(self) -> None:
        """End it in order, as a supervisor would."""
        self._process.send_signal(signal.SIGTERM)

    def row(self, name: str, events: int, calls: int | None, done: float, yardstick: float) -> Row:
        """Wait for its end and say what it took.

        Args:
            name: of the row.
            events: how many it forwarded.
            calls: how many it delivered.
            done: when all was done, by `time.monotonic`; 0 for at its end.
            yardstick: seconds.
        """
        _, status, usage = os.wait4(self._process.pid, 0)
        ended = time.monotonic()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise SystemExit(f"{name}: exit status {self._process.returncode}\n{self.said()}")
        cpu_seconds = usage.ru_utime + usage.ru_stime
        wall_seconds = (done or ended) - self.started
        return Row(name, events, calls, wall_seconds, cpu_seconds, self._peak, yardstick)


class Receiver:
    """The receiver's process, while its context is open.

    Attributes:
        url: where it takes batches.
    """

    url: str

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "receiver.py", str(LATENCY_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._process.stdout is None:
            raise RuntimeError("it was opened as a pipe")
        self.url = self._process.stdout.readline().decode().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its standard input, which ends it


class Bench:
    """A topic full of events, and what is measured on it.

    Args:
        bootstrap: of Kafka.
        events: how many.
    """

    def __init__(self, bootstrap: str, events: int) -> None:
        self._kafka = Kafka(bootstrap)
        self._events = events
        self._topic = ""
        self._sample: list[bytes] = []

    async def fill(self) -> None:
        """Produce the events into four partitions, by their keys."""
        self._topic = await self._kafka.create_topic(partitions=4)
        await self._kafka.create_topic(f"{self._topic}.dead-letter", partitions=1)
        events = generate(SEED)
        left = self._events
        while left:
            piece = list(islice(events, min(left, 20_000)))
            left -= len(piece)
            self._sample = (self._sample + [event.value for event in piece])[:YARDSTICK_EVENTS]
            await self._kafka.produce(
                self._topic, [ToProduce(event.key, event.value) for event in piece]
            )

    def yardstick(self) -> float:
        """Measure `orjson.loads`: seconds of CPU an event, the median of five passes."""
        passes = []
        for _ in range(5):
            begin = time.process_time()
            for value in self._sample:
                orjson.loads(value)
            passes.append((time.process_time() - begin) / len(self._sample))
        return statistics.median(passes)

    @property
    def mean_bytes(self) -> float:
        """How long an event is."""
        return sum(map(len, self._sample)) / len(self._sample)

    def floor(self, url: str) -> Row:
        """Measure the floor."""
        before = self.yardstick()
        arguments = [self._kafka.bootstrap, self._topic, url, str(self._events)]
        with Child([sys.executable, str(HERE / "floor.py"), *arguments]) as child:
            while child.alive():
                time.sleep(0.05)
            row = child.row("floor", self._events, None, 0.0, before)
        return self._around(row)

    async def streamer(self, name: str, settings: Mapping[str, str], url: str) -> Row:
        """Measure `streamer run`, from its start until everything is committed.

        Args:
            name: of the row.
            settings: environment variables.
            url: where it sends.
        """
        before = self.yardstick()
        group = fresh_name("bench")
        command = [str(Path(sys.executable).with_name("streamer")), "run"]
        with self._child(command, group, settings, url) as child:
            await self._until_committed(child, group)
            done = time.monotonic()
            child.alive()
            calls = await asyncio.to_thread(_delivered_calls, child, self._events)
            child.stop()
            return self._around(child.row(name, self._events, calls, done, before))

    async def metrics(self, url: str) -> str:
        """Measure what the metrics cost, scraped once a second as Prometheus does: a line of the report.

        Args:
            url: where streamer sends.
        """
        group = fresh_name("bench")
        command = [sys.executable, str(HERE / "metered.py")]
        with self._child(command, group, {}, url) as child:
            scraping = asyncio.create_task(_scrape(child))
            await self._until_committed(child, group)
            scraping.cancel()
            child.stop()
            child.row("metrics", self._events, None, 0.0, 0.0)
            found = re.search(r"^metrics: .+", child.said(), re.MULTILINE)
        if found is None:
            raise SystemExit("metered.py didn't say what metrics cost")
        return found[0]

    def _child(
        self, command: list[str], group: str, settings: Mapping[str, str], url: str
    ) -> Child:
        environment = {
            "STREAMER_KAFKA__BOOTSTRAP_SERVERS": self._kafka.bootstrap,
            "STREAMER_KAFKA__TOPICS": self._topic,
            "STREAMER_KAFKA__GROUP_ID": group,
            "STREAMER_SEGMENT__ENDPOINT": url,
            "STREAMER_SERVER__PORT": "0",
            "SEGMENT_API_WRITE_KEY": "benchmark",
            **settings,
        }
        return Child(command, environment)

    async def _until_committed(self, child: Child, group: str) -> None:
        deadline = child.started + TIMEOUT_SECONDS
        while sum((await self._kafka.committed(group, self._topic)).values()) < self._events:
            if not child.alive() or time.monotonic() > deadline:
                raise SystemExit(f"not everything was forwarded\n{child.said()}")
            await asyncio.sleep(0.2)

    def _around(self, row: Row) -> Row:
        """Take the mean of the yardsticks before and after."""
        return replace(row, yardstick=(row.yardstick + self.yardstick()) / 2)


def _metrics(child: Child, accept: str) -> str:
    """Ask streamer for its metrics."""
    found = re.search(r"http://127\.0\.0\.1:\d+/metrics", child.said())
    if found is None:
        raise SystemExit(f"streamer didn't say where its metrics are:\n{child.said()}")
    request = urllib.request.Request(found[0], headers={"Accept": accept})  # noqa: S310 - its own address, on loopback
    with urllib.request.urlopen(request) as response:  # noqa: S310 - the same
        return response.read().decode()


async def _scrape(child: Child) -> None:
    """Ask for the metrics each second, as Prometheus does, until cancelled."""
    while True:
        await asyncio.sleep(SCRAPE_SECONDS)
        if "/metrics" in child.said():
            await asyncio.to_thread(_metrics, child, PROMETHEUS_ACCEPTS)


def _delivered_calls(child: Child, events: int) -> int:
    """Ask streamer what it delivered, and hold it against what it should have."""
    text = _metrics(child, "text/plain")
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    delivered = sum(
        sample.value
        for sample in samples
        if sample.name == "streamer_events_settled_total"
        and sample.labels["outcome"] == "delivered"
    )
    if delivered != events:
        raise SystemExit(f"{delivered:.0f} of {events} events were delivered")
    return int(
        sum(
            sample.value
            for sample in samples
            if sample.name == "streamer_calls_total" and sample.labels["outcome"] == "delivered"
        )
    )


def report(bench: Bench, rows: list[Row], metrics: str) -> str:
    """Put the rows into a Markdown table, with what is needed to read it.

    Args:
        bench: what they were measured on.
        rows: the floor first.
        metrics: what metrics cost.
    """
    floor = rows[0]
    what = (
        f"{floor.events:,} events of {bench.mean_bytes:,.0f} bytes, 4 partitions, Apache Kafka"
        f" {_kafka_version()}; receiver with {LATENCY_SECONDS * 1000:.0f} ms latency"
    )
    where = (
        f"CPython {platform.python_version()}, {os.cpu_count()} cores shared with broker and receiver,"
        f" orjson {version('orjson')}, aiokafka {version('aiokafka')}, aiohttp {version('aiohttp')}"
    )
    columns = (
        "",
        "µs CPU an event",
        "yardsticks",
        "floors",
        "events per CPU-second",
        "events per second",
        "calls an event",
        "peak memory",
    )
    lines = [what, where, "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        calls = "" if row.calls is None else f"{row.calls / row.events:.2f}"
        lines.append(
            f"| {row.name} | {row.microseconds:.1f} | {row.ratio:.2f} | {row.ratio / floor.ratio:.2f}"
            f" | {1e6 / row.microseconds:,.0f} | {row.events / row.wall_seconds:,.0f} | {calls}"
            f" | {row.peak_bytes / 1e6:.0f} MB |"
        )
    yardsticks = ", ".join(f"{1e6 * row.yardstick:.2f}" for row in rows)
    lines += [
        "",
        f"yardstick: orjson.loads of such an event, {yardsticks} µs around these rows",
        metrics,
    ]
    if floor.ratio > FLOOR_AT_MOST:
        lines.append(
            f"VOID: the floor took {floor.ratio:.2f} yardsticks, more than {FLOOR_AT_MOST}: the machine was busy, or"
            " the events were too few"
        )
    return "\n".join(lines)


def _kafka_version() -> str:
    pom = (HERE.parent / "tests/kafka_broker/pom.xml").read_text(encoding="utf-8")
    found = re.search(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([\d.]+)", pom)
    return found[1] if found else ""


async def main(events: int, names: list[str]) -> tuple[str, bool]:
    """Measure.

    Args:
        events: how many.
        names: of the rows, as in `ROWS`.

    Returns:
        The report, and whether it counts.
    """
    with KafkaBroker() as broker, Receiver() as receiver:
        bench = Bench(broker.bootstrap, events)
        print("filling the topic", file=sys.stderr)
        await bench.fill()
        print("floor", file=sys.stderr)
        rows = [bench.floor(receiver.url)]
        for name in names:
            print(name, file=sys.stderr)
            rows.append(await bench.streamer(name, ROWS[name], receiver.url))
        print("metrics", file=sys.stderr)
        metrics = await bench.metrics(receiver.url)
        return report(bench, rows, metrics), rows[0].ratio <= FLOOR_AT_MOST


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description="Measure end to end.")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument(
        "--row", choices=ROWS, action="append", help="only this one; may be repeated"
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the report in benchmarks/results/"
    )
    given = parser.parse_args()
    table, counts = asyncio.run(main(given.events, given.row or list(ROWS)))
    print(table)
    if given.write:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        name = f"{datetime.now(UTC):%Y-%m-%d}-{given.events}.md"
        (results / name).write_text(f"# `make bench`\n\n{table}\n", encoding="utf-8")
    sys.exit(0 if counts else 1)
