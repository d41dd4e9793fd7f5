"""What is played of a trace is what the same records would come to; the clock is virtual, so numbers are exact."""

from __future__ import annotations

from array import array
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import source, virtual_time
from streamer.config import change_live, load_config
from streamer.simulation import (
    READ_BYTES,
    READ_RECORDS,
    Aim,
    Played,
    Point,
    _Play,
    knee,
    play,
    recommend,
)
from streamer.trace import MAX_AT_MS, Trace, parse_trace

CONFIG = load_config(None, environ={"STREAMER_FLUSH__MEMORY_BUDGET": "6.1MB"})
HEAD = b'{"trace":1,"streamer":"0","profile":"default"}'


def record(
    at_ms: int, user: str | None = None, *, size: int = 400, **traits: str
) -> dict[str, Any]:
    """A page view at some time, with an identify call if there is a user."""
    calls = [
        {
            "type": "identify", "profile": user, "user": user, "anonymous": None, "rest": "same", "bytes": size,
            "traits": {name: [14, f"{value:0>12}"] for name, value in traits.items()},
        }
    ] if user else []  # fmt: skip
    return {
        "at": at_ms, "topic": "t", "partition": 0, "bytes": 2000, "key": "k", "calls": calls, "main": ["page", size],
    }  # fmt: skip


def traced(*records: dict[str, Any]) -> Trace:
    return parse_trace([HEAD, *map(orjson.dumps, records)], "a trace")


def played(trace: Trace, request_seconds: float = 0.1, **settings: object) -> Played:
    """Plays under settings that are named without their section."""
    sections = {"suppress_for": "aggregate"}
    values = {f"{sections.get(name, 'flush')}.{name}": value for name, value in settings.items()}
    return play(change_live(CONFIG, values), trace, request_seconds)


def each(interval_ms: int, until_ms: int, **more: Any) -> Trace:
    """One record every so many milliseconds, each of another user."""
    return traced(*(record(at, f"user{at}", **more) for at in range(1, until_ms + 1, interval_ms)))


def test_a_record_is_as_late_as_its_batch_waits_and_its_request_takes() -> None:
    found = played(each(100, 10_000), interval="1s")
    # The first of a batch waits for the interval; the last came just before it closed.
    assert found.lateness(100) == pytest.approx(1.1)
    assert 0.09 < found.lateness(0) < 0.2
    assert found.lateness(50) == pytest.approx(0.65, abs=0.051)
    assert len(found.ages) == found.records == 100
    assert found.triggers.keys() == {"time"}
    assert found.made == 200


@pytest.mark.parametrize("until_ms", [10_000, 10_300, 10_600, 10_900])
def test_rates_dont_depend_on_where_the_trace_ends(until_ms: int) -> None:
    found = played(each(20, until_ms), interval="1s")
    assert found.requests_per_second == pytest.approx(1.0, rel=0.02)
    assert found.calls_per_request == pytest.approx(100, rel=0.04)
    assert found.bytes_per_second == pytest.approx(100 * 401, rel=0.02)


def test_a_longer_interval_makes_fewer_requests_and_later_records() -> None:
    trace = each(50, 60_000)
    rows = [played(trace, interval=interval) for interval in ("500ms", "1s", "2s", "5s")]
    late = [row.lateness(95) for row in rows]
    requests = [row.requests_per_second for row in rows]
    assert late == sorted(late)
    assert requests == sorted(requests, reverse=True)
    assert requests == pytest.approx([1 / 0.55, 1 / 1.05, 1 / 2.05, 1 / 5.05], rel=0.05)


def test_a_full_batch_doesnt_wait() -> None:
    found = played(each(100, 10_000), interval="30s", max_calls=10)  # of five records
    assert found.triggers.keys() == {"calls"}
    assert found.requests_per_second == pytest.approx(2.0, rel=0.02)
    assert found.lateness(95) == pytest.approx(0.5)
    by_bytes = played(each(100, 10_000), interval="30s", max_bytes=40_000)
    assert by_bytes.triggers.keys() == {"bytes"}
    assert by_bytes.calls_per_request == pytest.approx(98, rel=0.03)


def test_what_a_user_says_again_while_a_batch_is_open_merges() -> None:
    trace = traced(*(record(at, "ann", page=str(at)) for at in range(1, 10_000, 100)))
    found = played(trace, interval="1s")
    # One identify call a batch is left of ten; what comes during a request waits, and merges too.
    assert found.merged == pytest.approx(100 - found.requests, abs=1.5)
    assert found.saved == found.merged / found.made
    assert played(trace, interval="250ms").merged < found.merged


def test_what_segment_has_is_left_out_for_as_long_as_is_wanted() -> None:
    same = traced(*(record(at, "ann", plan="free") for at in range(1, 60_000, 5000)))
    assert played(same).suppressed == 0
    assert played(same, suppress_for="1h").suppressed == 11
    assert played(same, suppress_for="7s").suppressed == 6
    other = traced(*(record(at, "ann", plan=str(at)) for at in range(1, 60_000, 5000)))
    assert played(other, suppress_for="1h").suppressed == 0


def test_with_no_slot_free_batches_go_on_filling() -> None:
    trace = each(10, 20_000)
    free = played(trace, 2.0, interval="100ms", concurrency=16)
    one = played(trace, 2.0, interval="100ms", concurrency=1)
    assert one.requests_per_second == pytest.approx(0.5, rel=0.15)  # the open batch counts
    assert one.calls_per_request > 10 * free.calls_per_request
    assert one.lateness(50) > free.lateness(50)


def test_reading_waits_when_memory_is_spent() -> None:
    trace = each(1, 3000)
    found = played(trace, 5.0, interval="100ms", concurrency=1)
    assert found.spent_seconds > 1
    assert found.peak_bytes >= CONFIG.flush.memory_budget
    assert len(found.ages) == 3000  # nothing is lost
    assert not played(trace, 0.05).spent_seconds


def test_playing_changes_nothing_of_the_trace() -> None:
    records = [record(at, f"user{at % 7}", page="1") for at in range(1, 9000, 10)]
    for number, one in enumerate(records):  # what merges has more traits than its contributions
        one["calls"][0]["traits"] = {f"trait{number % 11}": [14, "000000000001"]}
    trace = traced(*records)
    first, other, again = played(trace), played(trace, interval="3s"), played(trace)
    assert first == again
    assert first != other


def test_records_of_which_no_calls_are_made_are_read_and_no_more() -> None:
    rejected = {"at": 5000, "topic": "t", "partition": 1, "bytes": 10, "reason": "not_json"}
    found = played(traced(record(1), rejected))
    assert found.records == 2
    assert len(found.ages) == 1
    assert played(traced(rejected, rejected)).calls == 0


def test_calls_that_site_code_left_are_played_as_they_are() -> None:
    changed = record(1, "ann", plan="free")
    mains = [{"main": kind, "bytes": 300, "decides": kind == "track"} for kind in ("page", "track")]
    del changed["main"]
    changed["calls"] += mains
    without_main = {**record(3000, "bob"), "at": 3000}
    del without_main["main"]
    found = played(traced(changed, without_main))
    assert found.made == 4
    assert found.calls == 4
    assert len(found.ages) == 1  # of the one that decides


def test_each_write_key_has_batches_of_its_own() -> None:
    trace = traced(*({**record(at, size=300), "key": str(at % 3)} for at in range(1, 10_000, 10)))
    found = played(trace)
    assert found.requests_per_second == pytest.approx(3.0, rel=0.05)


def test_a_burst_is_read_in_pieces_while_there_is_memory() -> None:
    burst = traced(*(record(1, f"user{number}") for number in range(20_000)), record(9000))
    found = played(burst, 0.5)
    assert found.peak_bytes < 2 * CONFIG.flush.memory_budget
    assert found.spent_seconds > 1
    assert len(found.ages) == 20_001
    assert found.lateness(50) > 1


def test_what_is_read_at_once_is_what_the_source_reads() -> None:
    assert (READ_RECORDS, READ_BYTES) == (source._MAX_RECORDS, source.FETCH_BYTES)
    large = [{**record(1), "bytes": 100_000} for _ in range(60)]
    burst = traced(*large, *({**one, "partition": 1} for one in large[:5]), record(2000))
    play_of = _Play(CONFIG, burst, 0.1)
    assert [one.partition for one in play_of._readable(0, virtual_time.START)] == [("t", 0)] * 6


def test_of_batches_that_wait_for_their_turn_only_those_that_go_out_are_a_rate() -> None:
    found = played(each(5, 20_000), interval="1s", max_calls=20, max_requests_per_second=5)
    # Twenty batches a second fill, and five may go out.
    assert found.requests_per_second == pytest.approx(5, rel=0.02)
    assert found.behind_seconds == pytest.approx(60, rel=0.05)
    assert not found.keeps_up
    assert found.lateness(100) == pytest.approx(60, rel=0.05)
    enough = played(each(5, 20_000), interval="1s", max_calls=20, max_requests_per_second=50)
    assert enough.keeps_up
    assert enough.requests_per_second == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("at_ms", [3_600_000, 1_796_000_000_000, MAX_AT_MS])
def test_a_lull_takes_no_time(at_ms: int) -> None:
    """Of an hour, of the years since 1970, and of all that a timestamp may say."""
    found = played(traced(record(0, "ann"), record(at_ms, "bob"), record(at_ms, "eve")))
    assert found.seconds == pytest.approx(at_ms / 1000)
    assert list(found.ages) == pytest.approx([1.1] * 3, abs=0.02)


# --- which to take --------------------------------------------------------------------------------


def point(interval: float, late: float, requests: float) -> Point:
    return Point(interval, Played(1.0, ages=array("d", [late]), requests=requests))


def of(interval: float) -> Point:
    """As lateness and requests go where the interval rules."""
    return point(interval, interval + 0.1, 1 / interval)


INTERVALS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


def test_the_knee_is_where_the_curve_bends() -> None:
    bend = knee([of(interval) for interval in INTERVALS])
    assert bend is not None
    assert bend.interval_seconds in {1.0, 2.0}


def test_what_cant_keep_up_is_no_knee() -> None:
    stuck = point(0.1, 50.0, 2.0)
    stuck.played.keeps_up = False
    points = [of(interval) for interval in INTERVALS]
    assert knee([stuck, *points]) == knee(points)
    points[2].played.keeps_up = points[3].played.keeps_up = False
    bend = knee(points)
    assert bend is None or bend.played.keeps_up


@pytest.mark.parametrize(
    "points",
    [
        [point(1, 1, 9), point(2, 2, 5), point(3, 3, 1)],  # a straight line
        [point(1, 0.4, 9), point(2, 0.4, 9), point(3, 0.4, 9)],  # nothing changes
        [point(1, 0.4, 9), point(2, 0.5, 9.0), point(3, 0.6, 8.9)],  # later, and for nothing
        [of(1.0), of(2.0)],
        [],
    ],
)
def test_there_may_be_no_knee(points: list[Point]) -> None:
    assert knee(points) is None


def test_for_a_lateness_the_longest_interval_is_recommended() -> None:
    found = recommend([of(one) for one in INTERVALS], Aim(max_lateness=4.0), of)
    assert found is not None
    assert found.late <= 4.0
    assert found.interval_seconds == pytest.approx(3.9, abs=0.11)
    assert found.interval_seconds == round(found.interval_seconds, 1)


def test_for_requests_the_shortest_interval_is_recommended() -> None:
    found = recommend([of(one) for one in INTERVALS], Aim(max_requests=0.3), of)
    assert found is not None
    assert found.played.requests_per_second <= 0.3
    assert found.interval_seconds == pytest.approx(3.4, abs=0.11)


def test_both_aims_have_to_be_met() -> None:
    points = [of(one) for one in INTERVALS]
    assert recommend(points, Aim(max_lateness=1.0, max_requests=0.5), of) is None
    found = recommend(points, Aim(max_lateness=6.0, max_requests=0.5), of)
    assert found is not None
    assert Aim(max_lateness=6.0, max_requests=0.5).met(found)
    assert found.interval_seconds > 5


def test_both_aims_may_be_met_between_two_intervals() -> None:
    aim = Aim(max_lateness=4.0, max_requests=0.3)
    points = [of(one) for one in INTERVALS]
    assert not any(map(aim.met, points))
    found = recommend(points, aim, of)
    assert found is not None
    assert aim.met(found)


def test_where_batches_are_full_the_shortest_of_what_costs_the_same_is_recommended() -> None:
    points = [*(of(one) for one in (0.5, 1.0)), *(point(one, 2.0, 0.5) for one in (2.0, 5.0, 60.0))]
    assert recommend(points, Aim(max_lateness=3.0), of) == points[2]


def test_what_cant_keep_up_is_never_recommended() -> None:
    stuck = point(1.0, 0.5, 0.1)
    stuck.played.keeps_up = False
    found = recommend([stuck, of(2.0)], Aim(max_requests=1.0), of)
    assert found is not None
    assert found is not stuck
    assert recommend([stuck], Aim(max_lateness=60.0), of) is None


@given(
    st.lists(
        st.tuples(st.floats(0.1, 60), st.floats(0.1, 60), st.floats(0.01, 10)),
        min_size=1,
        max_size=6,
    ),
    st.one_of(st.just(float("inf")), st.floats(0.1, 60)),
    st.one_of(st.just(float("inf")), st.floats(0.01, 10)),
)
def test_what_is_recommended_meets_the_aim_at_no_worse_an_interval_than_any_that_was_tried(
    rows: list[tuple[float, float, float]], late: float, requests: float
) -> None:
    """Whatever the curve: one that isn't monotone, too."""
    points = [point(*row) for row in sorted(rows)]
    aim, lowest, highest = Aim(late, requests), points[0][0], points[-1][0]
    found = recommend(
        points, aim, lambda seconds: point(seconds, min(late, 9.0), min(requests, 9.0))
    )
    good = [one for one in points if aim.met(one)]
    if found is None:
        assert not good
        return
    assert aim.met(found)
    assert lowest <= found.interval_seconds <= highest
    if late < float("inf"):
        fewest = min((one.played.requests_per_second for one in good), default=float("inf"))
        assert found.played.requests_per_second <= 1.002 * fewest
    else:
        assert all(found.interval_seconds <= one.interval_seconds for one in good)


def test_where_everything_is_fine_the_end_of_the_range_is_recommended() -> None:
    points = [of(one) for one in INTERVALS]
    assert recommend(points, Aim(max_lateness=60.0), of) == points[-1]
    assert recommend(points, Aim(max_requests=60.0), of) == points[0]
