"""Forwards events.ndjson of this folder to mock Segment, as its streamer.toml says, through all of streamer but Kafka.

`python without_kafka.py [STATUS]`: with a status, Segment answers that to the first request.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiokafka import ConsumerRecord

from streamer.config import load_config
from streamer.logs import configure
from streamer.mock_segment import Fault, MockSegment
from streamer.pipeline import Pipeline
from streamer.plugins import load_plugins

TOPIC = "analytics-events"


def record(offset: int, value: bytes) -> ConsumerRecord[bytes | None, bytes | None]:
    return ConsumerRecord(
        topic=TOPIC,
        partition=0,
        offset=offset,
        timestamp=1643673911400,
        timestamp_type=0,
        key=None,
        value=value,
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=len(value),
        headers=(),
    )


async def main(values: list[bytes]) -> None:
    faults = [Fault(kind="answer", status=int(status), count=1) for status in sys.argv[1:]]
    async with MockSegment(faults=faults) as segment, asyncio.timeout(30):
        environ = {
            "STREAMER_SEGMENT__ENDPOINT": segment.url,
            "STREAMER_FLUSH__INTERVAL": "100ms",
            "SEGMENT_API_WRITE_KEY": "key",
        }
        settings = load_config(Path("streamer.toml"), None, environ)
        load_plugins(settings.plugins)
        pipeline = Pipeline(settings)
        pipeline._source._lease.until = float("inf")  # there is no group that would confirm it
        pipeline.assigned(frozenset({(TOPIC, 0)}))
        async with pipeline._segment:
            delivery = asyncio.create_task(pipeline._delivery.run())
            await pipeline.read([((TOPIC, 0), [record(*one) for one in enumerate(values)])])
            while pipeline.account.in_flight:
                await asyncio.sleep(0.01)
            await pipeline._actions.drain(10)
            delivery.cancel()


if __name__ == "__main__":
    configure("info")
    asyncio.run(main(Path("events.ndjson").read_bytes().splitlines()))
