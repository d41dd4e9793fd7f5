"""The mock on a real socket: Segment's answers, its bad days, and the pages that only a mock has."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest

from streamer.mock_segment import Fault, MockSegment, digest, read_journal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


class Sender:
    """Posts batches as a plain HTTP client."""

    def __init__(self, http: aiohttp.ClientSession, segment: MockSegment) -> None:
        self.http = http
        self.segment = segment

    async def post(
        self, *calls: Any, body: bytes | None = None, key: str = "key", **headers: str
    ) -> tuple[int, bytes, Any]:
        """Send one request and give its status, body and headers."""
        if body is None:
            body = orjson.dumps({"batch": calls, "sentAt": "2026-01-01T00:00:00Z"})
        usual = {
            "Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode(),
            "Content-Type": "application/json",
        }
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.post(
            self.segment.url, data=io.BytesIO(body), headers=usual | more, allow_redirects=False
        ) as response:
            return response.status, await response.read(), response.headers

    async def page(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        """Ask for one of the mock's own pages."""
        body = None if document is None else orjson.dumps(document)
        async with self.http.request(method, self.segment.address + path, data=body) as response:
            return response.status, orjson.loads(await response.read())


def play(story: Callable[[MockSegment, Sender], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with MockSegment(**settings) as segment, aiohttp.ClientSession() as http:
            await story(segment, Sender(http, segment))

    asyncio.run(main())


def track(message_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "track",
        "userId": "u",
        "event": "scroll",
        "messageId": message_id,
        **fields,
    }


def ids(segment: MockSegment) -> list[str]:
    return [call["messageId"] for call in segment.accepted]


@pytest.mark.parametrize("compress", [False, True])
def test_a_batch_is_accepted_in_order(compress: bool) -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        body = orjson.dumps({"batch": [track("m1"), track("m2")]})
        if compress:
            answer = await sender.post(body=gzip.compress(body), Content_Encoding="gzip")
        else:
            answer = await sender.post(body=body)
        assert answer[:2] == (200, b'{"success":true}')
        assert answer[2]["Content-Type"] == "application/json"
        assert ids(segment) == ["m1", "m2"]
        assert segment.stats.inflated_bytes == len(body)

    play(story)


def test_refusals_reach_the_sender_as_segment_words_them() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        status, body, _ = await sender.post(track("m"), key="")
        assert (status, orjson.loads(body)["message"]) == (
            400,
            "An invalid write key was provided",
        )
        status, body, _ = await sender.post(body=b"{")
        assert (status, orjson.loads(body)["message"]) == (400, "malformed JSON")
        assert (await sender.post(body=b" " * 500_001))[:2] == (400, b"Bad Request")
        # Far over what aiohttp would read by itself.
        assert (await sender.post(body=bytes(5_000_000)))[:2] == (400, b"Bad Request")
        bomb = gzip.compress(bytes(20_000_000))
        assert (await sender.post(body=bomb, Content_Encoding="gzip"))[0] == 400
        status, body, _ = await sender.post(track("m", properties={"x": "x" * 32_000}))
        assert (status, orjson.loads(body)["message"]) == (400, "Exceed payload limit")
        assert segment.stats.refusals == {
            "invalid_write_key": 1,
            "malformed_json": 1,
            "body_too_large": 3,
            "call_too_large": 1,
        }
        assert segment.accepted == []

    play(story)


def test_a_write_key_that_sends_too_fast_gets_429_and_is_told_when_to_come_back() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        assert (await sender.post(track("m1")))[0] == 200
        status, _, headers = await sender.post(track("m2"))
        assert status == 429
        assert headers["Retry-After"] == headers["X-RateLimit-Reset"] == "1000"
        assert (await sender.post(track("m3"), key="another"))[0] == 200
        assert ids(segment) == ["m1", "m3"]
        assert segment.stats.refusals == {"rate_limited": 1}

    play(story, requests_per_second=0.001)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 408, 413, 429, 460, 500, 501, 503, 529])
def test_an_injected_answer_takes_no_calls(status: int) -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        got, body, headers = await sender.post(track("m"))
        assert got == status
        assert orjson.loads(body)["success"] is False
        assert headers.get("Location") == ("/v1/moved" if status == 301 else None)
        assert "Retry-After" not in headers
        assert segment.accepted == []
        assert (await sender.post(track("m")))[0] == 200
        assert ids(segment) == ["m"]
        assert segment.stats.answers == {str(status): 1, "200": 1}

    play(story, faults=[Fault(kind="answer", status=status, count=1)])


def test_retry_after_comes_in_seconds_or_as_a_date() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        headers = (await sender.post(track("m")))[2]
        assert headers["Retry-After"] == headers["X-RateLimit-Reset"] == "3"
        before = time.time()
        headers = (await sender.post(track("m")))[2]
        at = parsedate_to_datetime(headers["Retry-After"]).timestamp()
        assert before + 2.5 <= at <= time.time() + 3.5
        assert headers["X-RateLimit-Reset"] == "3"
        assert segment.stats.answers == {"429": 1, "503": 1}

    seconds = Fault(kind="answer", status=429, retry_after_seconds=2.5, count=1)
    date = Fault(
        kind="answer", status=503, retry_after_seconds=2.5, retry_after_form="date", count=1
    )
    play(story, faults=[seconds, date])


@pytest.mark.parametrize("status", [200, 502])
def test_bodies_may_be_html_or_empty(status: int) -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        got, body, headers = await sender.post(track("m"))
        assert (got, headers["Content-Type"]) == (status, "text/html")
        assert body.startswith(b"<!doctype html>")
        assert (await sender.post(track("m")))[:2] == (status, b"")
        assert segment.accepted == []

    bodies = [Fault(kind="answer", status=status, body=body, count=1) for body in ("html", "empty")]
    play(story, faults=bodies)


@pytest.mark.parametrize("accept", [True, False])
def test_a_dropped_connection_may_hide_that_the_calls_were_accepted(accept: bool) -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        with pytest.raises(aiohttp.ClientConnectionError):
            await sender.post(track("m"))
        assert ids(segment) == (["m"] if accept else [])
        assert (await sender.post(track("m")))[0] == 200
        assert ids(segment) == ["m"]
        assert segment.stats.duplicates_total == accept
        assert segment.stats.answers == {"dropped": 1, "200": 1}

    play(story, faults=[Fault(kind="drop", accept=accept, count=1)])


@pytest.mark.parametrize("accept", [True, False])
def test_a_request_that_hangs_ends_in_a_dropped_connection(accept: bool) -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        with pytest.raises(aiohttp.ClientConnectionError):
            await sender.post(track("m"))
        assert ids(segment) == (["m"] if accept else [])
        assert segment.stats.answers == {"hung": 1}

    play(story, faults=[Fault(kind="hang", seconds=0.01, accept=accept)])


def test_requests_that_hang_hold_up_neither_their_neighbours_nor_the_end() -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as http:
            async with MockSegment(faults=[Fault(kind="hang", count=1)]) as segment:
                sender = Sender(http, segment)
                hanging = asyncio.create_task(sender.post(track("m1")))
                while not segment.stats.answers["hung"]:
                    await asyncio.sleep(0)
                assert (await sender.post(track("m2")))[0] == 200
                assert segment.stats.in_flight == 1
                assert segment.stats.max_in_flight == 2
            with pytest.raises(aiohttp.ClientConnectionError):
                await hanging
            assert segment.stats.in_flight == 0

    asyncio.run(asyncio.wait_for(main(), 30))


def test_an_answer_may_lie_about_calls_that_were_accepted() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        assert (await sender.post(track("m")))[0] == 500
        assert ids(segment) == ["m"]

    play(story, faults=[Fault(kind="answer", status=500, accept=True)])


def test_a_delay_holds_the_request_back_before_it_is_taken_and_ends_with_the_mock() -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as http:
            async with MockSegment(faults=[Fault(kind="delay", count=1)]) as segment:
                sender = Sender(http, segment)
                slow = asyncio.create_task(sender.post(track("slow")))
                while segment.faults.as_json()["applied"] == [0]:
                    await asyncio.sleep(0)
                assert (await sender.post(track("fast")))[0] == 200
                assert ids(segment) == ["fast"]
            assert (await slow)[0] == 200
            assert ids(segment) == ["fast", "slow"]

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_delay_ends_by_itself() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        before = time.monotonic()
        assert (await sender.post(track("m")))[0] == 200
        assert time.monotonic() - before >= 0.02
        assert ids(segment) == ["m"]

    play(story, faults=[Fault(kind="delay", seconds=0.02)])


def test_an_outage_may_be_of_one_write_key() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        assert (await sender.post(track("m1"), key="a"))[0] == 503
        assert (await sender.post(track("m2"), key="b"))[0] == 200
        assert ids(segment) == ["m2"]

    play(story, faults=[Fault(kind="answer", status=503, key_digest=digest("a"))])


def test_a_call_that_only_segment_dislikes_refuses_its_request() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        assert (await sender.post(track("m1"), track("m2", event="bad")))[0] == 400
        assert (await sender.post(track("m1")))[0] == 200
        assert ids(segment) == ["m1"]

    play(story, faults=[Fault(kind="refuse", event="bad")])


def test_retries_are_counted_by_what_they_say_of_themselves() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        for header in ("1", "7", "0", "-1", "x", "٣", ""):
            await sender.post(track("m"), X_Retry_Count=header)
        await sender.post(track("m"))
        stats = segment.stats
        assert (stats.retried_requests, stats.max_retry_count, stats.bad_retry_counts) == (7, 7, 5)

    play(story)


def test_stats_and_profiles_are_shown() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        identify = {"type": "identify", "userId": "u", "messageId": "i", "traits": {"a": 1}}
        group = identify | {"type": "group", "messageId": "g", "groupId": "acme"}
        await sender.post(identify, group, track("m"), track("m"), track("n", event=None))
        status, stats = await sender.page("GET", "/stats")
        assert status == 200
        assert stats == segment.stats.as_json()
        assert stats["calls"] == {
            "accepted": {"identify": 1, "group": 1, "track": 1},
            "duplicate": {"track": 1},
            "discarded": {"track": 1},
        }
        assert stats["discards"] == {"no_event": 1}
        assert stats["requests"]["answers"] == {"200": 1}
        assert stats["max_calls"] == 5
        assert stats["bytes"]["received"] == stats["bytes"]["inflated"] > stats["bytes"]["max_call"]
        assert await sender.page("GET", "/profiles") == (
            200,
            {"users": {"u": {"a": 1}}, "groups": {"acme": {"u": {"a": 1}}}},
        )

    play(story)


def test_faults_are_switched_while_it_runs() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        fault = {"kind": "answer", "status": 529, "count": 1, "write_key": "key"}
        status, shown = await sender.page("PUT", "/faults", {"faults": [fault], "seed": 7})
        kept = {"kind": "answer", "status": 529, "count": 1, "key_digest": digest("key")}
        assert (status, shown) == (200, {"seed": 7, "faults": [kept], "applied": [0]})
        assert (await sender.post(track("m")))[0] == 529
        assert (await sender.page("GET", "/faults"))[1]["applied"] == [1]
        await sender.page("PUT", "/faults", {"faults": []})
        assert await sender.page("GET", "/faults") == (
            200,
            {"seed": 7, "faults": [], "applied": []},
        )
        assert (await sender.post(track("m")))[0] == 200
        assert ids(segment) == ["m"]

    play(story)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"faults": [{"kind": "boom"}]}, "kind of a fault must be one of"),
        ({"faults": {}}, "the body must be an object such as"),
        ({"fault": []}, "the body must be an object such as"),
        ({"faults": [], "seed": "x"}, "the body must be an object such as"),
        ([], "the body must be an object such as"),
        (None, "the body must be JSON"),
    ],
)
def test_faults_that_are_wrong_are_refused_and_the_old_ones_stay(
    document: object, message: str
) -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        status, shown = await sender.page("PUT", "/faults", document)
        assert status == 400
        assert message in shown["error"]
        assert segment.faults.as_json()["faults"] == [{"kind": "drop"}]

    play(story, faults=[Fault(kind="drop")])


def test_a_reset_forgets_what_came_in_and_keeps_the_faults() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        await sender.post(track("m"))
        status, stats = await sender.page("POST", "/reset")
        assert (status, stats["requests"]["total"], stats["requests"]["in_flight"]) == (200, 0, 0)
        assert segment.accepted == []
        assert segment.faults.as_json()["applied"] == [0]
        await sender.post(track("m"))
        assert ids(segment) == ["m"]

    play(story, faults=[Fault(kind="refuse", event="never")])


def test_calls_of_keys_that_are_not_known_are_thrown_away() -> None:
    async def story(segment: MockSegment, sender: Sender) -> None:
        assert (await sender.post(track("m1"), key="typo"))[:2] == (200, b'{"success":true}')
        assert (await sender.post(track("m2")))[0] == 200
        assert ids(segment) == ["m2"]
        assert segment.stats.discards == {"unknown_write_key": 1}

    play(story, known_keys=["key"])


def test_the_journal_is_on_disk_when_the_answer_comes(tmp_path: Path) -> None:
    path = tmp_path / "journal.ndjson"

    async def story(segment: MockSegment, sender: Sender) -> None:
        for message_id in ("m1", "m2"):
            await sender.post(track(message_id))
            lines = list(read_journal(path))
            assert lines == segment.lines
            assert lines[-1].message_id == message_id
        assert [line.request for line in segment.lines] == [1, 2]
        assert abs(segment.lines[0].received_at - time.time()) < 60

    play(story, journal=path)


def test_a_port_that_is_taken_and_a_journal_that_cannot_be_written_are_errors(
    tmp_path: Path,
) -> None:
    async def story(segment: MockSegment, _: Sender) -> None:
        port = int(segment.address.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            async with MockSegment(port=port, journal=tmp_path / "journal.ndjson"):
                pass
        with pytest.raises(IsADirectoryError):
            async with MockSegment(journal=tmp_path):
                pass

    play(story)
