"""The mock's HTTP side: Segment's endpoint, and the pages that only a mock has."""

from __future__ import annotations

import asyncio
import math
import re
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

import orjson
from aiohttp import web

from streamer.mock_segment.faults import Fault, FaultError, Faults
from streamer.mock_segment.journal import Journal
from streamer.mock_segment.judge import Judge, key_digest
from streamer.mock_segment.rate_limit import RateLimit
from streamer.mock_segment.request import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path
    from types import TracebackType

    from streamer.mock_segment.journal import Line
    from streamer.mock_segment.stats import Stats

_READ_AT_MOST_BYTES = (
    64 << 20
)  # a body over Segment's limit still gets Segment's answer, not aiohttp's


class MockSegment:
    """Segment on a socket of its own, as an asynchronous context manager.

        async with MockSegment() as segment:
            await send(to=segment.url)
            assert segment.stats.accepted_total == 2

    | request | does |
    |---|---|
    | `POST /v1/batch` | what Segment does |
    | `GET /stats` | the counts |
    | `GET /profiles` | where the traits ended: `users` by id, `groups` by groupId and then id |
    | `GET /faults` | the faults and how often each has hit |
    | `PUT /faults` | replaces them: `{"seed": 1, "faults": [{"kind": "answer", "status": 503}]}` |
    | `POST /reset` | forgets calls, profiles, messageIds and counts; faults and the journal stay |
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        known_keys: Collection[str] | None = None,
        faults: Iterable[Fault] = (),
        seed: int = 0,
        requests_per_second: float | None = None,
        journal: Path | None = None,
        journal_calls: bool = True,
        keep_calls: bool = True,
    ) -> None:
        """Say how to play; nothing is opened yet.

        Args:
            host: the address to listen on. Anybody who reaches it can set faults.
            port: the port, 0 for any that is free.
            known_keys: the write keys that belong to a source; the calls of others get 200 and are thrown away.
                None: all keys do.
            faults: how it misbehaves from the start.
            seed: of the faults' probabilities and jitter.
            requests_per_second: a ceiling for each write key, over which it answers 429. None: no ceiling.
            journal: an NDJSON file to append a line to for every call.
            journal_calls: whether the calls themselves are in it.
            keep_calls: whether `lines` and `accepted` hold every call in memory.
        """
        self._host = host
        self._port = port
        self._known_keys = known_keys
        self._limit = None if requests_per_second is None else RateLimit(requests_per_second)
        self._journal_path = journal
        self._journal_calls = journal_calls
        self._keep_calls = keep_calls
        self._runner: web.AppRunner | None = None
        self._journal: Journal | None = None
        self._closing = asyncio.Event()
        self._number = 0
        self._judge = Judge()
        self.faults = Faults(*faults, seed=seed)

    @property
    def address(self) -> str:
        """Where it listens, such as `http://127.0.0.1:8080`."""
        return f"http://{self._host}:{self._port}"

    @property
    def url(self) -> str:
        """Segment's endpoint, as a sender needs it."""
        return f"{self.address}/v1/batch"

    @property
    def stats(self) -> Stats:
        """The counts."""
        return self._judge.stats

    @property
    def lines(self) -> list[Line]:
        """Every call and its fate in the order of receipt, if calls are kept."""
        return self._judge.lines

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """The calls that were accepted in the order of receipt, if calls are kept."""
        return [line.call for line in self._judge.lines if line.fate == "accepted"]

    @property
    def profiles(self) -> dict[str, dict[str, Any]]:
        """The traits of each user, by userId, else anonymousId."""
        return self._judge.profiles

    @property
    def group_profiles(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The traits of each user in each group, by (userId, else anonymousId; groupId)."""
        return self._judge.group_profiles

    def reset(self) -> None:
        """Forget calls, profiles, messageIds and counts. Faults and the journal stay."""
        in_flight = self.stats.in_flight
        self._judge.reset()
        self.stats.in_flight = self.stats.max_in_flight = in_flight

    async def __aenter__(self) -> Self:
        """Open the journal and listen.

        Raises:
            OSError: the journal can't be written, or the port is taken.
        """
        if self._journal_path is not None:
            self._journal = Journal(self._journal_path)
        self._judge = Judge(
            known_keys=self._known_keys,
            journal=self._journal,
            journal_calls=self._journal_calls,
            keep_calls=self._keep_calls,
        )
        app = web.Application(client_max_size=_READ_AT_MOST_BYTES)
        app.add_routes(
            [
                web.post("/v1/batch", self._batch),
                web.get("/stats", self._get_stats),
                web.get("/profiles", self._get_profiles),
                web.get("/faults", self._get_faults),
                web.put("/faults", self._put_faults),
                web.post("/reset", self._post_reset),
            ]
        )
        # Bodies are inflated by the judge, which stops at the limit.
        self._runner = web.AppRunner(
            app, access_log=None, auto_decompress=False, shutdown_timeout=5.0
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self._close()
            raise
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening; requests that are delayed are taken at once, those that hang are dropped."""
        await self._close()

    async def _close(self) -> None:
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._journal is not None:
            self._journal.close()

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        self._number += 1
        number = self._number
        stats = self.stats
        stats.requests_total += 1
        stats.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
        try:
            return await self._answer(request, number)
        finally:
            self.stats.in_flight -= 1  # of the present statistics: a reset may have come between

    async def _answer(self, request: web.Request, number: int) -> web.StreamResponse:
        body = await request.read()
        self.stats.received_bytes += len(body)
        self._count_retry(request.headers.get("X-Retry-Count"))
        incoming = Request(request.headers, body)
        key = key_digest(incoming)

        if self._limit is not None and (wait_seconds := self._limit.wait_seconds(key)):
            self.stats.refusals["rate_limited"] += 1
            return self._send(
                _injected(Fault(kind="answer", status=429, retry_after_seconds=wait_seconds))
            )

        delay_seconds, fault = self.faults.due(key)
        if delay_seconds:
            await self._pause(delay_seconds)
        if fault is not None and not fault.accept:
            return await self._misbehave(request, fault)
        answer = self._judge.take(incoming, number, time.time(), self.faults)
        if fault is not None:
            del incoming, body  # a request that hangs should not hold its calls
            return await self._misbehave(request, fault)
        return self._send(answer)

    async def _misbehave(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.kind == "answer":
            return self._send(_injected(fault))
        if fault.kind == "hang":
            self.stats.answers["hung"] += 1
            await self._pause(fault.seconds)
        else:
            self.stats.answers["dropped"] += 1
        if request.transport is not None:  # the sender may have gone while it hung
            request.transport.abort()
        return web.Response()  # goes nowhere

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the mock."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    def _send(self, answer: Answer) -> web.Response:
        self.stats.answers[str(answer.status)] += 1
        return web.Response(
            status=answer.status,
            body=answer.body,
            headers={"Content-Type": answer.content_type, **answer.headers},
        )

    def _count_retry(self, header: str | None) -> None:
        if header is None:
            return
        stats = self.stats
        stats.retried_requests += 1
        if re.fullmatch("[1-9][0-9]{0,8}", header):
            stats.max_retry_count = max(stats.max_retry_count, int(header))
        else:
            stats.bad_retry_counts += 1

    async def _get_stats(self, _: web.Request) -> web.Response:
        return _json(self.stats.as_json())

    async def _get_profiles(self, _: web.Request) -> web.Response:
        groups: dict[str, dict[str, Any]] = {}
        for (user, group), traits in self.group_profiles.items():
            groups.setdefault(group, {})[user] = traits
        return _json({"users": self.profiles, "groups": groups})

    async def _get_faults(self, _: web.Request) -> web.Response:
        return _json(self.faults.as_json())

    async def _put_faults(self, request: web.Request) -> web.Response:
        try:
            faults, seed = _read_faults(await request.read())
        except FaultError as error:
            return _json({"error": str(error)}, status=400)
        self.faults.set(*faults, seed=seed)
        return _json(self.faults.as_json())

    async def _post_reset(self, _: web.Request) -> web.Response:
        self.reset()
        return _json(self.stats.as_json())


def _read_faults(body: bytes) -> tuple[list[Fault], int | None]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise FaultError(f"the body must be JSON: {error}") from None
    wanted = 'the body must be an object such as {"seed": 1, "faults": [{"kind": "drop"}]}'
    if not isinstance(document, dict) or not document.keys() <= {"seed", "faults"}:
        raise FaultError(wanted)
    faults, seed = document.get("faults"), document.get("seed")
    if not isinstance(faults, list) or not (seed is None or type(seed) is int):
        raise FaultError(wanted)
    return [Fault.from_json(fault) for fault in faults], seed


def _injected(fault: Fault) -> Answer:
    """Make the answer that a fault asks for."""
    status = fault.status
    headers = {"Location": fault.location} if 300 <= status < 400 else {}
    if fault.retry_after_seconds is not None:
        seconds = math.ceil(fault.retry_after_seconds)
        # HTTP dates have whole seconds; rounding up keeps the promise that it is open again by then.
        date = formatdate(math.ceil(time.time() + fault.retry_after_seconds), usegmt=True)
        headers["Retry-After"] = date if fault.retry_after_form == "date" else str(seconds)
        headers["X-RateLimit-Reset"] = str(seconds)
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:  # 460 and 529 are nobody's standard
        phrase = f"Status {status}"
    if fault.body == "empty":
        return Answer(status, b"", "text/plain", headers)
    if fault.body == "html":
        page = f"<!doctype html><title>{phrase}</title><h1>{status} {phrase}</h1>"
        return Answer(status, page.encode(), "text/html", headers)
    document = {"success": False, "message": phrase, "code": "injected"}
    return Answer(status, orjson.dumps(document), headers=headers)


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")
