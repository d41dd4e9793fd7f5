"""The calls of one request, cut on exact bytes.

Per batch there are arrays instead of an object per call: the calls' bytes, and for each the type, the chunk and the
number of its record there. What needs more (a dead letter, an age) is index work.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

from streamer.core.model import CALL_TYPES

if TYPE_CHECKING:
    from streamer.core.offsets import Chunk

_HEAD = b'{"batch":['
_TAIL = b'],"sentAt":"%b"}'
ENVELOPE_BYTES = len(_HEAD) + len(_TAIL % b"2026-01-01T00:00:00.000Z")
"""What a body has besides its calls and the commas between them. `sentAt` always has this length."""

MAIN_TYPES = (CALL_TYPES.index("page"), CALL_TYPES.index("track"))
_IS_MAIN = bytes(kind in MAIN_TYPES for kind in range(256))
"""For `bytes.translate`: 1 for the types with which their records are delivered, else 0."""

FURTHER = 0x80
"""Added to the type of a page or track call with which its record isn't delivered: site code made several of it."""


def body(calls: list[bytes], sent_at: bytes) -> bytes:
    """Make the body of a request of serialised calls; see `Batch.body`."""
    return b"".join((_HEAD, b",".join(calls), _TAIL % sent_at))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold.

    Attributes:
        max_calls: calls; Segment throws a batch of more than 2,500 away and answers 200.
        max_bytes: bytes of the body before compression, envelope included; Segment refuses more than 500 KB.
    """

    max_calls: int = 2500
    max_bytes: int = 475_000


@dataclass(frozen=True, slots=True)
class Ages:
    """How old records are.

    Attributes:
        at_most: how many are at most as old as each edge.
        count: how many there are.
        total_seconds: the sum of their ages.
    """

    at_most: list[int]
    count: int
    total_seconds: float


class Batch:
    """The calls of one request: open while calls are added, then closed, then settled as a whole.

    Args:
        limits: what it may hold.
        name: what the log calls it.

    Attributes:
        limits, name: the same.
        calls: each call, serialised.
        types: each call's type, as its index in `CALL_TYPES`, perhaps with `FURTHER`.
        chunk_numbers: each call's chunk, as its index in `chunks`.
        records: the number of each call's record in its chunk (of a merged call: of its last contribution).
        chunks: the chunks that the batch holds, each once.
        profiles: the profiles whose identify and group calls stand in it, each once: see `Contribution.profile`.
        size: bytes of the body that `body` would make of all calls, once there is one.
        oldest: when the first of its records was read, in seconds of the event loop's clock.
        trigger: why it was closed, None while it is open.
        closed_at: when, in seconds.
        tries: how many requests with something of it didn't deliver.
        failures: how many of them failed in a row, without an answer to what was in them.
        not_before: when it may be tried again, in seconds.
        refused: how many of its calls became dead letters.
    """

    __slots__ = (
        "_chunk_index", "_newest", "calls", "chunk_numbers", "chunks", "closed_at", "failures", "limits", "name",
        "not_before", "oldest", "profiles", "records", "refused", "size", "tries", "trigger", "types",
    )  # fmt: skip

    def __init__(self, limits: Limits, name: str = "") -> None:
        self.limits = limits
        self.name = name
        self.calls: list[bytes] = []
        self.types = bytearray()
        self.chunk_numbers = array("l")
        self.records = array("l")
        self.chunks: list[Chunk] = []
        self._chunk_index: dict[Chunk, int] = {}
        self._newest: Chunk | None = None
        self.profiles: list[str | tuple[str, str]] = []
        self.size = ENVELOPE_BYTES - 1  # the first call has no comma before it
        self.oldest = float("inf")
        self.trigger: str | None = None
        self.closed_at = 0.0
        self.tries = 0
        self.failures = 0
        self.not_before = 0.0
        self.refused = 0

    def __len__(self) -> int:
        return len(self.calls)

    def room(self, size: int) -> str | None:
        """Say whether one more call of `size` bytes fits.

        Returns:
            None if it does, else which limit it would pass: `bytes` or `calls`.
        """
        if self.size + size + 1 > self.limits.max_bytes:
            return "bytes"
        if len(self.calls) >= self.limits.max_calls:
            return "calls"
        return None

    def append(self, call: bytes, kind: int, chunk: Chunk, record: int) -> int:
        """Add a call that fits; the batch holds its chunk from now on.

        Args:
            call: serialised.
            kind: its type, as an index in `CALL_TYPES`.
            chunk: the chunk of its record.
            record: the number of its record there.

        Returns:
            Its place in the batch.
        """
        calls = self.calls
        calls.append(call)
        self.types.append(kind)
        # Most calls are of the chunk of the one before them, the last that was held.
        self.chunk_numbers.append(
            len(self.chunks) - 1 if chunk is self._newest else self.hold(chunk)
        )
        self.records.append(record)
        self.size += len(call) + 1
        return len(calls) - 1

    def replace(self, place: int, call: bytes, chunk: Chunk, record: int) -> None:
        """Put a merged call in the place of its earlier form; the chunks of both stay held."""
        self.size += len(call) - len(self.calls[place])
        self.calls[place] = call
        self.chunk_numbers[place] = self.hold(chunk)
        self.records[place] = record

    def hold(self, chunk: Chunk) -> int:
        """Hold a chunk, if the batch doesn't yet.

        Returns:
            Its index in `chunks`.
        """
        index = self._chunk_index.get(chunk)
        if index is None:
            index = self._chunk_index[chunk] = len(self.chunks)
            self.chunks.append(chunk)
            self._newest = chunk
            chunk.hold()
            if chunk.read_at < self.oldest:
                self.oldest = chunk.read_at
        return index

    def let_go(self) -> None:
        """Let go of every chunk: all calls are settled."""
        for chunk in self.chunks:
            chunk.let_go()
        self.chunks.clear()

    def body(self, sent_at: bytes, start: int = 0, stop: int | None = None) -> bytes:
        """Make the body of a request.

        Args:
            sent_at: the time of this attempt as ISO-8601 with milliseconds and Z. Segment corrects clock skew with it:
                timestamp = receivedAt - (sentAt - originalTimestamp).
            start: the first call.
            stop: the call behind the last one.
        """
        return body(self.calls if not start and stop is None else self.calls[start:stop], sent_at)

    def counts(self, start: int = 0, stop: int | None = None) -> list[tuple[str, int]]:
        """Count the calls of a piece by type.

        Returns:
            Type and number, for the types that occur.
        """
        types = self.types if not start and stop is None else self.types[start:stop]
        return [
            (kind, n)
            for index, kind in enumerate(CALL_TYPES)
            if (n := types.count(index) + types.count(index | FURTHER))
        ]

    def further(self, kind: str, start: int = 0, stop: int | None = None) -> int:
        """Count the calls of a type in a piece with which their records aren't delivered, though it is a main one."""
        return self.types[start:stop].count(CALL_TYPES.index(kind) | FURTHER)

    def kind(self, place: int) -> str:
        """Give the type of a call."""
        return CALL_TYPES[self.types[place] & ~FURTHER]

    def decides(self, place: int) -> bool:
        """Say whether a call is the one whose fate is its record's."""
        return self.types[place] in MAIN_TYPES

    @property
    def mains(self) -> int:
        """How many records are delivered with its page and track calls."""
        return sum(self.types.count(kind) for kind in MAIN_TYPES)

    @property
    def read_sum(self) -> float:
        """The sum, over the records that are delivered with it, of when they were read, in seconds."""
        read_at = [chunk.read_at for chunk in self.chunks]
        mains = self.types.translate(_IS_MAIN)
        return sum(map(read_at.__getitem__, compress(self.chunk_numbers, mains)))

    def timestamps(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Give the Kafka timestamps of a piece's records, of those that have one, in milliseconds since the epoch."""
        stamps_of = [chunk.timestamps for chunk in self.chunks]
        mains = self.types[start:stop].translate(_IS_MAIN)
        places = zip(
            compress(self.chunk_numbers[start:stop], mains),
            compress(self.records[start:stop], mains),
            strict=True,
        )
        stamps = [stamps_of[number][record] for number, record in places]
        return stamps if min(stamps, default=0) >= 0 else [stamp for stamp in stamps if stamp >= 0]

    def ages(
        self, now_ms: int, edges: list[float], start: int = 0, stop: int | None = None
    ) -> Ages:
        """Sort the ages of a piece's records into buckets, once for all of them.

        A record from the future counts as new: the clock that stamped it is ahead of ours, and a sum of ages that fell
        would read as a restart in Prometheus.

        Args:
            now_ms: the wall clock in milliseconds since the epoch.
            edges: ascending upper edges of the buckets, in seconds.
            start: the first call.
            stop: the call behind the last one.
        """
        stamps = sorted(self.timestamps(start, stop))
        if stamps and stamps[-1] > now_ms:
            past = bisect_right(stamps, now_ms)
            stamps[past:] = [now_ms] * (len(stamps) - past)
        # An age of at most `edge` is a timestamp of at least now - edge.
        at_most = [len(stamps) - bisect_left(stamps, now_ms - edge * 1000) for edge in edges]
        return Ages(at_most, len(stamps), (len(stamps) * now_ms - sum(stamps)) / 1000)
