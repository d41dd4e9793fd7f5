"""A run: members, a broker and a mock Segment, the troubles of a plan, records all the while, and the verdict."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from aiohttp import web
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined] # it exports them, but not by __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

import streamer
import whole_pipeline
from chaos.judge import POISON, WRITE_KEYS, Judge
from chaos.plan import CALM_SECONDS, MEMBERS, SESSION_SECONDS
from kafka_broker.broker import BrokerError
from kafka_broker.topics import QUIET, Kafka, ToProduce
from streamer.demo.events import generate
from streamer.mock_segment import Fault, digest
from whole_pipeline import WRITE_KEY, Member, Produced, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from chaos.plan import Plan, Trouble
    from kafka_broker.broker import KafkaBroker

BROKER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
"""What the broker must be told so that a topic can be denied."""

SHUTDOWN_SECONDS = 15.0
_GRACE_SECONDS = 5.0  # for Python's own end, on a machine that has much to do
_PATIENCE_SECONDS = 180.0
"""How long nothing may be committed once all is well, before the run is given up."""
_PIECE_SECONDS = 0.25
_PIECE_RECORDS = 2_000
_ADDED_TOGETHER = 20
_SAMPLE_SECONDS = 1.0
_SAY_SECONDS = 10.0
_BROKEN, _POISON = 0.002, 0.0003  # shares at all times
_EXPECTED_ERRORS = {
    "no records from Kafka; trying again",
    "the Kafka consumer is made anew",
    "Segment doesn't accept calls",  # of what is misconfigured
    "dead letters can't be written; their records stay uncommitted, and the write is tried again",
}
# aiokafka shields a commit that is given up after its time-out; when it fails later, nobody is there to take that in.
_LATE_ANSWER = "coro=<GroupCoordinator._do_commit_offsets()"


class Run:
    """One run of a plan.

    Args:
        plan: what goes wrong.
        broker: runs, with `BROKER`; it is killed, stopped and frozen.
        rate: records a second.
        say: takes lines for a person.
        logs: the folder in which the logs of the members and the broker are kept.
    """

    def __init__(
        self, plan: Plan, broker: KafkaBroker, rate: float, say: Callable[[str], None], logs: Path
    ) -> None:
        self._plan = plan
        self._broker = broker
        self._rate = rate
        self._say = say
        self.logs = logs
        # Its producer outlasts whatever is done to the broker: what it has taken must arrive.
        self._kafka = Kafka(broker.bootstrap, patience_seconds=120.0)
        self._stage = Stage(self._kafka, self._settings())
        self._judge = Judge()
        self._started = 0.0
        self._active: list[Trouble] = []
        self._skipped: list[Trouble] = []
        self._wrong: list[str] = []
        self._up: list[Member] = []  # those that run and aren't frozen
        self._leaving: set[Member] = set()  # those that somebody ends
        self._armed: list[Fault] = []
        self._pace = 1.0
        self._broken_share, self._poison_share = 0.0, _POISON
        self._committed = 0
        self._standstill = 0.0
        self._counts: Counter[str] = Counter()
        self._letters: Counter[str] = Counter()  # dead letters by reason
        self._rebalances: dict[Member, float] = {}
        self._peak_rss: dict[Member, int] = {}

    def _settings(self) -> dict[str, str]:
        return {
            "STREAMER_KAFKA__SESSION_TIMEOUT": f"{SESSION_SECONDS:g}s",
            "STREAMER_SHUTDOWN_TIMEOUT": f"{SHUTDOWN_SECONDS:g}s",
            "STREAMER_SEGMENT__TIMEOUT": "3s",
            "STREAMER_SEGMENT__SITES__WRITE_KEYS": orjson.dumps(WRITE_KEYS).decode(),
            "STREAMER_LOG_FORMAT": "json",
            **self._plan.settings,
        }

    async def run(self) -> dict[str, Any]:
        """Run the plan to its end.

        Returns:
            The report; its `verdict` is `ok`, or what isn't as it should be.
        """
        async with self._stage:
            try:
                self._arm()
                await asyncio.gather(*(self._start() for _ in range(MEMBERS)))
                self._started = time.monotonic()
                async with asyncio.TaskGroup() as group:
                    watches = [group.create_task(w) for w in (self._sample(), self._tell())]
                    await self._play()
                    for watch in watches:
                        watch.cancel()
            except* Exception as errors:  # noqa: BLE001 - the report must be written
                self._wrong.append("the run itself failed: " + "".join(format_exception(errors)))
            self._read_logs()
            self._keep_logs()
            return self._report()

    async def _play(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._produce())
            for trouble in self._plan.troubles:
                group.create_task(self._pass(trouble))
        self._say(f"{self._clock():6.0f}s  all is well again; what is left is awaited")
        await self._drain()
        members = list(self._up)
        await asyncio.gather(*(self._balance(member) for member in members))
        await asyncio.gather(*(self._end(member, signal.SIGTERM) for member in members))
        stage = self._stage
        letters = await self._kafka.read(stage.dead_letters)
        self._letters.update(whole_pipeline._header(letter, "reason") for letter in letters)
        self._wrong += self._judge.differences(
            stage.segment,
            stage.topic,
            letters,
            await self._kafka.committed(stage.group, stage.topic),
            await self._kafka.end_offsets(stage.topic),
        )

    # --- records --------------------------------------------------------------------------------

    async def _produce(self) -> None:
        events = generate(
            self._plan.seed, broken=_BROKEN, missing_ids=_BROKEN, oversized=_BROKEN / 8
        )
        number = 0
        due = 0.0
        last = self._clock()
        while (now := self._clock()) < self._plan.seconds:
            due = min(due + self._rate * self._pace * (now - last), _PIECE_RECORDS * 5)
            last = now
            records: list[ToProduce] = []
            while due >= 1 and len(records) < _PIECE_RECORDS:
                due -= 1
                number += 1
                event = next(events)
                value = self._spoil(event.value, number)
                trace = (("trace", b"%d" % number),)
                records.append(ToProduce(event.key, value, int(time.time() * 1000), trace))
            if records:
                places = await self._kafka.produce(self._stage.topic, records)
                for index, ((partition, offset), record) in enumerate(
                    zip(places, records, strict=True)
                ):
                    self._judge.add(Produced(partition, offset, record))
                    if index % _ADDED_TOGETHER == 0:
                        await asyncio.sleep(0)  # the mock answers from this loop too
            await asyncio.sleep(_PIECE_SECONDS)

    def _spoil(self, value: bytes, number: int) -> bytes | None:
        """Break every so many, or poison them; not at the very end, where good calls must follow bad ones."""
        if self._clock() > self._plan.seconds - CALM_SECONDS / 2:
            return value
        if self._broken_share and number % round(1 / self._broken_share) == 0:
            return [value[:-20], b"[1]", b"", None][number % 4]
        if self._poison_share and number % round(1 / self._poison_share) == 0:
            return re.sub(rb'"event_type":"[^"]*"', b'"event_type":"%b"' % POISON.encode(), value)
        return value

    async def _drain(self) -> None:
        """Wait until all is committed, as long as something is."""
        last, since = -1, time.monotonic()
        while True:
            with suppress(KafkaException):
                self._committed = await self._stage.committed()
            if self._committed >= self._judge.produced:
                return
            if self._committed != last:
                last, since = self._committed, time.monotonic()
            if time.monotonic() - since > _PATIENCE_SECONDS:
                left = self._judge.produced - self._committed
                self._wrong.append(
                    f"{left} records aren't committed, and none was for {_PATIENCE_SECONDS:.0f} s"
                )
                return
            await asyncio.sleep(0.5)

    # --- members --------------------------------------------------------------------------------

    async def _start(self) -> Member | None:
        number = len(self._stage.members)
        try:
            member = await self._stage.start()
        except AssertionError:
            self._wrong.append(f"member {number} ended as it started")
            return None
        self._up.append(member)
        self._counts["starts"] += 1
        return member

    async def _end(self, member: Member, number: signal.Signals) -> None:
        """End a member in good order."""
        self._leaving.add(member)
        if member in self._up:
            self._up.remove(member)
        began = time.monotonic()
        assert member.process is not None
        with suppress(ProcessLookupError):  # its status tells
            member.signal(number)
        name = f"member {self._stage.members.index(member)}, told to end by {number.name},"
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS + _GRACE_SECONDS):
                status = await member.process.wait()
        except TimeoutError:
            self._wrong.append(f"{name} still ran after {time.monotonic() - began:.1f} s")
            await member.kill()
        else:
            self._counts[f"ended by {number.name}"] += 1
            if status != 0:
                self._wrong.append(f"{name} had exit status {status}")

    async def _balance(self, member: Member) -> None:
        """Hold a member's account against itself."""
        try:
            whole_pipeline._assert_balances(await member.metrics())
        except AssertionError:
            number = self._stage.members.index(member)
            self._wrong.append(f"the account of member {number} doesn't balance")
        except aiohttp.ClientError as error:
            self._wrong.append(f"no metrics of a member that runs: {error!r}")

    # --- troubles -------------------------------------------------------------------------------

    async def _pass(self, trouble: Trouble) -> None:
        """Wait for a trouble's time, begin it, and undo it."""
        await asyncio.sleep(trouble.starts - self._clock())
        async with getattr(self, f"_{trouble.kind}", self._fault)(trouble):
            self._active.append(trouble)
            self._counts["troubles"] += 1
            await asyncio.sleep(max(trouble.ends - self._clock(), 0))
        if trouble in self._active:
            self._active.remove(trouble)

    def _choose(self, trouble: Trouble) -> Member | None:
        """Take one of the members that run; None, and no trouble, if there is none."""
        self._up = [m for m in self._up if m.process and m.process.returncode is None]
        if not self._up:
            self._skipped.append(trouble)
            return None
        return self._up.pop(trouble.options["member"] % len(self._up))

    @asynccontextmanager
    async def _kill(self, trouble: Trouble) -> AsyncIterator[None]:
        member = self._choose(trouble)
        if member is not None:
            self._leaving.add(member)
            self._counts["kills"] += 1
            await member.kill()
        yield
        if member is not None:
            await self._start()

    @asynccontextmanager
    async def _terminate(self, trouble: Trouble) -> AsyncIterator[None]:
        member = self._choose(trouble)
        number = signal.SIGTERM if trouble.kind == "terminate" else signal.SIGINT
        async with asyncio.TaskGroup() as group:
            if member is not None:
                group.create_task(self._end(member, number))
            yield
            if member is not None:
                await self._start()

    _interrupt = _terminate

    @asynccontextmanager
    async def _freeze(self, trouble: Trouble) -> AsyncIterator[None]:
        member = self._choose(trouble)
        if member is not None:
            self._counts["freezes"] += 1
            member.signal(signal.SIGSTOP)
        yield
        if member is not None:
            with suppress(ProcessLookupError):  # `_sample` tells of it
                member.signal(signal.SIGCONT)
            self._up.append(member)

    _long_freeze = _freeze

    @asynccontextmanager
    async def _add(self, trouble: Trouble) -> AsyncIterator[None]:
        added = await asyncio.gather(*(self._start() for _ in range(trouble.options["members"])))
        yield
        # Those that were killed since have been replaced; who goes doesn't matter, but how many stay.
        for number in range(len(added)):
            member = added[number]
            leaves = member if member in self._up else next(iter(self._up), None)
            if leaves is not None and len(self._up) > 1:
                await self._end(leaves, signal.SIGTERM)

    @asynccontextmanager
    async def _broker_kill(self, trouble: Trouble) -> AsyncIterator[None]:
        down = self._broker.kill if trouble.kind == "broker_kill" else self._broker.stop
        with suppress(BrokerError):  # one that stops too slowly is killed
            await asyncio.to_thread(down)
        yield
        self._broker.launch()  # from this thread: the kernel ends it with the thread that started it
        await asyncio.to_thread(self._broker.wait_until_ready)
        self._counts["broker starts"] += 1

    _broker_stop = _broker_kill

    @asynccontextmanager
    async def _broker_freeze(self, _: Trouble) -> AsyncIterator[None]:
        self._broker.freeze()
        yield
        self._broker.thaw()

    _broker_long_freeze = _broker_freeze

    def _arm(self) -> None:
        poison = Fault(kind="refuse", event=POISON)
        self._stage.segment.faults.set(poison, *self._armed, seed=self._plan.seed)

    @asynccontextmanager
    async def _fault(self, trouble: Trouble) -> AsyncIterator[None]:
        """Let mock Segment misbehave."""
        options = dict(trouble.options["fault"])
        site = trouble.options.get("site")
        if site is not None:
            options["key_digest"] = digest(WRITE_KEYS[site])
        fault = Fault.from_json(options)
        self._armed.append(fault)
        self._arm()
        yield
        self._armed.remove(fault)
        self._arm()

    @asynccontextmanager
    async def _refuse_connections(self, _: Trouble) -> AsyncIterator[None]:
        """Let nothing listen on the mock's port, and reset what is connected."""
        segment = self._stage.segment
        runner = segment._runner
        assert runner is not None
        assert runner.server is not None
        for site in list(runner.sites):
            await site.stop()
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        yield
        await web.TCPSite(runner, segment._host, segment._port).start()

    @asynccontextmanager
    async def _dead_letters_denied(self, _: Trouble) -> AsyncIterator[None]:
        """Take away the right to write to the dead-letter topic."""
        # The client logs and waits by itself; one for each try, as the broker may be away.
        topic = (ResourceType.TOPIC, self._stage.dead_letters, ResourcePatternType.LITERAL)
        whom = ("User:*", "*", AclOperation.ALL)

        def deny() -> None:
            admin = AdminClient({"bootstrap.servers": self._broker.bootstrap, **QUIET})
            acls = [AclBinding(*topic, *whom, AclPermissionType.DENY)]
            for done in admin.create_acls(acls, request_timeout=5).values():
                done.result()

        def allow() -> None:
            admin = AdminClient({"bootstrap.servers": self._broker.bootstrap, **QUIET})
            acls = [AclBindingFilter(*topic, *whom, AclPermissionType.DENY)]
            for done in admin.delete_acls(acls, request_timeout=5).values():
                done.result()

        await _persist(deny)
        yield
        await _persist(allow)

    @asynccontextmanager
    async def _burst(self, trouble: Trouble) -> AsyncIterator[None]:
        self._pace = trouble.options["factor"]
        yield
        self._pace = 1.0

    _lull = _burst

    @asynccontextmanager
    async def _broken_records(self, trouble: Trouble) -> AsyncIterator[None]:
        self._broken_share = trouble.options["share"]
        yield
        self._broken_share = 0.0

    @asynccontextmanager
    async def _poison_calls(self, trouble: Trouble) -> AsyncIterator[None]:
        self._poison_share = trouble.options["share"]
        yield
        self._poison_share = _POISON

    # --- what is watched ------------------------------------------------------------------------

    def _clock(self) -> float:
        return time.monotonic() - self._started

    async def _sample(self) -> None:
        """See how far the group is, and how the members are."""
        last, since = 0, self._clock()
        gone: set[Member] = set()
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            self._judge.fold(self._stage.segment)
            with suppress(KafkaException):
                self._committed = await self._stage.committed()
            if self._active or self._committed != last or self._committed >= self._judge.produced:
                last, since = self._committed, self._clock()
            self._standstill = max(self._standstill, self._clock() - since)
            for number, member in enumerate(self._stage.members):
                process = member.process
                if process is None or member in gone:
                    continue
                if process.returncode is not None:
                    gone.add(member)
                    if member not in self._leaving:
                        status = process.returncode
                        self._wrong.append(f"member {number} ended by itself, with status {status}")
                        if member in self._up:
                            self._up.remove(member)
                        await self._start()
                    continue
                peak = _peak_rss(process.pid)
                self._peak_rss[member] = max(peak, self._peak_rss.get(member, 0))
                if member in self._up:
                    with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                        async with asyncio.timeout(0.5):
                            metrics = await member.metrics()
                        self._rebalances[member] = metrics["streamer_rebalances_total",]

    async def _tell(self) -> None:
        while True:
            wrong = f"  {len(self._wrong)} WRONG: {self._wrong[-1]}" if self._wrong else ""
            produced = self._judge.produced
            self._say(
                f"{self._clock():6.0f}s  produced {produced:>8,}  committed {self._committed:>8,}"
                f"  lag {max(produced - self._committed, 0):>7,}  members {len(self._up)}"
                f"  {', '.join(t.kind for t in self._active) or '-'}{wrong}"
            )
            await asyncio.sleep(_SAY_SECONDS)

    def _read_logs(self) -> None:
        """Find in the members' logs what must not be there."""
        found: Counter[str] = Counter()
        for number, member in enumerate(self._stage.members):
            for line in member.log.read_text(errors="replace").splitlines():
                if any(key in line for key in (WRITE_KEY, *WRITE_KEYS.values())):
                    found[f"the log of member {number} has a write key"] += 1
                try:
                    entry = orjson.loads(line)
                except orjson.JSONDecodeError:
                    entry = {"event": line, "level": "info"}
                event, logger = str(entry["event"]), str(entry.get("logger", ""))
                if _LATE_ANSWER in event and "never retrieved" in event:
                    self._counts["late answers of commits"] += 1
                elif "Traceback" in line:
                    last = str(entry.get("exception", "")).rpartition("\n")[2]
                    found[f"traceback in the log of member {number}: {event}: {last}"] += 1
                elif entry["level"] not in {"error", "critical"}:
                    continue
                elif logger.startswith("aiokafka"):
                    self._counts["error lines of aiokafka"] += 1
                elif event in _EXPECTED_ERRORS:
                    self._counts["error lines of streamer"] += 1
                else:
                    found[f"error in the log of member {number}: {line[:300]}"] += 1
        self._wrong += [f"{line} ({times} times)" for line, times in found.items()]

    def _keep_logs(self) -> None:
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        for member in self._stage.members:
            shutil.copy(member.log, self.logs)
        shutil.copy(self._broker.log_path, self.logs)

    def _report(self) -> dict[str, Any]:
        stats = self._stage.segment.stats
        return {
            "version": streamer.__version__,
            "minutes": round(self._plan.seconds / 60, 2),
            "rate": self._rate,
            "seed": self._plan.seed,
            "verdict": self._wrong or "ok",
            "counts": {
                "produced": self._judge.produced,
                "delivered": len(self._judge.accepted),
                "dead_letters": dict(sorted(self._letters.items())),
                "accepted_calls": dict(sorted(stats.accepted.items())),
                "duplicate_calls": dict(sorted(stats.duplicates.items())),
                "requests": stats.requests_total,
                "answers": dict(sorted(stats.answers.items())),
                "rebalances": round(sum(self._rebalances.values())),
                **dict(sorted(self._counts.items())),
                "skipped_troubles": len(self._skipped),
            },
            "longest_standstill_without_trouble_seconds": round(self._standstill, 1),
            "peak_rss_bytes": max(self._peak_rss.values(), default=0),
            "seconds": self._plan.seconds,
            "settings": self._plan.settings,
            "troubles": [
                {**each, "ends": round(each["starts"] + each["seconds"], 1)}
                for each in self._plan.as_json()["troubles"]
            ],
        }


async def _persist(attempt: Callable[[], None]) -> None:
    """Try what the broker must do until it does: it may be away."""
    while True:
        try:
            await asyncio.to_thread(attempt)
        except KafkaException:
            await asyncio.sleep(0.5)
        else:
            return


def _peak_rss(pid: int) -> int:
    """Bytes; 0 where nobody knows."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
