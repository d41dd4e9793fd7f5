"""Faults hit when they are due, as often as they should, and the same with the same seed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.mock_segment.faults import KINDS, Fault, FaultError, Faults
from streamer.mock_segment.journal import digest


def hits(faults: Faults, requests: int, key: str | None = None) -> list[bool]:
    return [faults.due(key)[1] is not None for _ in range(requests)]


def test_in_good_health_nothing_happens() -> None:
    faults = Faults()
    assert faults.due(None) == (0, None)
    assert not faults.may_refuse(None)


def test_a_count_and_the_requests_let_pass_first_are_exact() -> None:
    faults = Faults(Fault(kind="drop", after=2, count=3))
    assert hits(faults, 7) == [False, False, True, True, True, False, False]
    assert faults.as_json()["applied"] == [3]


def test_a_window_of_time_opens_and_closes() -> None:
    now = 50.0
    faults = Faults(Fault(kind="drop", start_seconds=10, duration_seconds=5), clock=lambda: now)
    seen = {}
    for now in (50.0, 59.9, 60.0, 64.9, 65.0, 99.0):
        seen[now] = hits(faults, 1) == [True]
    assert seen == {50.0: False, 59.9: False, 60.0: True, 64.9: True, 65.0: False, 99.0: False}


def test_a_partial_outage_hits_one_write_key_alone() -> None:
    faults = Faults(Fault(kind="answer", status=503, key_digest=digest("a")))
    assert hits(faults, 2, digest("a")) == [True, True]
    assert hits(faults, 2, digest("b")) == [False, False]
    assert hits(faults, 1, None) == [False]


def test_the_first_that_is_due_decides_and_delays_add_up() -> None:
    first, second = Fault(kind="answer", status=429, count=1), Fault(kind="drop")
    faults = Faults(Fault(kind="delay", seconds=1), first, Fault(kind="delay", seconds=2), second)
    assert [faults.due(None) for _ in range(2)] == [(3, first), (3, second)]
    assert faults.as_json()["applied"] == [2, 1, 2, 1]


def test_jitter_stays_between_its_bounds_and_varies() -> None:
    faults = Faults(Fault(kind="delay", seconds=1, jitter_seconds=0.5))
    delays = [faults.due(None)[0] for _ in range(50)]
    assert all(1 <= delay < 1.5 for delay in delays)
    assert len(set(delays)) > 40


def test_a_probability_hits_its_share() -> None:
    assert 400 < sum(hits(Faults(Fault(kind="drop", probability=0.5)), 1000)) < 600
    assert sum(hits(Faults(Fault(kind="drop", probability=0)), 100)) == 0


@settings(deadline=None)
@given(seed=st.integers(), probability=st.floats(0, 1), jitter=st.floats(0, 5))
def test_the_same_seed_does_the_same_whatever_else_is_set_behind(
    seed: int, probability: float, jitter: float
) -> None:
    faults = (
        Fault(kind="delay", seconds=0, jitter_seconds=jitter),
        Fault(kind="answer", status=500, probability=probability),
    )
    one, other = Faults(*faults, seed=seed), Faults(*faults, seed=seed)
    more = Faults(*faults, Fault(kind="refuse", probability=0.5), seed=seed)
    wanted = [one.due(None) for _ in range(20)]
    assert [other.due(None) for _ in range(20)] == wanted
    assert [more.due(None) for _ in range(20)] == wanted
    one.set(*faults)
    assert [one.due(None) for _ in range(20)] == wanted


def test_different_seeds_do_different_things() -> None:
    fault = Fault(kind="drop", probability=0.5)
    assert hits(Faults(fault, seed=1), 64) != hits(Faults(fault, seed=2), 64)


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (Fault(kind="refuse"), [True, True]),
        (Fault(kind="refuse", message_id="m1"), [True, False]),
        (Fault(kind="refuse", event="scroll"), [False, True]),
        (Fault(kind="refuse", contains='"colour":"red"'), [True, False]),
        (Fault(kind="refuse", message_id="m1", event="scroll"), [False, False]),
    ],
)
def test_refuse_means_the_calls_that_match_all_that_is_set(
    fault: Fault, wanted: list[bool]
) -> None:
    calls: list[tuple[Any, bytes]] = [
        ({"messageId": "m1", "event": "click"}, b'{"colour":"red"}'),
        ({"messageId": "m2", "event": "scroll"}, b"{}"),
    ]
    assert [fault.matches(*call) for call in calls] == wanted
    assert Fault(kind="refuse", event="x").matches(5, b"5") is False


def test_refuse_counts_only_requests_that_have_a_matching_call() -> None:
    faults = Faults(Fault(kind="refuse", message_id="bad", count=1))
    good, bad = [{"messageId": "good"}], [{"messageId": "good"}, {"messageId": "bad"}]

    def refuses(calls: list[dict[str, str]]) -> bool:
        return faults.refuses(None, calls, [b""] * len(calls))

    assert faults.may_refuse(None)
    assert [refuses(good), refuses(bad), refuses(bad)] == [False, True, False]
    assert not faults.may_refuse(None)


def test_setting_replaces_and_clearing_removes() -> None:
    faults = Faults(Fault(kind="drop", count=1))
    assert hits(faults, 2) == [True, False]
    faults.set(Fault(kind="drop", count=1))
    assert hits(faults, 2) == [True, False]
    faults.set(Fault(kind="drop"))
    faults.clear()
    assert hits(faults, 1) == [False]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("drop", Fault(kind="drop")),
        ("answer:status=529,count=10", Fault(kind="answer", status=529, count=10)),
        (
            "answer:status=429,retry_after_seconds=1.5,retry_after_form=date,probability=0.5",
            Fault(
                kind="answer",
                status=429,
                retry_after_seconds=1.5,
                retry_after_form="date",
                probability=0.5,
            ),
        ),
        ("drop:accept=true", Fault(kind="drop", accept=True)),
        ("refuse:event=5", Fault(kind="refuse", event="5")),
        ("answer:body=html,status=200", Fault(kind="answer", body="html", status=200)),
        ("drop:write_key=secret", Fault(kind="drop", key_digest=digest("secret"))),
    ],
)
def test_reads_a_fault_from_a_command_line(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "kind of a fault must be one of delay, answer"),
        ("explode", "kind of a fault must be one of delay, answer"),
        ("answer:status", "'status' in a fault must be name=value"),
        ("answer:statu=5", "no option statu; it has kind, status"),
        ("answer:status=1000", "status of a fault must be from 200 to 599, and 1000 isn't"),
        ("answer:status=abc", "status of a fault must be of type int, and 'abc' isn't"),
        ("answer:body=xml", "body of a fault must be json, html or empty"),
        ("answer:retry_after_form=epoch", "retry_after_form of a fault must be seconds or date"),
        ("drop:status=500", "a fault drop has no status; it has accept"),
        ("drop:probability=2", "probability of a fault must be from 0 to 1"),
        ("drop:count=-1", "count of a fault must be 0 or more"),
        ("drop:count=true", "count of a fault must be of type int"),
        ("drop:accept=1", "accept of a fault must be of type bool"),
        ("delay:seconds=long", "seconds of a fault must be of type float"),
    ],
)
def test_says_what_is_wrong_with_a_fault(text: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        Fault.parse(text)


@pytest.mark.parametrize("document", [None, [], "drop", {}, {"kind": "drop", "write_key": 5}])
def test_json_that_is_no_fault_is_refused(document: object) -> None:
    with pytest.raises(FaultError):
        Fault.from_json(document)


@pytest.mark.parametrize("kind", KINDS)
def test_json_of_a_fault_makes_the_same_fault_and_shows_no_write_key(kind: str) -> None:
    fault = Fault.from_json({"kind": kind, "write_key": "secret", "count": 2})
    assert Fault.from_json(fault.as_json()) == fault
    assert "secret" not in f"{fault!r}{fault.as_json()}"


def test_every_option_is_documented() -> None:
    text = Fault.__doc__ or ""
    assert [field.name for field in fields(Fault) if f"    {field.name}: " not in text] == []
