"""The least that a forwarder in Python could do: what `streamer run` is held against.

It reads the topic with aiokafka's `getmany`, parses each event, serialises as much as is sent for it, and POSTs bodies
of the same size as often as streamer does. It maps nothing, checks nothing, keeps no promise and commits nothing.

    python benchmarks/floor.py BOOTSTRAP TOPIC URL EVENTS
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer

from streamer.core.batch import ENVELOPE_BYTES, Limits
from streamer.core.transform import Transform

MODELS = 2000  # events whose calls are made beforehand, to be serialised in turn
CONCURRENCY = 8


async def main(bootstrap: str, topic: str, url: str, events: int) -> None:
    """Read, parse, serialise and send, until as many events were read.

    Args:
        bootstrap: of Kafka.
        topic: what to read.
        url: where to send.
        events: how many the topic has.
    """
    transform = Transform(write_key="floor")
    models: list[tuple[dict[str, object], ...]] = []
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=None,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
        fetch_max_bytes=16 * 1024 * 1024,
    )
    await consumer.start()
    limits = Limits()
    calls: list[bytes] = []
    size = ENVELOPE_BYTES
    read = 0
    permits = asyncio.Semaphore(CONCURRENCY)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:

        async def post(body: bytes) -> None:
            try:
                headers = {"Content-Type": "application/json"}
                async with session.post(
                    url, data=body, headers=headers, auth=aiohttp.BasicAuth("floor")
                ) as answer:
                    orjson.loads(await answer.read())
            finally:
                permits.release()

        async def send() -> None:
            await permits.acquire()
            body = b'{"batch":[%b],"sentAt":"2026-01-01T00:00:00.000Z"}' % b",".join(calls)
            tasks.create_task(post(body))

        while read < events:
            for records in (await consumer.getmany(timeout_ms=200, max_records=500)).values():
                for record in records:
                    orjson.loads(record.value)
                    if len(models) < MODELS:
                        made = transform.calls(record.value, record.timestamp)
                        if isinstance(made, list):
                            models.append(tuple(made))
                    for call in models[read % len(models)]:
                        data = orjson.dumps(call)
                        if size + len(data) + 1 > limits.max_bytes:
                            await send()
                            calls.clear()
                            size = ENVELOPE_BYTES
                        calls.append(data)
                        size += len(data) + 1
                    read += 1
        if calls:
            await send()
    await consumer.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
