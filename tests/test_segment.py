"""What Segment's answers mean, and one attempt on a real socket."""

from __future__ import annotations

import asyncio
import base64
import gzip
import random
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kafka_broker.broker import free_port
from streamer.core.model import Delivered, Misconfigured, Outcome, Refused, Response, Retry
from streamer.mock_segment import Fault, MockSegment
from streamer.segment import Answer, Segment, classify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    from conftest import Require

KEY = "wRiTeKeYwRiTeKeYwRiTeKeYwRiTeKeY"
BASIC = base64.b64encode(f"{KEY}:".encode()).decode()
SUCCESS = b'{"success": true}'
INVALID_KEY = (
    b'{"success":false,"message":"An invalid write key was provided","code":"invalid_request"}'
)
NO_SUCCESS = (
    b"",
    b"<html>",
    b"{}",
    b'{"success":false}',
    b'{"success":"true"}',
    b'{"success":1}',
    b"[true]",
    b"true",
    b"null",
    b"\xff\xfe",
    b'{"success": tr',
)
HTML = b"<!doctype html><title>Sign in</title>"


def means(status: int, text: bytes = b"", *, strict: bool = True, **headers: str) -> Outcome:
    """What an answer means."""
    return classify(
        status, {name.replace("_", "-"): v for name, v in headers.items()}, text, strict=strict
    )


# --- statuses and bodies --------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SUCCESS, b'{"success":true,"more":1}', b' {"success" : true}\n'])
def test_success_is_delivered(text: bytes) -> None:
    """From Segment's own hosts it is JSON with `success: true`."""
    assert means(200, text) == Delivered(200)


@pytest.mark.parametrize(
    "text",
    NO_SUCCESS,
)
@pytest.mark.parametrize("status", [200, 202, 204])
def test_a_success_that_does_not_say_so_is_tried_again(status: int, text: bytes) -> None:
    """A proxy's page with 200 delivered nothing; another endpoint may answer as it likes."""
    outcome = means(status, text)
    assert isinstance(outcome, Retry)
    assert (outcome.reason, outcome.status) == ("server_error", status)
    assert "without success" in outcome.detail
    assert means(status, text, strict=False) == Delivered(status)


RETRIED = {408: "timeout", 410: "server_error", 429: "rate_limited", 460: "server_error"}
RETRIED |= dict.fromkeys({*range(500, 600)} - {501, 505}, "server_error")
REFUSED = {400, 413, 422}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("text", [b"", HTML, SUCCESS, b'{"success":false}'])
def test_every_other_status(text: bytes, *, strict: bool) -> None:
    """By the table of the design, whatever the body says."""
    for status in range(300, 600):
        outcome = means(status, text, strict=strict)
        if status in RETRIED:
            assert isinstance(outcome, Retry)
            assert (outcome.reason, outcome.status) == (RETRIED[status], status)
            assert outcome.after_seconds is None
            assert str(status) in outcome.detail
        elif status in REFUSED:
            assert outcome == Refused(status, text.decode())
        else:
            assert isinstance(outcome, Misconfigured), status
            assert outcome.status == status


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422])
def test_an_invalid_write_key_is_no_fault_of_the_calls(status: int) -> None:
    """400 with Segment's words for it is misconfigured, and the setting to look at is named."""
    outcome = means(status, INVALID_KEY)
    assert isinstance(outcome, Misconfigured)
    assert "segment.write_key" in outcome.detail


@pytest.mark.parametrize("status", [301, 302, 307, 308, 404, 405, 418, 501, 505])
def test_a_wrong_place_names_the_settings_that_say_where(status: int) -> None:
    """Region and endpoint."""
    outcome = means(status, HTML)
    assert isinstance(outcome, Misconfigured)
    assert "segment.region and segment.endpoint" in outcome.detail


def test_a_long_answer_is_shown_in_part() -> None:
    """And what is no UTF-8 doesn't break it."""
    outcome = means(400, b"\xff" + b"x" * 4000)
    assert isinstance(outcome, Refused)
    assert outcome.detail == "\ufffd" + "x" * 199


# --- Retry-After ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 410, 429, 460, 500, 503, 529])
def test_retry_after_in_seconds(status: int) -> None:
    """On every answer that may succeed later."""
    outcome = means(status, Retry_After="17")
    assert isinstance(outcome, Retry)
    assert outcome.after_seconds == 17.0


def test_retry_after_on_a_page_in_between() -> None:
    """A 200 that isn't Segment's may say it too."""
    outcome = means(200, HTML, Retry_After="17")
    assert isinstance(outcome, Retry)
    assert outcome.after_seconds == 17.0


RFC_9110 = "%a, %d %b %Y %H:%M:%S GMT"


@pytest.mark.parametrize("form", [RFC_9110, "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
def test_retry_after_as_a_date(form: str) -> None:
    """In each of the three forms of HTTP."""
    at = datetime.now(UTC) + timedelta(seconds=90)
    outcome = means(503, Retry_After=at.strftime(form))
    assert isinstance(outcome, Retry)
    assert outcome.after_seconds is not None
    assert 88 <= outcome.after_seconds <= 90


def test_retry_after_in_another_zone() -> None:
    """Its offset counts."""
    at = (datetime.now(UTC) + timedelta(seconds=90)).astimezone(None)
    outcome = means(429, Retry_After=format_datetime(at))
    assert isinstance(outcome, Retry)
    assert outcome.after_seconds is not None
    assert 88 <= outcome.after_seconds <= 90


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("-5", 0.0),
        ("1.5", 1.5),
        ("99999999999", 99999999999.0),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("-inf", 0.0),
        ("1e999", None),
        ("Mon, 99 Jan 2026 00:00:00 GMT", None),
        ("Mon, 01 Jan 2026 00:00:00 +9999999999999999999", None),
    ],
)
def test_absurd_values_of_retry_after(value: str, seconds: float | None) -> None:
    """The past is now, and what can't be read says nothing."""
    outcome = means(429, Retry_After=value)
    assert isinstance(outcome, Retry)
    assert outcome.after_seconds == seconds


@given(st.integers(200, 599), st.binary(max_size=60), st.text(max_size=60), st.booleans())
@example(503, b"", "Mon, 1 Jan 99999999999999999 00:00:00", False)
def test_every_answer_means_something(status: int, text: bytes, after: str, strict: bool) -> None:
    """Nothing is raised, and a wait is a number of seconds."""
    outcome = means(status, text, strict=strict, Retry_After=after)
    if isinstance(outcome, Retry) and outcome.after_seconds is not None:
        assert 0 <= outcome.after_seconds < float("inf")


@given(
    st.one_of(
        st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S")),
        st.just("Mon, 01 Jan 2026 00:00:00"),
    ),
    st.one_of(st.integers().map("{:+}".format), st.text(max_size=8)),
)
def test_every_date_means_something(date: str, zone: str) -> None:
    """Whatever its zone."""
    outcome = means(429, Retry_After=f"{date} {zone}")
    assert isinstance(outcome, Retry)
    if outcome.after_seconds is not None:
        assert 0 <= outcome.after_seconds < float("inf")


# --- attempts on a socket -------------------------------------------------------------------------


def batch(*ids: str, padding: str = "") -> bytes:
    calls = [
        {
            "type": "page",
            "messageId": name,
            "userId": "u",
            "timestamp": "2026-01-01T00:00:00Z",
            "properties": {"padding": padding},
        }
        for name in ids
    ]
    return orjson.dumps({"batch": calls, "sentAt": "2026-01-01T00:00:00.000Z"})


def play(
    story: Callable[[MockSegment, Segment], Awaitable[None]],
    *faults: Fault,
    gzip: bool = True,
    timeout_seconds: float = 5.0,
) -> None:
    """Run a story with the mock and a sender to it."""

    async def main() -> None:
        async with (
            MockSegment(faults=faults) as mock,
            Segment(mock.url, gzip=gzip, timeout_seconds=timeout_seconds, connections=4) as segment,
        ):
            await story(mock, segment)

    asyncio.run(main())


@asynccontextmanager
async def server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
    **listening: Any,
) -> AsyncIterator[str]:
    """A server that says what a test wants, byte for byte; gives its URL."""
    talks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        talks.add(task)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0, **listening)
    try:
        host, port = listener.sockets[0].getsockname()
        yield f"http://{host}:{port}/v1/batch"
    finally:
        listener.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return headers, await reader.readexactly(int(headers["content-length"]))


def answers(*parts: bytes) -> Callable[..., Coroutine[Any, Any, None]]:
    """Answer a request in parts, and hang up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)

    return talk


async def attempt_at(
    url: str, *, key: str = KEY, body: bytes | None = None, strict: bool = False, **settings: Any
) -> Answer:
    usual: dict[str, Any] = {"gzip": True, "timeout_seconds": 5.0, "connections": 1}
    async with Segment(url, **(usual | settings)) as segment:
        segment._strict = strict  # no test may ask Segment's own hosts
        return await segment.attempt(key, body or batch("a"), 0)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("padding", ["", "x" * 30_000], ids=["small", "large"])
def test_a_batch_is_delivered(padding: str, *, compressed: bool) -> None:
    """In both encodings; the answer says how many bytes went over the wire, and how long it took."""
    names = ["a", "b", "c"]
    body = batch(*names, padding=padding)

    async def story(mock: MockSegment, segment: Segment) -> None:
        started = time.monotonic()
        answer = await segment.attempt(KEY, body, 0)
        assert answer.outcome == Delivered(200)
        assert [call["messageId"] for call in mock.accepted] == names
        assert mock.stats.inflated_bytes == len(body)
        assert answer.wire_bytes == mock.stats.received_bytes
        assert (answer.wire_bytes < len(body)) == compressed
        assert 0 < answer.seconds <= time.monotonic() - started

    play(story, gzip=compressed)


@pytest.mark.parametrize("compressed", [True, False])
def test_what_a_request_says(*, compressed: bool) -> None:
    """The key as user name with an empty password, JSON, its encoding, and no more than it must."""
    seen: list[tuple[dict[str, str], bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_request(reader))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n\r\n{}")

    async def main() -> None:
        async with (
            server(talk) as url,
            Segment(url, gzip=compressed, timeout_seconds=5.0, connections=1) as segment,
        ):
            for tries in (0, 1, 7):
                answer = await segment.attempt(KEY, batch("a"), tries)
                assert answer.outcome == Delivered(200)

    asyncio.run(main())
    for headers, body in seen:
        assert headers.pop("authorization") == f"basic {BASIC}".lower()
        assert headers["content-type"] == "application/json"
        assert headers.get("content-encoding") == ("gzip" if compressed else None)
        assert (gzip.decompress(body) if compressed else body) == batch("a")
        assert "cookie" not in headers
        assert KEY.lower() not in str(headers)
    assert [headers.get("x-retry-count") for headers, _ in seen] == [None, "1", "7"]


def test_an_answer_in_pieces_is_put_together() -> None:
    """However the network cuts it."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n"
    talk = answers(head, b'{"suc', b'cess": t', b"rue}")

    async def main() -> None:
        async with server(talk) as url:
            assert (await attempt_at(url, strict=True)).outcome == Delivered(200)

    asyncio.run(main())


def test_an_answer_without_end_is_not_read_whole() -> None:
    """A few kilobytes are enough, and the connection is closed."""
    written = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await read_request(reader)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 5000000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65_536)
            written += 65_536
            await writer.drain()

    async def main() -> None:
        async with server(talk) as url:
            started = time.monotonic()
            answer = await attempt_at(url)
            assert answer.outcome == Refused(400, "x" * 200)
            assert time.monotonic() - started < 4
        assert written < 64 << 20

    asyncio.run(main())


def test_a_bomb_is_not_inflated() -> None:
    """Nor is much of what was compressed against our wish."""
    bomb = gzip.compress(b"x" * (256 << 20), 1)
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"

    async def main() -> None:
        async with server(answers(head % len(bomb) + bomb)) as url:
            started = time.process_time()
            answer = await attempt_at(url)
            assert time.process_time() - started < 0.2
            assert isinstance(answer.outcome, Refused)

    asyncio.run(main())


def test_a_status_counts_although_the_body_ends_early() -> None:
    """It says what to do; only a success has to be whole."""
    cut = b"HTTP/1.1 %d x\r\nContent-Length: 1000\r\n\r\n" + SUCCESS[:9]

    async def main() -> None:
        for status, strict, expected in (
            (400, True, Refused),
            (401, True, Misconfigured),
            (429, True, Retry),
            (200, True, Retry),
            (200, False, Delivered),
        ):
            async with server(answers(cut % status)) as url:
                outcome = (await attempt_at(url, strict=strict)).outcome
            assert isinstance(outcome, expected), status
            assert outcome.status == status

    asyncio.run(main())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """The key would go to whoever is named there."""

    async def story(mock: MockSegment, segment: Segment) -> None:
        answer = await segment.attempt(KEY, batch("a"), 0)
        assert isinstance(answer.outcome, Misconfigured)
        assert answer.outcome.status == status
        assert mock.stats.requests_total == 1

    play(story, Fault(kind="answer", status=status, location="/v1/batch", count=1))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(kind="answer", status=503), Retry("server_error", "", 503)),
        (Fault(kind="answer", status=503, body="html"), Retry("server_error", "", 503)),
        (Fault(kind="answer", status=529, body="empty"), Retry("server_error", "", 529)),
        (Fault(kind="answer", status=408), Retry("timeout", "", 408)),
        (Fault(kind="answer", status=429, retry_after_seconds=9), Retry("", "", 429, 9.0)),
        (Fault(kind="answer", status=401), Misconfigured(401, "")),
        (Fault(kind="answer", status=403, body="html"), Misconfigured(403, "")),
        (Fault(kind="answer", status=404, body="empty"), Misconfigured(404, "")),
        (Fault(kind="refuse", message_id="a"), Refused(400, "")),
        (Fault(kind="drop"), Retry("connect", "")),
        (Fault(kind="drop", accept=True), Retry("connect", "")),
        (Fault(kind="hang", seconds=30.0), Retry("timeout", "")),
        (Fault(kind="delay", seconds=30.0), Retry("timeout", "")),
    ],
    ids=lambda value: value.kind + str(value.status) if isinstance(value, Fault) else "",
)
def test_bad_days(fault: Fault, expected: Outcome) -> None:
    """Each is an outcome; and afterwards the same sender delivers."""

    async def story(mock: MockSegment, segment: Segment) -> None:
        outcome = (await segment.attempt(KEY, batch("a"), 0)).outcome
        assert type(outcome) is type(expected)
        assert outcome.status == expected.status
        if isinstance(outcome, Retry) and isinstance(expected, Retry):
            assert expected.reason in outcome.reason
            assert outcome.after_seconds == expected.after_seconds
        mock.faults.clear()
        assert (await segment.attempt(KEY, batch("b"), 1)).outcome == Delivered(200)

    play(story, fault, timeout_seconds=0.3)


def test_a_closed_port_is_named_with_what_the_system_says() -> None:
    port = free_port()

    async def story() -> None:
        url = f"http://127.0.0.1:{port}/v1/batch"
        async with Segment(url, gzip=False, timeout_seconds=5.0, connections=1) as segment:
            outcome = (await segment.attempt(KEY, batch("a"), 0)).outcome
        assert isinstance(outcome, Retry)
        assert outcome.reason == "connect"
        assert outcome.detail.startswith(f"can't connect to 127.0.0.1:{port}: ")
        assert "Connection refused" in outcome.detail or "Connect call failed" in outcome.detail

    asyncio.run(story())


def test_retry_after_as_a_date_from_the_mock() -> None:
    """What the date says is what is waited, to the second."""

    async def story(_: MockSegment, segment: Segment) -> None:
        outcome = (await segment.attempt(KEY, batch("a"), 0)).outcome
        assert isinstance(outcome, Retry)
        assert outcome.after_seconds is not None
        assert 8.5 <= outcome.after_seconds <= 10

    fault = Fault(kind="answer", status=429, retry_after_seconds=9, retry_after_form="date")
    play(story, fault)


def test_a_time_out_covers_the_whole_request() -> None:
    """The answer's body too, however steadily it trickles."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async def main() -> None:
        async with server(talk) as url:
            answer = await attempt_at(url, timeout_seconds=0.4)
        assert answer.outcome == Retry("timeout", "no answer within 0.4 s")
        assert 0.4 <= answer.seconds < 3

    asyncio.run(main())


@pytest.mark.parametrize("early", [b"", b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"])
def test_a_time_out_covers_a_body_that_nobody_reads(early: bytes) -> None:
    """Also when the answer came before it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(early)
        await asyncio.sleep(60)

    async def main() -> None:
        body = random.Random(1).randbytes(1_000_000)
        async with server(talk, limit=1024) as url:
            answer = await attempt_at(url, body=body, gzip=False, timeout_seconds=0.5)
        assert isinstance(answer.outcome, Refused | Retry)
        assert answer.outcome.status == (413 if isinstance(answer.outcome, Refused) else None)
        assert answer.seconds < 3

    asyncio.run(main())


def test_a_refused_connection_can_be_tried_again() -> None:
    """And what was seen names the address."""

    async def main() -> None:
        async with server(answers()) as url:
            pass
        outcome = (await attempt_at(url)).outcome
        assert isinstance(outcome, Retry)
        assert (outcome.reason, outcome.status) == ("connect", None)
        assert url.split("/")[2] in outcome.detail

    asyncio.run(main())


def test_a_name_that_does_not_exist_can_be_tried_again() -> None:
    """Name servers have bad days too."""
    outcome = asyncio.run(attempt_at("http://nowhere.invalid/v1/batch")).outcome
    assert isinstance(outcome, Retry)
    assert outcome.reason == "connect"
    assert "nowhere.invalid" in outcome.detail


def test_tls_that_fails_says_why() -> None:
    """A port that speaks plain HTTP, for example."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def main() -> None:
        async with server(talk) as url:
            outcome = (await attempt_at(url.replace("http:", "https:"))).outcome
        assert isinstance(outcome, Retry)
        assert outcome.reason == "connect"
        assert "ssl" in outcome.detail.lower()

    asyncio.run(main())


def test_a_certificate_that_is_not_trusted_says_so(require: Require, tmp_path: Path) -> None:
    """Nothing is sent to it."""
    require("openssl")
    made = tmp_path / "made.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=segment"
    subprocess.run(
        [*command.split(), "-keyout", made, "-out", made], check=True, capture_output=True
    )
    requests = 0

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal requests
        if await reader.read(1):
            requests += 1

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made)

    async def main() -> None:
        async with server(talk, ssl=context) as url:
            outcome = (await attempt_at(url.replace("http:", "https:"))).outcome
        assert isinstance(outcome, Retry)
        assert "certificate verify failed" in outcome.detail

    asyncio.run(main())
    assert requests == 0


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
    ids=range(11),
)
def test_garbage_can_be_tried_again(said: bytes) -> None:
    """Nothing but a cancellation is ever raised."""

    async def main() -> None:
        async with server(answers(said)) as url:
            assert isinstance((await attempt_at(url, strict=True)).outcome, Retry)

    asyncio.run(main())


def test_a_cancellation_gets_through_and_closes_the_connection() -> None:
    """A revocation doesn't wait for Segment."""

    async def story(mock: MockSegment, segment: Segment) -> None:
        task = asyncio.create_task(segment.attempt(KEY, batch("a"), 0))
        while not mock.stats.in_flight:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        mock.faults.clear()
        assert (await segment.attempt(KEY, batch("b"), 0)).outcome == Delivered(200)

    play(story, Fault(kind="hang", seconds=30.0))


def test_large_bodies_are_compressed_in_a_thread() -> None:
    """So that heartbeats go on; small ones aren't worth the way there."""

    class Watched(ThreadPoolExecutor):
        work = 0

        def submit(self, *arguments: Any, **more: Any) -> Any:
            self.work += 1
            return super().submit(*arguments, **more)

    async def story(_: MockSegment, segment: Segment) -> None:
        watched = Watched(1)
        asyncio.get_running_loop().set_default_executor(watched)
        assert (await segment.attempt(KEY, batch("a"), 0)).outcome == Delivered(200)
        assert watched.work == 0
        large = batch(*(f"m{number}" for number in range(16)), padding="x" * 29_000)
        assert (await segment.attempt(KEY, large, 0)).outcome == Delivered(200)
        assert watched.work == 1

    play(story)


def test_requests_go_side_by_side() -> None:
    """As many as it was given connections."""

    async def story(mock: MockSegment, segment: Segment) -> None:
        await asyncio.gather(*(segment.attempt(KEY, batch(f"m{n}"), 0) for n in range(12)))
        assert mock.stats.max_in_flight == 4
        assert mock.stats.accepted_total == 12

    play(story, Fault(kind="delay", seconds=0.05))


# --- the key --------------------------------------------------------------------------------------


def test_the_key_is_in_no_repr() -> None:
    """Neither of the sender nor of what came of it."""

    async def story(_: MockSegment, segment: Segment) -> None:
        answer = await segment.attempt(KEY, batch("a"), 0)
        for text in (repr(segment), str(vars(segment)), repr(answer)):
            assert KEY not in text
            assert BASIC not in text

    play(story)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 503])
def test_an_answer_that_repeats_the_request_does_not_spread_the_key(status: int) -> None:
    """Some proxies do; at the end of what is shown, too."""

    async def main() -> None:
        for before in (0, 150, 180):
            echo = b"x" * before + f"Basic {BASIC} {KEY}".encode()
            head = b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(echo))
            async with server(answers(head + echo)) as url:
                outcome = (await attempt_at(url, strict=True)).outcome
            assert KEY[:6] not in repr(outcome)
            assert BASIC[:6] not in repr(outcome)
            assert "xxx" in repr(outcome) or not before

    asyncio.run(main())


def test_failures_do_not_spread_the_key() -> None:
    """Nor do exceptions: a misuse, for one."""

    async def main() -> None:
        async with server(answers(b"garbage\r\n\r\n")) as url:
            assert KEY not in repr(await attempt_at(url))
        segment = Segment(url, gzip=True, timeout_seconds=1, connections=1)
        with pytest.raises(RuntimeError) as caught:
            await segment.attempt(KEY, batch("a"), 0)
        assert KEY not in str(caught.value)

    asyncio.run(main())


@pytest.mark.parametrize("key", ["k", "schlüssel", "a\r\nb", "with:colon", ""])
def test_a_strange_key_is_sent_as_it_is(key: str) -> None:
    """It can't break out of its header, and one letter of it doesn't blacken every answer."""

    async def main() -> None:
        seen = []

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n" + SUCCESS)

        async with server(talk) as url:
            assert (await attempt_at(url, key=key, strict=True)).outcome == Delivered(200)
        wanted = base64.b64encode(f"{key}:".encode()).decode()
        assert f"Authorization: Basic {wanted}\r\n" in seen[0]

    asyncio.run(main())


def test_what_site_code_is_told_holds_no_write_key() -> None:
    """Of an answer, which may repeat the request, and of an exception: aiohttp's have the request's headers."""
    secrets = (KEY, base64.b64encode(f"{KEY}:".encode()).decode())
    echo = f'{{"success": false, "of": "{secrets[0]} {secrets[1]}"}}'.encode()
    ok = b"HTTP/1.1 200 OK\r\nX-Trace: 7\r\nContent-Length: %d\r\n\r\n%b" % (len(echo), echo)

    async def story() -> None:
        for parts, expected in (
            ((ok,), Response),
            ((b"HTTP/1.1 2x0 \r\n\r\n",), ConnectionError),
            ((), ConnectionError),
        ):
            async with server(answers(*parts)) as url:
                response = (await attempt_at(url)).response
            assert isinstance(response, expected)
            shown = repr(response) + repr(getattr(response, "args", "")) + str(vars_of(response))
            assert not [secret for secret in secrets if secret in shown]
            if isinstance(response, Response):
                assert (response.status, response.ok) == (200, True)
                assert response.headers["X-Trace"] == "7"
                assert "[secret]" in response.body
            else:
                assert response.__traceback__ is None
                assert response.__context__ is None

    asyncio.run(story())


def vars_of(one: object) -> object:
    return getattr(one, "__dict__", "")
