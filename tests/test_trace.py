"""What is recorded and played does to lanes what the records themselves do, and says nothing of what was in them."""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.test_aggregate import contribution
from reference.strategies import hostile_records, json_values
from streamer.config import Config, load_config
from streamer.core.account import Account
from streamer.core.budget import Budget
from streamer.core.changed import take_back
from streamer.core.model import (
    Changed,
    Contribution,
    Filtered,
    Fixed,
    Formatted,
    Main,
    Reason,
    Reject,
)
from streamer.core.offsets import Chunk
from streamer.core.transform import PROFILES, Transform, keyed
from streamer.demo.events import GROUPS, generate
from streamer.errors import StartError
from streamer.pipeline import make_digests, make_lane, make_transform
from streamer.trace import (
    STANDARD_OUTPUT,
    Recorder,
    Trace,
    parse_trace,
    read_trace,
    trace_file,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = "a-write-key-of-thirty-two-chars-0"
PARTITION = ("events", 2)
START_MS = 1_767_225_600_000


def config(**values: Any) -> Config:
    return load_config(
        None, {key.replace("__", "."): value for key, value in values.items()}, environ={}
    )


def recorded(
    results: Sequence[Formatted | Changed | Reject | Filtered],
    profile: str = "default",
    recorder: Recorder | None = None,
) -> list[bytes]:
    recorder = recorder or Recorder()
    return [
        recorder.head(profile),
        *(
            recorder.line(PARTITION, START_MS + number, 1000, KEY, result)
            for number, result in enumerate(results)
        ),
    ]


def played(lines: list[bytes]) -> list[Formatted | Changed | None]:
    trace = parse_trace(lines, "trace")
    return [arrival.made.calls() if arrival.made else None for arrival in trace.arrivals]


# --- a lane can't tell them apart -----------------------------------------------------------------


class Outcome(NamedTuple):
    """What a lane makes of some records."""

    merged: dict[str, int]
    suppressed: dict[str, int]
    batches: list[list[tuple[int, int]]]
    bodies: list[int]


def through_a_lane(
    chosen: Config, results: Sequence[Any], *, every: int, behind: int, gap: float = 1.0
) -> Outcome:
    """Takes records in, and every some of them closes the batch and settles all but the last few."""
    account = Account()
    ledger, share = account.ledger(), Budget(10**9).share()
    lane = make_lane(chosen, KEY, ledger, share, make_digests(chosen, share))
    batches, bodies = [], []
    now = 0.0

    def settle(keep: int) -> None:
        while len(lane.ready) > keep:
            batch = lane.ready.popleft()
            batches.append(list(zip(batch.types, map(len, batch.calls), strict=True)))
            bodies.append(batch.size)
            lane.settle(batch, now)

    for number, result in enumerate(results):
        now += gap
        chunk = Chunk(PARTITION, [number], [START_MS], [None], read_at=now)
        if isinstance(result, Formatted):
            lane.add(result, chunk, 0)
        elif isinstance(result, Changed):
            lane.add_changed(result, chunk, 0)
        if number % every == 0:
            lane.close("time", now)
            settle(behind)
    while not lane.idle:
        lane.close("time", now)
        settle(0)
    return Outcome(account.merged, account.suppressed, batches, bodies)


def changed(transform: Transform, value: bytes, number: int) -> Changed | Reject | Filtered | Any:
    """The record's calls as site code leaves them: one is there twice, one is gone, traits and a context are added."""
    made = transform.format(value, START_MS)
    if not isinstance(made, Formatted):
        return made
    calls = made.calls()
    ids = frozenset(call["messageId"] for call in calls)
    calls[0]["context"] = {"campaign": f"number {number // 7}"}
    if number % 3 == 0:
        calls.append(
            {**calls[0], "traits": {"added": number % 5, "Day of the visit": f"day {number}"}}
        )
    if number % 4 == 0:
        del calls[-1]
    return take_back(calls, ids, keyed(KEY), keyed(KEY))


@given(
    seed=st.integers(0, 10_000),
    users=st.sampled_from([3, 20, 100]),
    merge=st.booleans(),
    suppress_for=st.sampled_from(["0s", "20s", "1h"]),
    ignored=st.sampled_from(
        [(), ("pageViews",), ("lastPageSession", "pageViews", "Day of the visit")]
    ),
    max_bytes=st.sampled_from(["40KB", "475KB"]),
    every=st.integers(1, 60),
    behind=st.integers(0, 3),
    by_site_code=st.booleans(),
    profile=st.sampled_from(["default", "default", "altis"]),
)
@example(
    seed=1, users=3, merge=True, suppress_for="1h", max_bytes="475KB", every=1, behind=0, by_site_code=True,
    profile="default", ignored=("lastPageSession", "pageViews", "Day of the visit"),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_lane_makes_the_same_of_it(
    seed: int, users: int, merge: bool, suppress_for: str, ignored: tuple[str, ...], max_bytes: str,
    every: int, behind: int, by_site_code: bool, profile: str,
) -> None:  # fmt: skip
    """As much merges and is left out, and the calls of every batch are as long, byte for byte."""
    chosen = config(
        transform__profile=profile, groups=GROUPS, aggregate__identify=merge,
        aggregate__suppress_for=suppress_for, aggregate__ignore_traits=list(ignored),
        flush__max_bytes=max_bytes, flush__memory_budget="100MB",
    )  # fmt: skip
    transform = make_transform(chosen, KEY)
    values = [event.value for event in islice(generate(seed, users, broken=0.02), 150)]

    def results() -> list[Any]:
        if by_site_code and PROFILES[profile].mends:
            return [changed(transform, value, number) for number, value in enumerate(values)]
        return [transform.format(value, START_MS) for value in values]

    lines = recorded(results(), profile, Recorder(frozenset(ignored)))
    real = through_a_lane(chosen, results(), every=every, behind=behind)
    assert profile == "altis" or sum(map(len, real.batches)) > 100
    assert through_a_lane(chosen, played(lines), every=every, behind=behind) == real


def test_something_merges_and_is_left_out_in_that() -> None:
    chosen = config(
        groups=GROUPS,
        aggregate__suppress_for="1h",
        aggregate__ignore_traits=["pageViews", "lastPageSession"],
    )
    transform = make_transform(chosen, KEY)
    results = [transform.format(event.value, START_MS) for event in islice(generate(1, 20), 150)]
    real = through_a_lane(chosen, results, every=8, behind=0)
    assert real.merged["identify"] > 10
    assert real.merged["group"] > 10
    assert real.suppressed["identify"] > 10
    assert real.suppressed["group"] > 10


@given(st.lists(hostile_records(boundless=False), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_whatever_records_say_is_played_alike(values: list[bytes]) -> None:
    """As much merges; what a call is longer by is known: a value or a name that is shorter than its digest."""
    chosen = config()
    transform = make_transform(chosen, KEY)

    def results() -> list[Any]:
        return [transform.format(value, START_MS) for value in [*values, *values]]

    real = through_a_lane(chosen, results(), every=3, behind=1)
    again = through_a_lane(chosen, played(recorded(results())), every=3, behind=1)
    assert again.merged == real.merged
    most = 24 * sum(
        len(one.traits)
        for made in results()
        if isinstance(made, Formatted)
        for one in made.contributions
    )
    for ours, theirs in zip(again.batches, real.batches, strict=True):
        for (kind, size), (other, length) in zip(ours, theirs, strict=True):
            assert kind == other
            assert length - most <= size <= length + most


@given(st.lists(json_values, min_size=1, max_size=30, unique_by=orjson.dumps))
@example([*range(10), *range(10, 100), "", [], {}, *range(-9, 0)])
def test_values_stay_as_different_and_as_long_as_they_were(values: list[Any]) -> None:
    """Only of two bytes are there more values than numbers, and none is taken for another."""
    results = [
        Formatted((contribution({"one": value}),), "track", b"{}") for value in [*values, *values]
    ]
    tokens = []
    for made, value in zip(played(recorded(results)), [*values, *values], strict=True):
        assert isinstance(made, Formatted)
        token = orjson.dumps(made.contributions[0].traits["one"])
        tokens.append(token)
        length = len(orjson.dumps(value))
        assert len(token) == length or (length == 2 and len(token) == 14)
    assert tokens[: len(values)] == tokens[len(values) :]
    assert len(set(tokens)) == len(values)


def test_profiles_pairs_and_write_keys_stay_apart_and_together() -> None:
    calls = (
        contribution({"a": 1}, user="u1", anonymous="a1"),
        contribution({"a": 1}, user="u1", anonymous="a2"),
        contribution({"a": 1}, user=None, anonymous="u1"),
        contribution({"a": 1}, group="g1"),
        contribution({"a": 1}, group="g2"),
    )
    (made,) = played(recorded([Formatted(calls, "page", b"{}")]))
    assert isinstance(made, Formatted)
    profiles = [one.profile for one in made.contributions]
    assert profiles[0] == profiles[1] == profiles[2]
    assert made.contributions[0].pair != made.contributions[1].pair
    assert made.contributions[2].pair == (None, made.contributions[0].pair[0])
    assert len(set(profiles[3:])) == 2
    assert {profile[0] for profile in profiles[3:]} == {profiles[0]}
    lines = [recorded([])[0]]
    recorder = Recorder()
    lines += [
        recorder.line(PARTITION, START_MS, 1, key, Formatted((), "page", b"{}"))
        for key in ("one", "two", "one")
    ]
    first, second, third = parse_trace(lines, "trace").arrivals
    assert first.write_key == third.write_key != second.write_key


def test_each_time_a_record_is_played_its_calls_are_new() -> None:
    lines = recorded([Formatted((contribution({"a": 1}),), "page", b"{}")])
    (arrival,) = parse_trace(lines, "trace").arrivals
    assert arrival.made is not None
    first, second = arrival.made.calls(), arrival.made.calls()
    assert isinstance(first, Formatted)
    assert isinstance(second, Formatted)
    first.contributions[0].hash.update(b"merged")
    assert first.contributions[0].render() != second.contributions[0].render()


def test_site_codes_calls_and_the_profile_altis_are_played_as_they_are() -> None:
    fixed = Fixed({"userId": "u", "groupId": "g"}, "group", b"{" + b" " * 98 + b"}")
    taken = Changed((Main("page", b"x" * 50, decides=False), fixed, Main("track", b"y" * 60, True)))
    (made,) = played(recorded([taken], "altis"))
    assert isinstance(made, Changed)
    first, second, third = made.taken
    assert (first, third) == (Main("page", b"x" * 50, False), Main("track", b"x" * 60, True))
    assert isinstance(second, Fixed)
    assert (second.type, len(second.serialised)) == ("group", 100)
    assert isinstance(second.profile, tuple)


# --- what isn't in it -----------------------------------------------------------------------------


def strings(value: Any) -> set[str]:
    """Every text in an event, and every name but those of traits, which stay."""
    if isinstance(value, dict):
        return set().union(*map(strings, value.values()), set())
    if isinstance(value, list):
        return set().union(*map(strings, value), set())
    return {value} if isinstance(value, str) else set()


def test_nothing_that_visitors_are_or_do_is_in_a_trace() -> None:
    """No id, no write key and no value of an event; sizes, times of arrival, and names of traits are."""
    chosen = config(groups=GROUPS)
    transform = make_transform(chosen, KEY)
    events = list(islice(generate(3, 30), 300))
    trace = b"\n".join(
        recorded([transform.format(event.value, event.timestamp_ms) for event in events])
    ).decode()
    said = set().union(*(strings(orjson.loads(event.value)) for event in events))
    # What a digest or a number may be by chance, or the trace says of every call, proves nothing.
    telling = {
        text
        for text in said
        if len(text) > 3 and re.search(r"[^0-9a-f.-]", text) and text not in {"page", "pageView"}
    }
    assert len(telling) > 300
    assert [text for text in telling if text in trace] == []
    assert KEY not in trace
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", trace)
    assert "pageViews" in trace


def test_a_name_that_may_be_a_visitors_is_hidden_unless_the_settings_have_it() -> None:
    """A digest as long as the name; it is the same in the whole trace."""
    names = ("ada@example.com", "Last Visit", "x" * 65, "ümlaut", "plan")
    made = Formatted((contribution(dict.fromkeys(names, 1)),), "page", b"{}")
    lines = recorded([made, made], recorder=Recorder(frozenset({"Last Visit"})))
    first, second = (list(orjson.loads(line)["calls"][0]["traits"]) for line in lines[1:])
    assert first == second
    assert [name in first for name in names] == [False, True, False, False, True]
    assert [len(orjson.dumps(name)) for name in first] == [17, 12, 67, 14, 6]


def test_two_traces_have_no_digest_in_common() -> None:
    made = Formatted((contribution({"plan": "a long enough value"}),), "page", b"{}")
    digests = [set(re.findall(rb'"[0-9a-f]{12}"', recorded([made])[1])) for _ in range(2)]
    assert len(digests[0]) > 3
    assert digests[0] & digests[1] == set()
    assert "key" not in repr(Recorder())


# --- reading --------------------------------------------------------------------------------------


def test_records_come_by_their_timestamps_and_those_without_calls_say_why() -> None:
    recorder = Recorder()
    lines = [
        recorder.head("default"),
        recorder.line(PARTITION, START_MS + 1500, 7, "", Reject(Reason.NOT_JSON, "the detail")),
        recorder.line(PARTITION, START_MS, 5, KEY, Formatted((), "page", b"{}")),
    ]
    assert b"detail" not in lines[1]
    trace = parse_trace(lines, "trace")
    assert (trace.profile, trace.seconds, trace.size) == ("default", 1.5, 12)
    assert [(one.at_ms, one.reason) for one in trace.arrivals] == [
        (START_MS, ""),
        (START_MS + 1500, "not_json"),
    ]
    assert trace.arrivals[1].made is None
    assert trace.arrivals[0].partition == PARTITION
    assert Trace("default", []).seconds == 0.0


GOOD: dict[str, Any] = {
    "at": 1, "topic": "t", "partition": 0, "bytes": 5, "key": "k", "main": ["page", 9],
    "calls": [{
        "type": "identify", "profile": "p", "user": None, "anonymous": "p", "rest": "r", "bytes": 9,
        "traits": {"a": [1, "d"]},
    }],
}  # fmt: skip


def broken(**changes: Any) -> bytes:
    return orjson.dumps({**GOOD, **changes})


def broken_call(**changes: Any) -> bytes:
    return broken(calls=[{**GOOD["calls"][0], **changes}])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nothing",
        b"[]",
        b"{}",
        broken()[:-20],
        broken(at="soon"),
        broken(at="12"),
        broken(at=-1),
        broken(at=1e300),
        broken(at=1_796_000_000_000_000_000),
        broken(main=["page", 32_001]),
        broken(main=["identify", 5]),
        broken_call(type="page"),
        broken_call(type="group"),
        broken_call(profile=None),
        broken_call(user={"a": 1}),
        broken_call(bytes=32_001),
        broken(bytes=-1),
        broken(bytes=10**12),
        broken(bytes="5"),
        broken(main=["pages", 5]),
        broken(main=["page", 10**10]),
        broken(main=["page"]),
        broken(calls=7),
        broken_call(type="page?"),
        broken_call(bytes=10**12),
        broken_call(profile=["p"]),
        broken_call(traits=[]),
        broken_call(traits={"a": [1]}),
        broken_call(traits={"a": [1, ""]}),
        broken_call(traits={"a": [1, 5]}),
        broken(calls=[{"main": "identity", "bytes": 5, "decides": True}]),
        broken(calls=[{"type": "group", "profile": "p", "fixed": 10**12}]),
        orjson.dumps({"at": 1, "topic": "t", "partition": 0, "bytes": 5}),
    ],
)
def test_what_is_no_record_is_said_with_file_and_line(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "trace.ndjson"
    file.write_bytes(b"\n".join([Recorder().head("default"), broken(), line, broken()]) + b"\n")
    with pytest.raises(StartError, match=rf"^{re.escape(str(file))}, line 3: not a record"):
        read_trace(file)


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"", "is no trace"),
        (b'{"event_type":"pageView"}', "is no trace"),
        (b"[1]", "is no trace"),
        (b'{"trace":1}', "is no trace"),
        (b'{"trace":2,"profile":"default"}', "of form 2, and this version reads form 1"),
        (b'{"trace":1,"profile":"php"}', "with the profile 'php', which isn't known"),
        (b'{"trace":1,"profile":"default"}', "has no records"),
    ],
)
def test_what_is_no_trace_is_said(first: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.ndjson"
    file.write_bytes(first)
    with pytest.raises(StartError, match=re.escape(says)) as caught:
        read_trace(file)
    assert str(file) in str(caught.value)


def test_nothing_of_a_hostile_trace_reaches_a_terminal_as_it_is(tmp_path: Path) -> None:
    clear = "\x1b[2J"
    heads = [{"trace": clear, "profile": "default"}, {"trace": 1, "profile": clear * 100}]
    lines = [orjson.dumps(one) for one in heads]
    lines += [
        b"\n".join([Recorder().head("default"), line])
        for line in (
            broken(at=clear),
            broken(reason=clear, calls=[{"type": clear}]),
            broken(main=[clear, 1]),
        )
    ]
    for number, text in enumerate(lines):
        file = tmp_path / f"{clear}{number}"
        file.write_bytes(text)
        with pytest.raises(StartError) as caught:
            read_trace(file)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


def test_a_file_without_lines_isnt_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "trace.ndjson"
    with file.open("wb") as opened:
        opened.truncate(10**12)  # which takes no place on disk
    with pytest.raises(StartError, match="line 1 is longer than any of a trace"):
        read_trace(file)


def test_a_full_disk_behind_standard_output_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        with trace_file(STANDARD_OUTPUT, force=False) as opened:
            assert opened is not None
            opened.write(b"a line")

    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=full))
        with pytest.raises(StartError, match="'-': can't be written: No space left on device"):
            write()


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="missing can't be read: No such file"):
        read_trace(tmp_path / "missing")


def test_the_good_line_of_these_is_one() -> None:
    (made,) = played([Recorder().head("default"), broken()])
    assert isinstance(made, Formatted)
    (one,) = made.contributions
    assert isinstance(one, Contribution)
    assert one.traits == {"a": 0}
