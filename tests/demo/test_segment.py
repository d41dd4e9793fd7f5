"""Mock Segment as a process of the demo's."""

from __future__ import annotations

import asyncio

import pytest

from streamer.demo.segment import SegmentProcess
from streamer.errors import StartError


def test_it_counts_misbehaves_and_is_gone_when_it_is_left() -> None:
    async def main() -> SegmentProcess:
        async with SegmentProcess() as segment:
            assert segment.url == f"{segment.address}/v1/batch"
            stats = await segment.stats()
            assert stats["requests"]["total"] == 0
            assert stats["lateness_seconds"]["total"] == 0
            await segment.misbehave([{"kind": "answer", "status": 503}], seed=3)
            with pytest.raises(StartError, match="doesn't answer: 400"):
                await segment.misbehave([{"kind": "sulk"}], seed=3)
        return segment

    segment = asyncio.run(main())

    async def again() -> None:
        async with asyncio.timeout(60):
            host, _, port = segment.address.removeprefix("http://").rpartition(":")
            await asyncio.open_connection(host, int(port))

    with pytest.raises(ConnectionRefusedError):
        asyncio.run(again())
