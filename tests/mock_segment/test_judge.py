"""What the judge accepts, throws away and knows already."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.mock_segment.faults import Fault, Faults
from streamer.mock_segment.journal import Journal, Line, digest, read_journal
from streamer.mock_segment.judge import MAX_CALLS, Judge, key_digest
from streamer.mock_segment.request import (
    CALL_TOO_LARGE,
    INVALID_KEY,
    MALFORMED,
    REFUSED_CALL,
    SUCCESS,
    Answer,
    Request,
)

if TYPE_CHECKING:
    from pathlib import Path

_numbers = count(1)


def send(judge: Judge, *calls: Any, key: str = "key", faults: Faults | None = None) -> Answer:
    body = {"batch": calls, "writeKey": key, "sentAt": "2026-01-01T00:00:00Z"}
    request = Request({"Content-Type": "application/json"}, orjson.dumps(body))
    return judge.take(request, next(_numbers), 1767225600.5, faults)


def track(message_id: str | None = None, **fields: Any) -> dict[str, Any]:
    call = {"type": "track", "userId": "u", "event": "scroll", **fields}
    return call if message_id is None else call | {"messageId": message_id}


def identify(message_id: str, user: str, **traits: Any) -> dict[str, Any]:
    return {"type": "identify", "userId": user, "messageId": message_id, "traits": traits}


def group(message_id: str, user: str, group_id: str, **traits: Any) -> dict[str, Any]:
    return identify(message_id, user, **traits) | {"type": "group", "groupId": group_id}


def fates(judge: Judge) -> list[tuple[str, str | None]]:
    return [(line.fate, line.reason) for line in judge.lines]


def test_accepts_valid_calls_and_says_success() -> None:
    judge = Judge(keep_calls=True)
    assert send(judge, track("m1"), track("m2")) == SUCCESS
    assert SUCCESS.status == 200
    assert orjson.loads(SUCCESS.body) == {"success": True}
    assert fates(judge) == [("accepted", None)] * 2
    assert judge.stats.accepted == {"track": 2}


def test_throws_invalid_calls_away_one_by_one_and_keeps_their_siblings() -> None:
    judge = Judge(keep_calls=True)
    answer = send(judge, track("m1"), track("m2", event=None), 5, track("m3"))
    assert answer == SUCCESS
    assert fates(judge) == [
        ("accepted", None),
        ("discarded", "no_event"),
        ("discarded", "not_an_object"),
        ("accepted", None),
    ]
    assert judge.stats.discarded == {"track": 1, "other": 1}
    assert judge.stats.discards == {"no_event": 1, "not_an_object": 1}


def test_the_first_of_equal_ids_wins_across_types_requests_and_write_keys() -> None:
    judge = Judge(keep_calls=True)
    send(judge, identify("m", "u", a=1), track("m"))
    send(judge, identify("m", "u", a=2), key="another-workspace")
    assert fates(judge) == [("accepted", None), ("duplicate", None), ("duplicate", None)]
    assert judge.profiles == {"u": {"a": 1}}
    assert judge.stats.duplicates == {"track": 1, "identify": 1}


def test_a_call_that_was_thrown_away_takes_no_id() -> None:
    judge = Judge(keep_calls=True)
    send(judge, track("m", event=""), track("m"))
    assert fates(judge) == [("discarded", "no_event"), ("accepted", None)]


def test_a_call_without_an_id_is_given_a_fresh_one_each_time() -> None:
    judge = Judge(keep_calls=True)
    send(judge, track(), track())
    send(judge, track(messageId=None))
    assert fates(judge) == [("accepted", None)] * 3
    ids = {line.message_id for line in judge.lines}
    assert len(ids) == 3
    assert {line.call["messageId"] for line in judge.lines} == ids


def test_calls_of_an_unknown_write_key_get_success_and_are_thrown_away() -> None:
    judge = Judge(known_keys=["key"], keep_calls=True)
    assert send(judge, track("m1"), key="wrong") == SUCCESS
    assert send(judge, track("m1")) == SUCCESS
    assert fates(judge) == [("discarded", "unknown_write_key"), ("accepted", None)]


def test_a_batch_of_too_many_calls_gets_success_and_is_thrown_away() -> None:
    judge = Judge(keep_calls=True)
    assert send(judge, *(track(f"a{n}") for n in range(MAX_CALLS))) == SUCCESS
    assert send(judge, *(track(f"b{n}") for n in range(MAX_CALLS + 1))) == SUCCESS
    assert judge.stats.accepted_total == MAX_CALLS == 2_500
    assert judge.stats.discards == {"too_many_calls": MAX_CALLS + 1}


def test_one_call_over_the_limit_refuses_the_whole_batch() -> None:
    judge = Judge(keep_calls=True)
    answer = send(judge, track("m1"), track("m2", properties={"x": "x" * 32_000}))
    assert answer == CALL_TOO_LARGE
    assert orjson.loads(answer.body)["message"] == "Exceed payload limit"
    assert judge.lines == []
    assert judge.stats.refusals == {"call_too_large": 1}


def test_a_refused_request_leaves_no_trace_but_in_the_counts() -> None:
    judge = Judge(keep_calls=True)
    assert send(judge, track("m"), key="") == INVALID_KEY
    assert orjson.loads(INVALID_KEY.body) == {
        "success": False,
        "message": "An invalid write key was provided",
        "code": "invalid_request",
    }
    assert judge.take(Request({"Content-Type": "application/json"}, b"{"), 1, 0) == MALFORMED
    assert orjson.loads(MALFORMED.body)["message"] == "malformed JSON"
    assert judge.lines == []
    assert judge.stats.refusals == {"invalid_write_key": 1, "malformed_json": 1}


def test_a_call_that_only_segment_dislikes_refuses_its_batch_and_goes_through_never() -> None:
    judge = Judge(keep_calls=True)
    faults = Faults(Fault(kind="refuse", message_id="bad", key_digest=digest("key")))
    assert send(judge, track("good"), track("bad"), faults=faults) == REFUSED_CALL
    assert send(judge, track("bad"), faults=faults) == REFUSED_CALL
    assert send(judge, track("good"), faults=faults) == SUCCESS
    assert REFUSED_CALL.status == 400
    assert fates(judge) == [("accepted", None)]


def test_traits_are_laid_over_one_another_in_order_of_receipt() -> None:
    judge = Judge()
    send(judge, identify("1", "u", a=1, b=1), identify("2", "v", a=9), identify("3", "u", b=2))
    send(judge, identify("4", "u", b=3, c=None))
    anonymous = {
        "type": "identify",
        "anonymousId": "x",
        "messageId": "5",
        "traits": {"z": {"y": 1}},
    }
    send(judge, anonymous, anonymous | {"messageId": "6", "traits": {"z": {"x": 1}}})
    assert judge.profiles == {
        "u": {"a": 1, "b": 3, "c": None},
        "v": {"a": 9},
        "x": {"z": {"x": 1}},
    }


def test_a_user_has_traits_of_its_own_in_each_group() -> None:
    judge = Judge()
    send(judge, group("1", "u", "g", a=1), group("2", "v", "g", a=2), group("3", "u", "h", a=3))
    send(judge, group("4", "u", "g", b=4))
    assert judge.group_profiles == {
        ("u", "g"): {"a": 1, "b": 4},
        ("v", "g"): {"a": 2},
        ("u", "h"): {"a": 3},
    }
    assert judge.profiles == {}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),  # the messageId
            st.sampled_from("uv"),
            st.dictionaries(st.sampled_from("abc"), st.integers(0, 99), max_size=3),
            st.booleans(),  # whether a new request begins
        )
    )
)
def test_profiles_end_where_the_first_of_each_id_in_order_end(
    contributions: list[tuple[int, str, dict[str, int], bool]],
) -> None:
    judge = Judge()
    batches: list[list[dict[str, Any]]] = [[]]
    wanted: dict[str, dict[str, int]] = {}
    seen: set[int] = set()
    for number, user, traits, begins in contributions:
        if begins:
            batches.append([])
        batches[-1].append(identify(str(number), user, **traits))
        if number not in seen:
            seen.add(number)
            wanted.setdefault(user, {}).update(traits)
    for calls in batches:
        if calls:
            send(judge, *calls)
    assert judge.profiles == wanted
    assert judge.stats.accepted_total + judge.stats.duplicates_total == len(contributions)


@pytest.mark.parametrize("journal_calls", [True, False])
def test_the_journal_holds_the_same_lines_as_memory(tmp_path: Path, journal_calls: bool) -> None:
    path = tmp_path / "journal.ndjson"
    journal = Journal(path)
    judge = Judge(journal=journal, journal_calls=journal_calls, known_keys=["key"], keep_calls=True)
    send(judge, track("m1"), track("m1"), 5, {"type": "track", "messageId": 5})
    send(judge, track("m2"), key="wrong")
    journal.close()
    expected = judge.lines if journal_calls else [line._replace(call=None) for line in judge.lines]
    assert list(read_journal(path)) == expected
    assert judge.lines[0] == Line(
        judge.lines[0].request,
        1767225600.5,
        "accepted",
        None,
        digest("key"),
        "track",
        "m1",
        track("m1"),
    )
    assert [line.fate for line in judge.lines] == [
        "accepted",
        "duplicate",
        "discarded",
        "discarded",
        "discarded",
    ]
    assert judge.lines[3].message_id is None
    assert judge.lines[-1].request == judge.lines[0].request + 1
    assert b"wrong" not in path.read_bytes()


def test_the_counts_say_how_large_requests_were_and_how_old_sent_at() -> None:
    judge = Judge()
    send(judge, track("m1"), track("m2", properties={"x": "y" * 100}))
    stats = judge.stats
    assert stats.max_calls == 2
    assert stats.max_call_bytes == len(orjson.dumps(track("m2", properties={"x": "y" * 100})))
    assert stats.max_body_bytes == stats.inflated_bytes > stats.max_call_bytes
    assert stats.max_sent_at_age_seconds == 0.5
    assert stats.bad_sent_at == 0


@pytest.mark.parametrize("sent_at", [None, 5, "", "now", "2026-01-01T00:00:00"])
def test_a_batch_without_a_usable_sent_at_is_counted(sent_at: object) -> None:
    judge = Judge()
    body = orjson.dumps({"batch": [track("m")], "writeKey": "key", "sentAt": sent_at})
    judge.take(Request({"Content-Type": "application/json"}, body), 1, 0.0)
    assert judge.stats.bad_sent_at == 1
    assert judge.stats.accepted_total == 1


def test_memory_holds_no_calls_unless_it_is_asked_to() -> None:
    judge = Judge()
    send(judge, track("m"))
    assert judge.lines == []


def test_a_reset_forgets_ids_profiles_and_counts() -> None:
    judge = Judge(keep_calls=True)
    send(judge, identify("m", "u", a=1), group("n", "u", "g", a=1))
    judge.reset()
    assert (judge.lines, judge.profiles, judge.group_profiles) == ([], {}, {})
    assert judge.stats.accepted_total == 0
    send(judge, track("m"))
    assert fates(judge) == [("accepted", None)]


def test_a_request_is_known_by_the_digest_of_its_key_or_by_none() -> None:
    headers = {"Content-Type": "application/json"}
    assert key_digest(Request(headers, b'{"writeKey": "key"}')) == digest("key")
    assert key_digest(Request(headers, b"{}")) is None


def test_measures_how_late_page_and_track_calls_come_in() -> None:
    """Once each, when they are first accepted; what doesn't say when it happened, or is no event, isn't measured."""
    judge = Judge()
    at = "2026-01-01T00:00:00.250Z"
    send(judge, track("m1", timestamp=at), identify("m2", "u") | {"timestamp": at})
    send(judge, track("m1", timestamp=at))
    send(judge, track("m3"), track("m4", timestamp="soon"), track("m5", timestamp=at[:-1]))
    send(judge, {"type": "page", "userId": "u", "messageId": "m6", "timestamp": at})
    assert judge.stats.lateness.total == 2
    assert judge.stats.lateness.percentile(99) == pytest.approx(0.25, rel=0.01)
