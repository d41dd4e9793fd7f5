"""What the benchmark sends to: answers every batch as Segment does, after a latency, and throws it away.

A process of its own, so that its CPU is charged to nobody. It prints its URL, and ends when its standard input does.

    python benchmarks/receiver.py 0.05
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def main(latency_seconds: float) -> None:
    """Serve until standard input ends.

    Args:
        latency_seconds: from the last byte of a request to its answer.
    """

    async def batch(request: web.Request) -> web.Response:
        async for _ in request.content.iter_any():
            pass
        await asyncio.sleep(latency_seconds)
        return web.Response(body=b'{"success": true}', content_type="application/json")

    app = web.Application()
    app.add_routes([web.post("/v1/batch", batch)])
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}/v1/batch\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.buffer.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
