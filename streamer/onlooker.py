"""Reads Kafka without taking part: no group is joined, nothing is committed, and no topic is made.

`backlog` and `window` have it in common.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aiokafka import ConsumerRecord

    from streamer.core.model import Partition

_STOP_TIMEOUT = 1.0
_POLL_MS = 200
_POLL_RECORDS = 40
"""Records between two turns of the event loop: transforming them takes some 3 ms."""
_FETCH_BYTES = 512 * 1024


class Passed(NamedTuple):
    """What was read of a partition at once.

    Attributes:
        partition: topic and number.
        records: consecutive ones.
        offsets: how many offsets were passed; compacted records and the ends of transactions are among them.
    """

    partition: Partition
    records: Sequence[ConsumerRecord]
    offsets: int


@asynccontextmanager
async def onlooker(
    connection: Mapping[str, Any],
    timeout_seconds: float,
    *,
    group_id: str | None = None,
    isolation_level: str = "read_committed",
) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer that only looks.

    Args:
        connection: how to reach Kafka, as aiokafka's arguments.
        timeout_seconds: how long one request may take.
        group_id: whose committed offsets are asked for. Without a subscription it never joins.
        isolation_level: as `kafka.isolation_level`.
    """
    consumer = AIOKafkaConsumer(
        **connection,
        group_id=group_id,
        enable_auto_commit=False,
        isolation_level=isolation_level,
        auto_offset_reset="earliest",  # of what retention takes while it is looked at
        request_timeout_ms=int(timeout_seconds * 1000),
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=_FETCH_BYTES,
        fetch_max_bytes=2 * _FETCH_BYTES,
    )
    _ask_for_all(consumer)
    try:
        await consumer.start()
        yield consumer
    finally:
        # In a task of its own: with a hung broker it takes long, or raises a cancellation nobody asked for.
        closing = asyncio.create_task(consumer.stop())
        await asyncio.wait({closing}, timeout=_STOP_TIMEOUT)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)


def _ask_for_all(consumer: AIOKafkaConsumer) -> None:
    """Have it ask for all topics, and for none by its name, which would make one anew that is deleted meanwhile."""
    client = consumer._client  # noqa: SLF001 - aiokafka has no setting for it
    update = client._metadata_update  # noqa: SLF001

    async def of_all(cluster: Any, _: object) -> bool:  # noqa: ANN401 - untyped
        found: bool = await update(cluster, [])
        return found

    client._metadata_update = of_all  # noqa: SLF001


async def read(
    consumer: AIOKafkaConsumer, spans: Mapping[Partition, range], deadline: float
) -> AsyncIterator[Passed]:
    """Read what stands at some offsets, in each partition in order, until their end or until the time is over.

    Args:
        consumer: what `onlooker` gave.
        spans: the offsets, by partition; where one is empty nothing is read.
        deadline: in seconds of the event loop's clock.
    """
    clock = asyncio.get_running_loop().time
    unread = {TopicPartition(*partition): span for partition, span in spans.items() if span}
    if not unread:
        return
    consumer.assign(list(unread))
    for tp, span in unread.items():
        consumer.seek(tp, span.start)
    while unread and clock() < deadline:
        found = await consumer.getmany(*unread, timeout_ms=_POLL_MS, max_records=_POLL_RECORDS)
        for tp, span in list(unread.items()):
            records = [record for record in found.get(tp, ()) if record.offset in span]
            # Of a topic that was made anew meanwhile it may lie before the span.
            position = max(min(await consumer.position(tp), span.stop), span.start)
            unread[tp] = range(position, span.stop)
            if not unread[tp]:
                del unread[tp]
            if records or position > span.start:
                yield Passed((tp.topic, tp.partition), records, position - span.start)
        await asyncio.sleep(0)
