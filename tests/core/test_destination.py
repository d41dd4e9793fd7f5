"""A destination is asked when it may be asked again, and not before."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from streamer.core.destination import (
    FAILURES_TO_BACK_OFF,
    FIRST_BACKOFF,
    MAX_BACKOFF,
    MAX_PAUSE,
    PROBE_INTERVAL,
    Destination,
    Permit,
    State,
    backoff,
)
from streamer.core.model import Delivered, Misconfigured, Outcome, Refused, Retry

OK = Delivered(200)
FAILURE = Retry("server_error", "503", 503)
REFUSED = Refused(400, "no")
UNAUTHORIZED = Misconfigured(401, "who are you")


def too_fast(after: float) -> Retry:
    return Retry("rate_limited", "429", 429, after)


def attempt(destination: Destination, outcome: Outcome, now: float, jitter: float = 1.0) -> bool:
    """One attempt from its beginning to its end; whether the state changed."""
    assert destination.may_start(now)
    return destination.finish(destination.start(), outcome, now, jitter)


def held(state: State, now: float = 0.0) -> Destination:
    """A destination in a state."""
    destination = Destination()
    match state:
        case State.PAUSED:
            attempt(destination, too_fast(40.0), now)
        case State.MISCONFIGURED:
            attempt(destination, UNAUTHORIZED, now)
        case State.BACKING_OFF:
            for _ in range(FAILURES_TO_BACK_OFF):
                attempt(destination, FAILURE, now)
        case State.FLOWING:
            pass
    assert destination.state is state
    return destination


HELD = [State.PAUSED, State.BACKING_OFF, State.MISCONFIGURED]


def test_any_number_of_attempts_start_side_by_side_while_it_flows() -> None:
    destination = Destination()
    permits = [destination.start() for _ in range(20)]
    assert destination.may_start(0.0)
    assert destination.attempts == 20
    assert not any(permit.probe for permit in permits)
    for permit in permits:
        assert not destination.finish(permit, OK, 1.0, 0.5)
    assert destination.attempts == 0


def test_two_failures_hold_nothing_and_the_third_in_a_row_does() -> None:
    destination = Destination()
    assert not attempt(destination, FAILURE, 1.0)
    assert not attempt(destination, FAILURE, 2.0)
    assert not attempt(destination, OK, 3.0)
    assert not attempt(destination, FAILURE, 4.0)
    assert not attempt(destination, FAILURE, 5.0)
    assert attempt(destination, FAILURE, 6.0)
    assert (destination.state, destination.since) == (State.BACKING_OFF, 6.0)
    assert (destination.reason, destination.until) == ("503", 6.0 + FIRST_BACKOFF)


def test_each_failed_probe_doubles_the_wait_up_to_a_minute() -> None:
    destination = held(State.BACKING_OFF)
    waits = []
    for _ in range(10):
        now = destination.until
        assert not attempt(destination, FAILURE, now)
        waits.append(destination.until - now)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert destination.state is State.BACKING_OFF
    assert destination.since == 0.0


def test_requests_that_fail_together_back_off_once() -> None:
    destination = Destination()
    permits = [destination.start() for _ in range(8)]
    changes = [destination.finish(permit, FAILURE, 1.0, 1.0) for permit in permits]
    assert changes == [False, False, True, False, False, False, False, False]
    assert destination.until == 1.0 + FIRST_BACKOFF


def test_retry_after_pauses_for_as_long_as_it_says() -> None:
    destination = Destination()
    assert attempt(destination, too_fast(12.5), 100.0)
    assert (destination.state, destination.reason) == (State.PAUSED, "429")
    assert not destination.may_start(112.4 + FIRST_BACKOFF)
    assert destination.may_start(112.5 + FIRST_BACKOFF)


def test_who_was_told_the_same_does_not_come_back_together() -> None:
    destinations = [Destination(), Destination()]
    for destination, jitter in zip(destinations, (0.0, 0.6), strict=True):
        attempt(destination, too_fast(10.0), 0.0, jitter)
    assert [destination.until for destination in destinations] == [10.0, 10.3]


@pytest.mark.parametrize("state", [State.FLOWING, State.PAUSED, State.BACKING_OFF])
def test_no_pause_is_longer_than_five_minutes(state: State) -> None:
    destination = held(state)
    attempt(destination, too_fast(86_400.0), 100.0)
    assert destination.state is State.PAUSED
    assert destination.until == 100.0 + MAX_PAUSE + FIRST_BACKOFF == 400.5


def test_of_several_pauses_the_latest_end_counts() -> None:
    destination = Destination()
    first, second = destination.start(), destination.start()
    assert destination.finish(first, too_fast(60.0), 0.0, 0.5)
    assert not destination.finish(second, too_fast(5.0), 1.0, 0.5)
    assert destination.until == 60.25


@pytest.mark.parametrize("state", HELD)
def test_while_it_is_held_one_attempt_at_a_time_is_made(state: State) -> None:
    destination = held(state)
    now = destination.until
    assert not destination.may_start(now - 0.001)
    assert destination.may_start(now)
    permit = destination.start()
    assert permit.probe
    assert not destination.may_start(now + 1000.0)
    assert not destination.finish(permit, REFUSED, now + 1.0, 0.5)
    assert destination.may_start(now + 1.0)
    assert destination.state is state


@pytest.mark.parametrize("state", HELD)
def test_an_attempt_that_is_cancelled_makes_room_for_the_next(state: State) -> None:
    destination = held(state)
    destination.start()
    destination.abandon()
    assert destination.state is state
    assert destination.may_start(destination.until)


@pytest.mark.parametrize("state", HELD)
def test_what_flows_again_starts_with_few_requests(state: State) -> None:
    """One, then two, then one more beside the others for each success: twice as many each round."""
    destination = held(state)
    now = destination.until
    rounds = []
    for _ in range(5):
        permits: list[Permit] = []
        while destination.may_start(now) and len(permits) < 100:
            permits.append(destination.start())
        for permit in permits:
            destination.finish(permit, OK, now, 0.5)
        rounds.append(len(permits))
    assert rounds == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("state", HELD)
def test_a_success_of_a_probe_lets_it_flow_again(state: State) -> None:
    destination = held(state)
    now = destination.until
    assert attempt(destination, OK, now)
    assert (destination.state, destination.since, destination.reason) == (State.FLOWING, now, "")
    destination.start()
    assert destination.may_start(now)
    assert not attempt(destination, FAILURE, now)  # counting failures began anew


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(too_fast(60.0), State.PAUSED), (UNAUTHORIZED, State.MISCONFIGURED)],
)
def test_a_success_on_its_way_before_does_not_lift_a_pause(outcome: Outcome, state: State) -> None:
    destination = Destination()
    early, late = destination.start(), destination.start()
    assert destination.finish(early, outcome, 1.0, 0.5)
    until = destination.until
    assert not destination.finish(late, OK, 2.0, 0.5)
    assert (destination.state, destination.until) == (state, until)
    assert not destination.may_start(until - 0.001)


def test_a_success_on_its_way_before_ends_backing_off() -> None:
    destination = Destination()
    permits = [destination.start() for _ in range(FAILURES_TO_BACK_OFF + 1)]
    for permit in permits[1:]:
        destination.finish(permit, FAILURE, 1.0, 1.0)
    assert not destination.flowing
    assert destination.finish(permits[0], OK, 1.1, 1.0)
    assert destination.flowing


def test_a_failure_on_its_way_before_does_not_shorten_a_pause() -> None:
    destination = Destination()
    permits = [destination.start() for _ in range(5)]
    destination.finish(permits[0], too_fast(60.0), 1.0, 1.0)
    for permit in permits[1:]:
        assert not destination.finish(permit, FAILURE, 2.0, 1.0)
    assert (destination.state, destination.until) == (State.PAUSED, 61.0 + FIRST_BACKOFF)


def test_a_failure_once_the_pause_is_over_begins_backing_off() -> None:
    destination = held(State.PAUSED)
    assert attempt(destination, FAILURE, 41.0)
    assert (destination.state, destination.until) == (State.BACKING_OFF, 41.0 + FIRST_BACKOFF)


def test_a_refused_key_is_probed_every_thirty_seconds() -> None:
    destination = Destination()
    assert attempt(destination, UNAUTHORIZED, 10.0)
    assert destination.reason == "401: who are you"
    for outcome in (UNAUTHORIZED, FAILURE, UNAUTHORIZED):
        before = destination.until
        assert not attempt(destination, outcome, before)
        assert destination.until == before + PROBE_INTERVAL
        assert destination.reason == "401: who are you"
    assert destination.since == 10.0


def test_delivery_can_find_a_destination_at_fault() -> None:
    destination = Destination()
    assert destination.misconfigured("refuses call by call", 5.0)
    assert not destination.misconfigured("still refuses", 6.0)
    assert (destination.reason, destination.until) == ("still refuses", 36.0)


@pytest.mark.parametrize("after", [0.0, 0.1])
def test_come_back_now_is_no_leave_to_ask_without_end(after: float) -> None:
    destination = Destination()
    destination.finish(destination.start(), too_fast(after), 10.0, jitter=0.8)
    assert not destination.may_start(10.39 + after)
    assert destination.may_start(10.4 + after)


def test_retry_after_is_honoured_while_a_person_has_to_mend_the_key() -> None:
    destination = held(State.MISCONFIGURED)
    assert not attempt(destination, too_fast(120.0), 30.0)
    assert (destination.state, destination.reason) == (State.MISCONFIGURED, "401: who are you")
    assert destination.until == 150.0 + FIRST_BACKOFF
    assert not attempt(destination, too_fast(1.0), 160.0)
    assert destination.until == 160.0 + PROBE_INTERVAL


def test_a_key_that_is_refused_during_a_pause_is_not_asked_before_its_end() -> None:
    destination = Destination()
    early, late = destination.start(), destination.start()
    destination.finish(early, too_fast(200.0), 0.0, 0.5)
    assert destination.finish(late, UNAUTHORIZED, 1.0, 0.5)
    assert (destination.state, destination.until) == (State.MISCONFIGURED, 200.25)


@pytest.mark.parametrize(
    ("tries", "most"), [(1, 0.5), (2, 1), (3, 2), (7, 32), (8, 60), (20, 60), (10**9, 60)]
)
def test_the_longest_backoff_doubles_up_to_a_minute(tries: int, most: float) -> None:
    assert backoff(tries, 1.0) == most
    assert backoff(tries, 0.0) == 0.0


@settings(deadline=None)
@given(st.integers(1, 1_000), st.floats(0, 1))
def test_backoff_is_spread_over_all_of_its_length(tries: int, jitter: float) -> None:
    assert 0.0 <= backoff(tries, jitter) <= min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** (tries - 1))
    assert backoff(tries, jitter) == jitter * backoff(tries, 1.0)


# --- any outcomes in any order, in virtual time -----------------------------------------------------

outcomes = st.one_of(
    st.just(OK),
    st.just(FAILURE),
    st.just(REFUSED),
    st.just(UNAUTHORIZED),
    st.sampled_from([0.0, 1.0, 20.0, 31.0, 299.0, 300.0, 3600.0]).map(too_fast),
)


@dataclass
class Running:
    """An attempt: its permit, and how often the state had changed when it began."""

    permit: Permit
    changes: int


class AnyOutcomes(RuleBasedStateMachine):
    """Attempts that begin when they may and end in any order, against the drawing in the docstring."""

    @initialize()
    def begin(self) -> None:
        self.now = 1000.0
        self.destination = Destination()
        self.running: list[Running] = []
        self.state = State.FLOWING
        self.since = 0.0
        self.changes = 0
        self.most = float("inf")
        self.failures = 0
        self.not_before = 0.0  # what Retry-After and refused keys have asked for

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 7.0, 30.0, 60.0, 300.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.destination.may_start(self.now))
    @rule(count=st.integers(1, 4))
    def start(self, count: int) -> None:
        for _ in range(count):
            if self.destination.may_start(self.now):
                assert self.now >= self.not_before
                permit = self.destination.start()
                assert permit.probe == (self.state is not State.FLOWING)
                self.running.append(Running(permit, self.changes))

    @precondition(lambda self: self.state is not State.FLOWING and not self.running)
    @rule()
    def start_as_soon_as_may_be(self) -> None:
        """A held destination isn't held for ever."""
        self.now = max(self.now, self.destination.until)
        assert self.destination.may_start(self.now)
        self.start(2)
        assert len(self.running) == 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.destination.abandon()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=outcomes, jitter=st.floats(0, 1))
    def finish(self, data: st.DataObject, outcome: Outcome, jitter: float) -> None:
        running = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        state = self.expected(outcome, jitter, fresh=running.changes == self.changes)
        changed = self.destination.finish(running.permit, outcome, self.now, jitter)
        self.note(state, changed=changed)

    @rule(reason=st.sampled_from(["refuses all", "and all"]))
    def find_at_fault(self, reason: str) -> None:
        self.not_before = max(self.not_before, self.now + PROBE_INTERVAL)
        self.note(State.MISCONFIGURED, changed=self.destination.misconfigured(reason, self.now))

    def expected(self, outcome: Outcome, jitter: float, *, fresh: bool) -> State:
        """Where the drawing leads, and how long nothing may be asked."""
        match outcome:
            case Delivered():
                self.failures = 0
                self.most += 1
                if not fresh and self.state is not State.BACKING_OFF:
                    return self.state
                self.not_before = self.now
                if self.state is not State.FLOWING:
                    self.most = 2
                return State.FLOWING
            case Misconfigured():
                self.not_before = max(self.not_before, self.now + PROBE_INTERVAL)
                return State.MISCONFIGURED
            case Retry(after_seconds=None) if fresh:
                self.failures += 1
                if self.state is State.MISCONFIGURED:
                    self.not_before = max(self.not_before, self.now + PROBE_INTERVAL)
                elif self.failures >= 3 or self.state is not State.FLOWING:
                    return State.BACKING_OFF
            case Retry(after_seconds=float(after)):
                self.not_before = max(self.not_before, self.now + min(after, 300.0) + 0.5 * jitter)
                if self.state is not State.MISCONFIGURED:
                    return State.PAUSED
                self.not_before = max(self.not_before, self.now + PROBE_INTERVAL)
        return self.state

    def note(self, state: State, *, changed: bool) -> None:
        assert self.destination.state is state
        assert changed == (state is not self.state)
        if changed:
            self.state, self.since = state, self.now
            self.changes += 1

    @invariant()
    def it_says_what_it_is(self) -> None:
        destination = self.destination
        assert destination.state is self.state
        assert destination.flowing == (self.state is State.FLOWING)
        assert destination.since == self.since
        assert bool(destination.reason) == (self.state is not State.FLOWING)
        assert destination.attempts == len(self.running)

    @invariant()
    def it_is_asked_neither_too_early_nor_too_late(self) -> None:
        destination = self.destination
        if self.state is State.FLOWING:
            assert destination.may_start(self.now) == (len(self.running) < self.most)
            return
        if self.running:
            assert not destination.may_start(self.now + 1000.0)
        if self.state is State.BACKING_OFF:
            assert destination.until <= self.now + MAX_BACKOFF
        else:
            assert destination.until == self.not_before
        assert not destination.may_start(self.not_before - 0.01)


TestAnyOutcomes = AnyOutcomes.TestCase
TestAnyOutcomes.settings = settings(deadline=None, max_examples=80, stateful_step_count=50)
