"""The HTTP server of a running streamer: `/metrics`, `/healthz`, `/readyz`, the console, and `/config`.

The first three are for everyone who reaches the port. The rest shows and changes settings, and is for who is on this
machine, or has `server.token`.
"""

from __future__ import annotations

import errno
import hmac
import re
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import orjson
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from streamer.errors import ConfigError, StartError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aiohttp.typedefs import Middleware
    from prometheus_client import CollectorRegistry

_OPEN_PATHS = frozenset(("/metrics", "/healthz", "/readyz"))
_STATIC = {
    "/": ("index.html", "text/html"),
    "/console.js": ("console.js", "text/javascript"),
    "/console.css": ("console.css", "text/css"),
}
_WATCHERS = 20
"""So many may have the console open at a time."""
_BODY_BYTES = 16 * 1024
"""The largest body that a request may have."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FORWARDED = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP")
"""Headers of a proxy: a request that has one comes from elsewhere, whoever connected."""

_HOST = re.compile(
    r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[\w.-]+))(?::\d+)?", re.ASCII | re.IGNORECASE
)
"""A Host as browsers write it; what a URL may have beside that (`evil.example@localhost`) isn't part of it."""

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Setting(Protocol):
    """One setting as a person reads it; see `streamer.config.Effective`."""

    @property
    def key(self) -> str:
        """Its dotted key."""

    @property
    def value(self) -> str:
        """Its value, a secret masked."""

    @property
    def origin(self) -> str:
        """Where it came from."""


class Change(Protocol):
    """What a change came to; see `streamer.live.Change`."""

    @property
    def before(self) -> Mapping[str, str]:
        """What was in force, by dotted key."""

    @property
    def after(self) -> Mapping[str, str]:
        """What is in force now."""


class Settings(Protocol):
    """The settings in force; see `streamer.live.LiveSettings`."""

    @property
    def live(self) -> Sequence[str]:
        """The dotted keys of those that can change."""

    def shown(self) -> Sequence[Setting]:
        """Give all of them."""

    def change(self, values: Mapping[str, Any]) -> Change:
        """Change some of them; raises ConfigError."""


class Sample(Protocol):
    """What the metrics showed at one time; see `streamer.console.Sample`."""

    @property
    def number(self) -> int:
        """Counts up from sample to sample."""

    @property
    def at(self) -> float:
        """When, in seconds since 1970."""

    @property
    def names(self) -> Sequence[str]:
        """Of its values."""

    @property
    def values(self) -> Sequence[float]:
        """In the order of the names."""


class Samples(Protocol):
    """The last samples; see `streamer.console.Console`."""

    async def since(self, number: int) -> Sequence[Sample]:
        """Give those from a number on; wait until there is one."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What the server shows.

    Attributes:
        registry: what `/metrics` shows.
        not_ready: gives a sentence for each reason why `/readyz` answers 503; none when it is ready.
        held: gives a sentence for each reason why calls wait for a while, which `/readyz` shows too.
        settings: what `/config` shows and changes.
        samples: what the console draws.
        state: gives what the console shows beside that, as JSON has it.
    """

    registry: CollectorRegistry
    not_ready: Callable[[], list[str]]
    held: Callable[[], list[str]]
    settings: Settings
    samples: Samples
    state: Callable[[], dict[str, Any]]


@asynccontextmanager
async def serve(host: str, port: int, pages: Pages, token: str | None = None) -> AsyncIterator[int]:
    """Serve while the context is open.

    Args:
        host: the address to listen on.
        port: the port; 0 takes any that is free.
        pages: what is served.
        token: who has it may see and change settings from anywhere.

    Yields:
        The port.

    Raises:
        StartError: nothing can listen there.
    """
    app = web.Application(middlewares=[_guard(token)], client_max_size=_BODY_BYTES)
    app.add_routes(
        [
            web.get("/metrics", _metrics(pages.registry)),
            web.get("/healthz", _healthz),
            web.get("/readyz", _readyz(pages)),
            web.get("/config", _config(pages.settings)),
            web.patch("/config", _change(pages.settings)),
            web.get("/events", _events(pages)),
            *(web.get(path, _static(*file)) for path, file in _STATIC.items()),
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


# --- pages ----------------------------------------------------------------------------------------


def _metrics(registry: CollectorRegistry) -> _Handler:
    async def metrics(request: web.Request) -> web.Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # it asks for a version that is no number
            encode, content_type = choose_encoder("")
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    return metrics


async def _healthz(_: web.Request) -> web.Response:
    return web.json_response({"alive": True})


def _readyz(pages: Pages) -> _Handler:
    async def readyz(_: web.Request) -> web.Response:
        reasons = pages.not_ready()
        page = {"ready": not reasons, "reasons": reasons, "held": pages.held()}
        return web.json_response(page, status=503 if reasons else 200)

    return readyz


def _config(settings: Settings) -> _Handler:
    async def config(_: web.Request) -> web.Response:
        rows = [
            {
                "key": one.key,
                "value": one.value,
                "origin": one.origin,
                "live": one.key in settings.live,
            }
            for one in settings.shown()
        ]
        return web.json_response({"settings": rows})

    return config


def _change(settings: Settings) -> _Handler:
    async def change(request: web.Request) -> web.Response:
        if request.content_type != "application/json":  # what a form can't send from another site
            return _errors(
                415, "send a JSON object of settings, with Content-Type: application/json"
            )
        try:
            values = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            return _errors(400, f"no JSON: {error}")
        except web.RequestPayloadError:
            return _errors(400, "the body isn't in the Content-Encoding that the request says")
        if not isinstance(values, dict) or not values:
            return _errors(400, 'send a JSON object of settings, such as {"flush.interval": "5s"}')
        try:
            done = settings.change(values)
        except ConfigError as error:
            return _errors(400, *str(error).splitlines())
        return web.json_response({"before": dict(done.before), "after": dict(done.after)})

    return change


def _static(name: str, content_type: str) -> _Handler:
    text = files("streamer").joinpath("static", name).read_text(encoding="utf-8")

    async def static(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type)

    return static


def _events(pages: Pages) -> _Handler:
    """Tell the console what it shows, as server-sent events: the names of what a sample has, samples, and the state."""
    watchers = 0

    async def events(request: web.Request) -> web.StreamResponse:
        nonlocal watchers
        if watchers >= _WATCHERS:
            return _errors(503, f"{_WATCHERS} have the console open already")
        watchers += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_HEADERS})
        try:
            await response.prepare(request)
            names: Sequence[str] = ()
            number = 0
            while True:
                for sample in await pages.samples.since(number):
                    number = sample.number + 1
                    if sample.names != names:
                        names = sample.names
                        await response.write(_event("names", names))
                    await response.write(_event("sample", [sample.at, *sample.values]))
                await response.write(_event("state", pages.state()))
        except ConnectionError:
            return response  # the page was closed
        finally:
            watchers -= 1

    return events


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


def _errors(status: int, *sentences: str) -> web.Response:
    return web.json_response({"errors": sentences}, status=status)


# --- who may see what -------------------------------------------------------------------------------


def _guard(token: str | None) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        # The console's own files say nothing; with a token, who opens it is asked for that.
        is_open = request.path in _OPEN_PATHS or (token is not None and request.path in _STATIC)
        if not is_open and not _has_token(request, token):
            why = _not_from_here(request)
            if why:
                headers = {"WWW-Authenticate": "Bearer"} if token else {}
                answer = _errors(
                    401 if token else 403,
                    f"{why}. This page is for who is on streamer's machine and asks for localhost, or sends"
                    " server.token as a bearer token.",
                )
                answer.headers.update(headers)
                return answer
        response = await handler(request)
        if not response.prepared:
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    return guard


def _has_token(request: web.Request, token: str | None) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    given = given.strip()
    return (
        token is not None
        and scheme.lower() == "bearer"
        and hmac.compare_digest(given.encode(errors="replace"), token.encode())
    )


def _not_from_here(request: web.Request) -> str:
    """Say why a request can't be taken for one of a person on this machine; nothing if it can.

    A browser on this machine sends requests for other sites' pages too. One that was led here by a name of theirs (DNS
    rebinding) has that name as Host, and one that their page makes has an Origin of theirs.
    """
    if not _is_loopback(request.remote or ""):
        return "The request comes from another machine"
    if any(name in request.headers for name in _FORWARDED):
        return "The request was forwarded by a proxy"
    found = _HOST.fullmatch(request.host)
    host = (found["address"] or found["name"]).lower() if found else ""
    if host != "localhost" and not _is_loopback(host):
        return "The request's Host is another name than localhost"
    origins = set(request.headers.getall("Origin", ()))
    sites = set(request.headers.getall("Sec-Fetch-Site", ()))
    if origins - {f"http://{request.host}"} or sites - {"same-origin", "none"}:
        return "The request was made by another site's page"
    return ""


def _is_loopback(address: str) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
