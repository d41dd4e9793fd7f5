"""A real Prometheus on loopback, and a bad day for it to watch: what the test and the pictures of dashboards share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import orjson
import promql_parser as promql

from kafka_broker.broker import free_port
from kafka_broker.topics import ToProduce
from reference.interpreter import Interpreter
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.demo.events import generate
from streamer.mock_segment import Fault
from whole_pipeline import DIE_WITH_PARENT, TIMEOUT_SECONDS, WRITE_KEY, Member, Stage

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence

DASHBOARDS = Path(__file__).parent.parent / "dashboards"
BOARDS = ("overview.json", "flush-tuning.json", "kafka-and-runtime.json")
JOB = "streamer"
SETTINGS = {
    "STREAMER_AGGREGATE__SUPPRESS_FOR": "1h",
    "STREAMER_TRANSFORM__DROP_EVENTS": "click",
    "STREAMER_SEGMENT__TIMEOUT": "1s",
    "STREAMER_FLUSH__INTERVAL": "1s",
    # Small, so that a stream that a test can make fills batches, slots and memory.
    "STREAMER_FLUSH__MAX_CALLS": "1000",
    "STREAMER_FLUSH__MAX_BYTES": "250000",
    "STREAMER_FLUSH__MEMORY_BUDGET": "5200000",
}
EXCLUDED = {"drop_events": ["click"]}


@dataclass
class Series:
    """A series of an answer.

    Attributes:
        labels: of it, with its name.
        points: times in seconds since 1970, and values.
    """

    labels: dict[str, str]
    points: list[tuple[float, float]]

    def finite(self) -> list[float]:
        """The values that are numbers."""
        return [value for _, value in self.points if math.isfinite(value)]


@dataclass
class Prometheus:
    """Debian's Prometheus in a process of its own, with the alerts beside the dashboards; gone when it ends.

    Args:
        ports: of loopback, which it scrapes every second.
    """

    ports: Sequence[int]
    url: str = ""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(DASHBOARDS / "alerts.yml")],
            "scrape_configs": [
                {
                    "job_name": JOB,
                    "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in self.ports]}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        log = self._stack.enter_context((folder / "log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, DIE_WITH_PARENT, str(os.getpid()), "prometheus",
            f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        self._stack.push_async_callback(_end, process)
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not await self._is_ready():
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.1)
            # It is ready before it scrapes: that begins some seconds later, and what happens until then it never sees.
            while len(await self.at(f'up{{job="{JOB}"}}', time.time())) < len(self.ports):
                await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _is_ready(self) -> bool:
        try:
            async with self._session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def get(self, path: str, **parameters: str) -> Any:
        """What the HTTP API answers; an error of a query is an assertion that shows it."""
        async with self._session.post(f"{self.url}/api/v1/{path}", data=parameters) as response:
            answer = await response.json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    async def read(self, path: str) -> Any:
        """The same for what is read with GET alone."""
        async with self._session.get(f"{self.url}/api/v1/{path}") as response:
            return (await response.json())["data"]

    async def scraped_all(self) -> None:
        """Waits until every member was scraped from now on."""
        now = time.time()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                scrapes = await self.at(f'timestamp(up{{job="{JOB}"}} == 1)', time.time())
                if len([s for s in scrapes if s.points[0][1] > now]) == len(self.ports):
                    return
                await asyncio.sleep(0.2)

    async def at(self, query: str, when: float) -> list[Series]:
        """What a query gives at a time."""
        data = await self.get("query", query=query, time=f"{when:.3f}")
        if data["resultType"] == "scalar":
            return [Series({}, [(when, float(data["result"][1]))])]
        return [
            Series(series["metric"], [(when, float(series["value"][1]))])
            for series in data["result"]
        ]

    async def over(self, query: str, start: float, end: float, step: float) -> list[Series]:
        """What a query gives over a time."""
        data = await self.get(
            "query_range", query=query, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:.3f}"
        )
        return [
            Series(series["metric"], [(float(at), float(v)) for at, v in series["values"]])
            for series in data["result"]
        ]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        await process.wait()


@dataclass(frozen=True)
class Variables:
    """What Grafana would put into the queries of a dashboard.

    Args:
        rate_interval: over what rates are taken: four scrapes at least.
        range: the time shown.
        before: how long ago the other half of a comparison is.
    """

    rate_interval: str
    range: str
    before: str

    def fill(self, text: str) -> str:
        """A query, or a legend, as it is sent."""
        for name, value in (
            ("$__rate_interval", self.rate_interval),
            ("$__range", self.range),
            ("$before", self.before),
            ("$job", JOB),
            ("$instance", ".+"),
            ("$topic", ".+"),
        ):
            text = text.replace(name, value)
        assert "$" not in text, text
        return text


def selectors(query: str) -> list[promql.VectorSelector]:
    """Every series that a query selects; AssertionError if it doesn't parse."""
    found: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> None:
        match node:
            case promql.MatrixSelector():
                found.append(node.vector_selector)
            case promql.VectorSelector():
                found.append(node)

    try:
        promql.walk(promql.parse(query), visit)
    except ValueError as error:
        raise AssertionError(f"{query}: {error}") from error
    return found


def dashboard(name: str) -> dict[str, Any]:
    """A dashboard as it is committed."""
    found: dict[str, Any] = json.loads((DASHBOARDS / name).read_text())
    return found


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the headings of its rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def _events(rate: float, poison: asyncio.Event, refused: set[str]) -> Iterator[ToProduce]:
    """Events without end, some of which can't become calls; the next one after `poison` is set Segment refuses."""
    interpreter = Interpreter(WRITE_KEY, default_mapping(), [], BUILTIN_CALLBACKS)
    for event in generate(
        41, users=400, broken=0.004, missing_ids=0.004, oversized=0.001, rate=rate
    ):
        value = event.value
        if poison.is_set():
            with contextlib.suppress(orjson.JSONDecodeError):
                value = orjson.dumps({**orjson.loads(value), "event_type": "poison"})
            calls = interpreter.calls(value, 0)
            if isinstance(calls, list):
                refused.add(calls[-1]["messageId"])
                poison.clear()
        yield ToProduce(event.key, value, int(time.time() * 1000))


async def bad_day(
    stage: Stage, ports: Sequence[int], seconds: float, rate: float
) -> frozenset[str]:
    """A stream, and what can happen to it: a changed setting, an outage, time-outs, 429, refusals, members come and go.

    Args:
        stage: without members yet; it has the settings and exclusions from above.
        ports: of the two members.
        seconds: how long it lasts at least; each part goes on until the members have seen what it brings.
        rate: events a second.

    Returns:
        Ids of the calls that Segment refused for good.
    """
    refused: set[str] = set()
    poison = asyncio.Event()
    events = _events(rate, poison, refused)
    refuse = Fault(kind="refuse", event="poison")
    slow = Fault(kind="delay", seconds=0.04, jitter_seconds=0.08)
    set_faults = stage.segment.faults.set
    over = asyncio.Event()

    async def produce() -> None:
        began, sent = time.monotonic(), 0
        while not over.is_set():
            due = int((time.monotonic() - began + 0.25) * rate) - sent
            await stage.produce(islice(events, due))
            sent += due
            await asyncio.sleep(0.25)

    async def start(port: int, partitions: int) -> Member:
        member = await stage.start(STREAMER_SERVER__PORT=str(port))
        await until(member, lambda seen: seen["streamer_assigned_partitions",] == partitions)
        return member

    async def until(member: Member, seen: Callable[[Counter[tuple[str, ...]]], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not seen(await member.metrics()):
                await asyncio.sleep(0.2)

    async def part(share: float, outcome: str, *faults: Fault) -> None:
        """Wait for a share of the time, and until requests had this outcome more often than before."""
        set_faults(*faults, refuse)

        def count(seen: Counter[tuple[str, ...]]) -> float:
            name = "streamer_segment_requests_total"
            return sum(n for key, n in seen.items() if key[:2] == (name, outcome))

        before = count(await first.metrics())
        await asyncio.sleep(share * seconds)
        await until(first, lambda seen: count(seen) > before)

    set_faults(slow, refuse)
    load = asyncio.create_task(produce())
    try:
        first = await start(ports[0], 4)
        await part(0.15, "delivered", slow)
        await _change(first, {"flush.interval": "3s"})
        for _ in range(2):  # each is found out by what is accepted after it
            poison.set()
            await part(0.1, "refused", slow)
        await stage.produce(islice(events, 4000))  # more than the budget of memory
        await part(0.15, "server_error", Fault(kind="answer", status=503))
        await part(0.1, "timeout", slow, Fault(kind="hang", seconds=3, probability=0.3))
        too_many = Fault(kind="answer", status=429, retry_after_seconds=1, probability=0.4)
        await part(0.1, "rate_limited", slow, too_many)
        await part(0.05, "delivered", slow)
        await start(ports[1], 2)
        await part(0.1, "delivered", slow)
        assert await first.stop() == 0
        first = await start(ports[0], 2)
        await part(0.15, "delivered", slow)
    finally:
        over.set()
        await load
    return frozenset(refused)


async def _change(member: Member, settings: dict[str, str]) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.patch(f"{member.url}/config", json=settings) as response,
    ):
        assert response.status == 200, await response.text()
