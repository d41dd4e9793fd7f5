"""From settlement out of order to an offset that is safe to commit.

Records are settled in any order: batches overtake one another, a dead letter waits for its acknowledgement, an
identify call waits behind another one of its profile. Kafka keeps one number a partition. `Offsets` keeps, for each
partition of one generation, the chunks that were read, in order, each with the number of its holders; what is safe to
commit is the next position of the settled prefix.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streamer.core.budget import Share
    from streamer.core.model import Partition

RECORD_OVERHEAD = 60
"""Bytes of memory that a chunk keeps of each record besides its key, for the budget."""


class Chunk:
    """Consecutive records of one partition that were read together, with the number of those that hold it.

    It is held by its own processing, by each batch or waiting call that has something of it, and by each of its dead
    letters that isn't acknowledged. A new holder is added before the old one leaves, so that the number reaches zero
    once, when every record is settled.

    Attributes:
        partition: topic and number.
        next_position: the offset behind its last record.
        holders: how many hold it.
        read_at: when its records were read, in seconds of the event loop's clock.
        offsets: each record's offset (compaction and transactions leave gaps).
        timestamps: each record's Kafka timestamp, in milliseconds since the epoch, -1 where there is none.
        keys: each record's key.
        formatted: each record's calls before any merging, as one JSON list, if somebody wants to see them once they are
            sent.
        on_settled: called once, when all have let go.

    What it keeps of its records is held of `share`, if one is given, until all have let go.
    """

    __slots__ = (
        "_kept", "_share", "formatted", "holders", "keys", "next_position", "offsets", "on_settled", "partition",
        "read_at", "timestamps",
    )  # fmt: skip

    def __init__(
        self,
        partition: Partition,
        offsets: Iterable[int],
        timestamps: Iterable[int],
        keys: Sequence[bytes | None],
        share: Share | None = None,
        read_at: float = 0.0,
    ) -> None:
        self.partition = partition
        self.read_at = read_at
        self.offsets = array("q", offsets)
        self.timestamps = array("q", timestamps)
        self.keys = keys
        self.next_position = self.offsets[-1] + 1
        self.holders = 1
        self.formatted: dict[int, bytes] = {}
        self.on_settled: Callable[[], None] | None = None
        self._share = share
        if share is not None:
            self._kept = RECORD_OVERHEAD * len(self.offsets) + sum(len(key) for key in keys if key)
            share.take(self._kept)

    def __len__(self) -> int:
        return len(self.offsets)

    def keep(self, record: int, formatted: bytes) -> None:
        """Keep the calls of a record as they were made, until all have let go."""
        self.formatted[record] = formatted
        if self._share is not None:
            self._kept += len(formatted)
            self._share.take(len(formatted))

    def hold(self) -> None:
        """Add a holder.

        Raises:
            RuntimeError: the chunk was let go by all already; whoever holds it now came too late.
        """
        if self.holders < 1:
            raise RuntimeError(f"{self.partition} at {self.offsets[0]}: held after it was settled")
        self.holders += 1

    def let_go(self) -> None:
        """Take a holder away.

        Raises:
            RuntimeError: it had none.
        """
        if self.holders < 1:
            raise RuntimeError(f"{self.partition} at {self.offsets[0]}: let go once too often")
        self.holders -= 1
        if self.holders:
            return
        if self._share is not None:
            self._share.give(self._kept)
            self.keys = ()
        self.formatted = {}
        if self.on_settled is not None:
            self.on_settled()


class Offsets:
    """The chunks of one generation, by partition, and what is safe to commit.

    A revocation throws the whole object away: what completes later changes chunks that nothing reads.
    """

    def __init__(self) -> None:
        self._chunks: dict[Partition, deque[Chunk]] = {}
        self._settled: dict[Partition, int] = {}

    def add(self, chunk: Chunk) -> None:
        """Note a chunk that was read.

        Args:
            chunk: held once, by its processing.

        Raises:
            RuntimeError: it lies before what was read of its partition, or before what was said to be safe to commit.
        """
        chunks = self._chunks.setdefault(chunk.partition, deque())
        read = chunks[-1].next_position if chunks else self._settled.get(chunk.partition, 0)
        if chunk.offsets[0] < read:
            raise RuntimeError(f"{chunk.partition}: read {chunk.offsets[0]} after {read - 1}")
        chunks.append(chunk)

    def committable(self, partition: Partition, position: int | None = None) -> int | None:
        """Say which offset is safe to commit.

        Args:
            partition: one of this generation.
            position: the offset of the next record that Kafka will give. With no chunk unsettled it is what may be
                committed: control records and gaps move it past the last record.

        Returns:
            The offset, or None as long as nothing is known to be settled.
        """
        chunks = self._chunks.get(partition)
        settled = self._settled.get(partition)
        while chunks and not chunks[0].holders:
            settled = chunks.popleft().next_position
        if not chunks and position is not None and (settled is None or position > settled):
            settled = position
        if settled is not None:
            self._settled[partition] = settled  # a position too: what was said once never goes back
        return settled

    def pending(self) -> int:
        """Count the chunks that aren't settled, wherever they stand."""
        return sum(1 for chunks in self._chunks.values() for chunk in chunks if chunk.holders)

    def oldest_timestamp(self) -> int | None:
        """The Kafka timestamp, in milliseconds, at which the oldest unsettled chunk begins; None if there is none.

        Chunks that begin with a record without a timestamp are passed over.
        """
        oldest = None
        for chunks in self._chunks.values():
            for chunk in chunks:
                begins = chunk.timestamps[0]
                if chunk.holders and begins >= 0:
                    if oldest is None or begins < oldest:
                        oldest = begins
                    break
        return oldest
