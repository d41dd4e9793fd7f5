"""The HTTP server of a running streamer: `/metrics`, `/healthz` and `/readyz`. Nothing that it serves changes state."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from streamer.errors import StartError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prometheus_client import CollectorRegistry


@asynccontextmanager
async def serve(
    host: str,
    port: int,
    registry: CollectorRegistry,
    not_ready: Callable[[], list[str]],
    held: Callable[[], list[str]],
) -> AsyncIterator[int]:
    """Serve while the context is open.

    Args:
        host: the address to listen on.
        port: the port; 0 takes any that is free.
        registry: what `/metrics` shows.
        not_ready: gives a sentence for each reason why `/readyz` answers 503; none when it is ready.
        held: gives a sentence for each reason why calls wait for a while, which `/readyz` shows too.

    Yields:
        The port.

    Raises:
        StartError: nothing can listen there.
    """

    async def metrics(request: web.Request) -> web.Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # it asks for a version that is no number
            encode, content_type = choose_encoder("")
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        reasons = not_ready()
        return web.json_response(
            {"ready": not reasons, "reasons": reasons, "held": held()},
            status=503 if reasons else 200,
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/metrics", metrics),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
        ]
    )
    # A client that reads slowly must not hold the end of the process: a minute is aiohttp's default.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            why = (
                "is in use"
                if error.errno == errno.EADDRINUSE
                else f"can't be used: {error.strerror or error}"
            )
            raise StartError(
                f"port {port} of {host} {why}; another one is server.port (--port 0 takes any that is free), another"
                " address server.host"
            ) from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
