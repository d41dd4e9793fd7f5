"""One HTTP attempt at Segment's batch API, and what its answer means.

Facts about Segment's answers are from its public documentation of the HTTP Tracking API and from its official
libraries: https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Self

import aiohttp
import orjson
from isal import igzip
from yarl import URL

from streamer.core.model import Delivered, Misconfigured, Refused, Response, Retry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamer.core.model import Outcome

_SEGMENT_HOSTS = {"api.segment.io", "events.eu1.segmentapis.com"}
_RETRIED = {408, 410, 429, 460}
_NEVER_RIGHT = {501, 505}
_OFF_LOOP_BYTES = 64_000  # below it compressing costs less than handing it to a thread
_ANSWER_BYTES = 4096  # as much of an answer as is read: its own are under 100
_SHOWN_BYTES = 200  # as much of an answer as is shown


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt.

    Attributes:
        outcome: what the answer means.
        response: the answer, or why there is none.
        wire_bytes: bytes of the body as it was sent.
        seconds: from the start of the request to its end.
    """

    outcome: Outcome
    response: Response | Exception
    wire_bytes: int
    seconds: float


class Segment:
    """Sends bodies to one endpoint, while its context is open.

    Args:
        url: of the batch API.
        gzip: whether bodies are compressed.
        timeout_seconds: for a whole request, its answer included.
        connections: how many requests may be under way.
    """

    def __init__(self, url: str, *, gzip: bool, timeout_seconds: float, connections: int) -> None:
        self._url = URL(url)
        self._gzip = gzip
        self._timeout_seconds = timeout_seconds
        self._connections = connections
        self._strict = self._url.host in _SEGMENT_HOSTS
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(),  # ours covers more: the end of a connection, too
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def attempt(self, write_key: str, body: bytes, tries: int) -> Answer:
        """Send one body and say what came of it. Nothing but a cancellation is raised.

        Args:
            write_key: of the destination: user name of the basic authentication, with an empty password.
            body: JSON, not compressed.
            tries: how often this body's calls were sent before; X-Retry-Count says so.
        """
        if self._session is None:
            raise RuntimeError("an attempt outside of Segment's context")
        credentials = b64encode(f"{write_key}:".encode())
        headers = {
            "Authorization": f"Basic {credentials.decode()}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # its answers are short
        }
        if tries:
            headers["X-Retry-Count"] = str(tries)
        if self._gzip:
            headers["Content-Encoding"] = "gzip"
            if len(body) < _OFF_LOOP_BYTES:
                body = igzip.compress(body, 1)
            else:
                body = await asyncio.to_thread(igzip.compress, body, 1)
        clock = asyncio.get_running_loop().time
        started = clock()
        answer: Response | Exception
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._session.post(
                    self._url, data=body, headers=headers, allow_redirects=False
                ) as response,
            ):
                text = await _beginning(response)
            text = _without(text, (credentials, write_key.encode()))
            outcome = classify(response.status, response.headers, text, strict=self._strict)
            answer = Response(
                response.status, dict(response.headers), text.decode("utf-8", "replace")
            )
        # Site code gets exceptions made anew: aiohttp's hold the request, and with it the write key.
        except TimeoutError:
            outcome = Retry("timeout", f"no answer within {self._timeout_seconds:g} s")
            answer = TimeoutError(outcome.detail)
        except aiohttp.ClientConnectorError as error:
            why = error.os_error.strerror or str(error.os_error) or type(error.os_error).__name__
            outcome = Retry("connect", f"can't connect to {error.host}:{error.port}: {why}")
            answer = ConnectionError(outcome.detail)
        except (aiohttp.ClientError, OSError) as error:
            outcome = Retry("connect", f"{type(error).__name__}: {error}")
            answer = ConnectionError(outcome.detail)
        return Answer(outcome, answer, len(body), clock() - started)


def _without(text: bytes, secrets: Sequence[bytes]) -> bytes:
    """Take secrets out of an answer: what stands between may answer with the request that it got."""
    for secret in filter(None, secrets):
        text = text.replace(secret, b"[secret]")
    return text


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """Read as much of an answer's body as is looked at; if its end is missing, what came of it."""
    text = b""
    try:
        while len(text) < _ANSWER_BYTES and (more := await response.content.read(_ANSWER_BYTES)):
            text += more
    except aiohttp.ClientError:
        pass  # the status came, and says enough
    return text[:_ANSWER_BYTES]


def classify(
    status: int,
    headers: Mapping[str, str],
    text: bytes,
    *,
    strict: bool,
) -> Outcome:
    """Say what an answer means.

    Args:
        status: the HTTP status.
        headers: the answer's.
        text: the beginning of its body.
        strict: whether it must say `"success": true`, as Segment's own hosts do; a 200 of something between (a captive
            portal, a proxy's page) delivered nothing.
    """
    said = text[:_SHOWN_BYTES].decode("utf-8", "replace").strip()
    after = _retry_after(headers.get("Retry-After"))
    if 200 <= status < 300:
        if strict and not _says_success(text):
            detail = f"{status} without success in its body: {said!r}"
            return Retry("server_error", detail, status, after)
        return Delivered(status)
    if status in _RETRIED or (status >= 500 and status not in _NEVER_RIGHT):
        reason = "rate_limited" if status == 429 else "timeout" if status == 408 else "server_error"
        return Retry(reason, f"{status} {said}".strip(), status, after)
    if status in {400, 413, 422} and b"invalid write key" not in text.lower():
        return Refused(status, said)
    return Misconfigured(status, f"{said} {_advice(status, text)}".strip())


def _advice(status: int, text: bytes) -> str:
    if status in {401, 403} or b"invalid write key" in text.lower():
        return "(look at segment.write_key)"
    return "(look at segment.region and segment.endpoint)"


def _says_success(text: bytes) -> bool:
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(answer, dict) and answer.get("success") is True


def _retry_after(value: str | None) -> float | None:
    """Read Retry-After, which is a number of seconds or an HTTP date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds < float("inf") else None
