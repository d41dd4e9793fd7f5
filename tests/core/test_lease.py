"""A lease never outlasts what the group's coordinator grants, however slow, lost and strange its answers are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamer.core.lease import Lease

SESSION, REBALANCE = 45.0, 30.0


def test_without_an_answer_there_is_none() -> None:
    lease = Lease(SESSION, REBALANCE)
    assert lease.until == float("-inf")
    lease.rebalancing(10.0)
    assert lease.until == float("-inf"), "it may have none of its partitions any more"


def test_it_counts_from_when_the_coordinator_was_asked_and_ends_with_a_rebalance_that_nobody_told_of() -> (
    None
):
    lease = Lease(SESSION, REBALANCE)
    lease.confirm(100.0)
    assert lease.until == 100.0 + REBALANCE
    short = Lease(6.0, REBALANCE)
    short.confirm(100.0)
    assert short.until == 106.0


def test_heartbeats_of_a_rebalance_keep_it_only_as_long_as_the_rebalance_may_wait() -> None:
    lease = Lease(6.0, REBALANCE)
    lease.confirm(100.0)
    for sent in range(102, 140, 2):
        lease.rebalancing(float(sent))
        assert lease.until == min(sent + 6.0, 130.0)


def test_who_is_no_member_has_none_until_it_is_one_again() -> None:
    lease = Lease(SESSION, REBALANCE)
    lease.confirm(100.0)
    lease.lose()
    lease.rebalancing(101.0)
    assert lease.until == float("-inf")
    lease.confirm(102.0)
    assert lease.until == 132.0


@given(
    session=st.integers(6, 60),
    steps=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(0, 20), st.booleans()),
        max_size=20,
    ),
    rebalance_at=st.integers(0, 200),
)
def test_it_is_over_before_the_coordinator_gives_the_partitions_away(
    session: int, steps: list[tuple[int, int, int, bool]], rebalance_at: int
) -> None:
    """Against a coordinator that is played by Kafka's rules.

    A session counts from the last sign of life that reached it, and a rebalance waits so long for who lives.
    """
    lease = Lease(session, REBALANCE)
    gone_at = float("inf")
    now = alive = 0.0
    lease.confirm(0.0)
    for pause, way, back, answered in steps:
        sent = now + pause
        arrives = sent + way
        # The member is given up when its session is over, or with the rebalance that it didn't join.
        gone_at = min(gone_at, alive + session, rebalance_at + REBALANCE)
        assert lease.until <= gone_at
        if arrives >= gone_at:
            if answered:
                lease.lose()
            break
        alive = arrives
        gone_at = rebalance_at + REBALANCE
        now = arrives + back
        if answered and arrives < rebalance_at:
            lease.confirm(sent)
        elif answered:
            lease.rebalancing(sent)
    assert lease.until <= min(alive + session, rebalance_at + REBALANCE)
