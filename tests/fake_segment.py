"""A Segment at delivery's transport, in virtual time: what it gets is kept, and a test decides what it answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from streamer import segment
from streamer.core.model import Delivered, Response
from streamer.virtual_time import START

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.core.model import Outcome
    from streamer.delivery import Answer

OK = Delivered(200)
LATENCY = 0.1


def clock() -> float:
    """Virtual seconds since the start of the story."""
    return asyncio.get_running_loop().time() - START


@dataclass(slots=True, eq=False)
class Attempt:
    """One request as the transport saw it; `at` counts from the start of the story."""

    at: float
    key: str
    ids: list[str]
    tries: int
    sent_at: str


def reply(outcome: Outcome) -> Answer:
    """What the transport gives for an attempt."""
    return segment.Answer(outcome, Response(200, {}, ""), wire_bytes=10, seconds=LATENCY)


class FakeSegment:
    """A transport whose answers a test decides.

    `accepted` has the ids of what it took, in order, `repeated` those that it had before and dropped, as Segment does.
    """

    def __init__(self, answer: Callable[[Attempt], Outcome] = lambda _: OK) -> None:
        self.answer = answer
        self.latency: Callable[[Attempt], float] = lambda _: LATENCY
        self.attempts: list[Attempt] = []
        self.accepted: list[str] = []
        self._taken: set[str] = set()
        self.repeated: list[str] = []
        self.calls: dict[str, dict[str, Any]] = {}
        self.running: set[Attempt] = set()
        self.most_running = 0

    async def attempt(self, write_key: str, body: bytes, tries: int) -> Answer:
        """What delivery calls."""
        document = orjson.loads(body)
        ids = [call["messageId"] for call in document["batch"]]
        self.calls |= zip(ids, document["batch"], strict=True)
        attempt = Attempt(clock(), write_key, ids, tries, document["sentAt"])
        self.attempts.append(attempt)
        self.running.add(attempt)
        self.most_running = max(self.most_running, len(self.running))
        try:
            await asyncio.sleep(self.latency(attempt))
        finally:
            self.running.remove(attempt)
        outcome = self.answer(attempt)
        if isinstance(outcome, Delivered):
            self._take(attempt.ids)
        return reply(outcome)

    def _take(self, ids: list[str]) -> None:
        if self._taken.isdisjoint(ids):
            self.accepted += ids
            self._taken.update(ids)
            return
        assert len(ids) == 1, "only a witness is sent again, and alone"
        assert self.calls[ids[0]]["type"] == "page", "traits would be laid over newer ones"
        self.repeated += ids
