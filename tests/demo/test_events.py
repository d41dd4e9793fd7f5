"""Behaviour of the event generator: the demo and the end-to-end tests stand on it."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import orjson
import pytest

from streamer.demo.events import START_MS, Event, generate


def take(count: int, **arguments: Any) -> list[Event]:
    return list(islice(generate(**{"seed": 1, **arguments}), count))


def decoded(events: list[Event]) -> list[dict[str, Any]]:
    return [orjson.loads(event.value) for event in events]


EVENTS = take(20_000, users=500)
DECODED = decoded(EVENTS)


def test_a_seed_decides_everything() -> None:
    """Equal seeds give equal bytes, other seeds others."""
    assert take(500) == take(500)
    assert take(500) != take(500, seed=2)


def test_no_two_values_are_equal() -> None:
    """Every value is one of its kind, so that no messageId made from it comes twice."""
    assert len({event.value for event in EVENTS}) == len(EVENTS)


def test_the_key_is_the_endpoint() -> None:
    """A record's key is its visitor's endpoint.Id."""
    for event, event_json in zip(EVENTS, DECODED, strict=True):
        assert event.key == event_json["endpoint"]["Id"].encode()


def test_events_look_like_altis() -> None:
    """The keys at the top, and what the default mapping reads, stand where Altis Analytics puts them, in about 2 KB."""
    for event_json in DECODED:
        assert list(event_json) == [
            "event_type",
            "event_timestamp",
            "arrival_timestamp",
            "event_version",
            "application",
            "client",
            "device",
            "session",
            "attributes",
            "metrics",
            "endpoint",
            "awsAccountId",
        ]
        assert all(isinstance(value, str) for value in event_json["attributes"].values())
        assert all(isinstance(value, int) for value in event_json["metrics"].values())
        assert all(
            isinstance(values, list) for values in event_json["endpoint"]["Attributes"].values()
        )
        assert {"blog", "blogId", "title", "url", "search"} <= set(event_json["attributes"])
        assert event_json["endpoint"]["Demographic"].keys() >= {"Locale", "AppVersion", "Platform"}
    sizes = [len(event.value) for event in EVENTS]
    assert 1_800 < sum(sizes) / len(sizes) < 2_300
    assert max(sizes) < 3_000


def test_time_moves_on() -> None:
    """Timestamps start where they were told to, rise with each event, and run at the rate asked for."""
    events = decoded(take(2_000, start_ms=1_000_000_000_000, rate=50.0))
    stamps = [event["event_timestamp"] for event in events]
    assert all(before < after for before, after in pairwise(stamps))
    assert 1_000_000_000_000 < stamps[0] < 1_000_000_010_000
    assert (stamps[-1] - stamps[0]) / 1000 == pytest.approx(2_000 / 50, rel=0.4)
    assert all(event["arrival_timestamp"] > event["event_timestamp"] for event in events)
    assert events[0]["endpoint"]["EffectiveDate"].startswith("2001-09-09T01:46:4")
    assert DECODED[0]["event_timestamp"] >= START_MS


def test_an_event_says_when_it_was() -> None:
    """The timestamp beside the value is that of the event."""
    for event, event_json in zip(EVENTS, DECODED, strict=True):
        assert event.timestamp_ms == event_json["event_timestamp"]


def test_a_clock_gives_the_time() -> None:
    """However many events it gives one millisecond; never an earlier one; and no two events are equal all the same."""
    times = iter([5_000, 5_000, *[5_001] * 500, 4_000, *[6_000] * 600])
    events = take(1_000, rate=5_000, clock=lambda: next(times))
    stamps = [event.timestamp_ms for event in events]
    assert stamps == sorted(stamps)
    assert set(stamps) == {5_000, 5_001, 6_000}
    assert len({event.value for event in events}) == 1_000


def test_people_read() -> None:
    """Seconds pass between two events of one session, at any rate; what loading the first page makes comes at once."""
    for rate in (20.0, 400.0):
        sessions: dict[str, list[tuple[int, str]]] = {}
        for event in decoded(take(20_000, users=20_000, rate=rate)):
            happened = (event["event_timestamp"], event["event_type"])
            sessions.setdefault(event["session"]["session_id"], []).append(happened)
        gaps = [
            (after - before) / 1000
            for session in sessions.values()
            for (before, _), (after, _) in pairwise(session[1:])
        ]
        assert 2 < sum(gaps) / len(gaps) < 8
        loads = [(s[1][0] - s[0][0]) / 1000 for s in sessions.values() if len(s) > 1]
        assert sum(loads) / len(loads) < 0.2


def test_visitors_come_back_and_their_counts_rise() -> None:
    """A session begins with _session.start and ends with _session.stop; sessions and page views add up, by visitor."""
    sessions: dict[str, list[str]] = {}
    by_visitor: dict[str, list[dict[str, Any]]] = {}
    for event in DECODED:
        sessions.setdefault(event["session"]["session_id"], []).append(event["event_type"])
        by_visitor.setdefault(event["endpoint"]["Id"], []).append(event)
    assert all(types[0] == "_session.start" for types in sessions.values())
    ended = [types for types in sessions.values() if types[-1] == "_session.stop"]
    assert len(ended) > 0.8 * len(sessions)
    assert all("pageView" in types and "_session.stop" not in types[:-1] for types in ended)
    for events in by_visitor.values():
        metrics = [event["endpoint"]["Metrics"] for event in events]
        assert all(
            before["sessions"] <= after["sessions"] and before["pageViews"] <= after["pageViews"]
            for before, after in pairwise(metrics)
        )
        assert metrics[-1]["pageViews"] == sum(
            event["event_type"] == "pageView" for event in events
        )
        for event in events:
            stop = event["session"].get("stop_timestamp")
            assert (stop is not None) == (event["event_type"] == "_session.stop")
            assert stop is None or stop == event["event_timestamp"]
    returning = [
        events
        for events in by_visitor.values()
        if events[-1]["endpoint"]["Metrics"]["sessions"] > 1
    ]
    assert len(returning) > 0.5 * len(by_visitor)
    assert len(by_visitor) > 400


def test_every_kind_of_event_occurs() -> None:
    """There are several sites, users with names and without, groups, campaigns, and custom events."""
    assert {event["attributes"]["blogId"] for event in DECODED} == {"1", "2", "3"}
    assert all(e["attributes"]["url"].startswith(e["attributes"]["blog"]) for e in DECODED)
    types = {event["event_type"] for event in DECODED}
    assert {"_session.start", "pageView", "scroll", "subscriptionChange", "_session.stop"} <= types
    known = [event for event in DECODED if "User" in event["endpoint"]]
    assert 0.2 < len(known) / len(DECODED) < 0.5
    assert all(event["endpoint"]["User"]["UserId"].startswith("user-") for event in known)
    grouped = sum("AudienceId" in event["endpoint"]["Attributes"] for event in DECODED)
    assert 0.2 < grouped / len(DECODED) < 0.6
    assert any("qv_utm_source" in event["attributes"] for event in DECODED)


def test_a_user_has_one_visitor() -> None:
    """All of one userId has one key, so that one partition has it in order; its traits change now and then."""
    keys: dict[str, set[str]] = {}
    levels: dict[str, set[str]] = {}
    for event in DECODED:
        if "User" in event["endpoint"]:
            user = event["endpoint"]["User"]
            keys.setdefault(user["UserId"], set()).add(event["endpoint"]["Id"])
            levels.setdefault(user["UserId"], set()).update(
                user["UserAttributes"]["SubscriptionLevel"]
            )
    assert all(len(ids) == 1 for ids in keys.values())
    assert any(len(seen) > 1 for seen in levels.values())


def test_broken_values_are_not_json() -> None:
    """The share asked for is broken beyond parsing, and nothing else is."""
    events = take(4_000, broken=0.1)
    bad = 0
    for event in events:
        try:
            orjson.loads(event.value)
        except orjson.JSONDecodeError:
            bad += 1
    assert 0.07 < bad / len(events) < 0.13
    assert all(event.key for event in events)


def test_events_without_ids() -> None:
    """The share asked for has neither id, and no key."""
    events = take(4_000, missing_ids=0.1)
    bare = [event for event in events if event.key is None]
    assert 0.07 < len(bare) / len(events) < 0.13
    assert all(
        "Id" not in event["endpoint"] and "User" not in event["endpoint"] for event in decoded(bare)
    )


def test_oversized_events() -> None:
    """The share asked for is JSON of more than Segment's 32,000 bytes a call."""
    events = take(4_000, oversized=0.02)
    large = [event for event in events if len(event.value) > 40_000]
    assert 0.01 < len(large) / len(events) < 0.03
    assert all(len(event["attributes"]["content"]) > 40_000 for event in decoded(large))


@pytest.mark.parametrize("users", [1, 2, 7])
def test_a_handful_of_users_is_enough(users: int) -> None:
    """However few users there are, events go on, of these users alone."""
    assert 1 <= len({event.key for event in take(500, users=users)}) <= users
