"""Who waits longest is found as a search through all of them would find it, and places that were left don't pile up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.core.queues import NEVER, Queues

KINDS = ("flowing", "held")

steps = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from([*KINDS, None]),
        st.sampled_from([0.0, 1.0, 2.0, 3.0, NEVER]),
    ),
    max_size=60,
)


@pytest.mark.no_cover
@given(steps, st.lists(st.floats(0, 4), max_size=10))
def test_it_is_a_search_through_all_places(
    puts: list[tuple[int, str | None, float]], times: list[float]
) -> None:
    queues: Queues[str, int] = Queues(KINDS)
    places: dict[int, tuple[str | None, float]] = {}
    pending = sorted(times)
    for number, (who, kind, since) in enumerate(puts):
        queues.put(who, kind, since)
        places[who] = kind, since
        if pending and number % 6 == 5:
            now = pending.pop(0)
            wanted = {one for one, (k, s) in places.items() if k is None and s <= now}
            assert set(queues.due(now)) == wanted
            for one in wanted:
                del places[one]
        for queue in (*KINDS, None):
            there = {one: s for one, (k, s) in places.items() if k == queue and s < NEVER}
            head = queues.head(queue)
            assert (head is not None) == bool(there)
            if head is not None:
                assert head.since == there[head.who] == min(there.values())


def test_places_that_were_left_dont_pile_up() -> None:
    queues: Queues[str, int] = Queues(KINDS)
    for number in range(10_000):
        queues.put(number % 10, "held", 1e6 - number)
        assert len(queues) <= 200
    assert [head and head.who for head in map(queues.head, KINDS)] == [None, 9]


def test_nobody_is_left_when_all_are_forgotten() -> None:
    queues: Queues[str, int] = Queues(KINDS)
    queues.put(1, "held", 1.0)
    queues.put(2, None, 1.0)
    queues.clear()
    assert len(queues) == 0
    assert list(queues.due(5.0)) == []
    assert queues.head("held") is None


def test_who_is_put_back_in_the_same_place_keeps_its_turn() -> None:
    queues: Queues[str, int] = Queues(KINDS)
    queues.put(1, "held", 1.0)
    queues.put(2, "held", 1.0)
    queues.put(1, "held", 1.0)
    head = queues.head("held")
    assert head is not None
    assert head.who == 1
