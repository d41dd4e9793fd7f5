"""Bisection finds every call at fault, no other, and blames no call for what its destination does."""

from __future__ import annotations

import random
from math import ceil, log2
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from streamer.core.account import Account
from streamer.core.aggregate import Lane, Merging
from streamer.core.batch import FURTHER, Batch, Limits
from streamer.core.bisection import (
    WITNESS_AGE,
    WITNESS_BYTES,
    WITNESS_RENEWAL,
    WITNESSES_BYTES,
    Bisection,
    Pieces,
    Witnesses,
)
from streamer.core.budget import Budget
from streamer.core.destination import PROBE_INTERVAL
from streamer.core.model import CALL_TYPES
from streamer.core.offsets import Chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.core.bisection import Piece, Verdict

IDENTIFY, PAGE = CALL_TYPES.index("identify"), CALL_TYPES.index("page")


class Run:
    """Sends a batch piece by piece, as delivery does.

    Args:
        calls: of the batch.
        refuses: whether the destination refuses a piece.
        witness: whether something else of the lane is accepted whenever the bisection waits for it.
    """

    def __init__(self, calls: int, refuses: Callable[[Piece], bool], *, witness: bool) -> None:
        self.pieces = Pieces(calls)
        self.refuses = refuses
        self.witness = witness
        self.sent: list[Piece] = []
        self.accepted: list[int] = []
        self.found: list[int] = []
        self.alone: set[int] = set()  # what was refused alone
        self.doubted: set[int] = set()  # of that, what was so before something was accepted

    def step(self) -> None:
        piece = self.pieces.take()
        self.answer(piece)
        if self.pieces.undecided and self.witness:
            self.testify()

    def testify(self) -> None:
        self.doubted |= self.alone
        self.pieces.testified()
        assert not self.pieces.undecided

    def answer(self, piece: Piece) -> None:
        self.sent.append(piece)
        if self.refuses(piece):
            if piece[1] - piece[0] == 1:
                if piece[0] in self.doubted:  # `Bisection` convicts it
                    self.found.append(piece[0])
                    return
                self.alone.add(piece[0])
            self.found += self.pieces.refused(piece)
            assert self.pieces.bisecting
        else:
            self.accepted += range(*piece)
            self.doubted |= self.alone
            self.pieces.accepted(piece)
            assert not self.pieces.undecided

    def finish(self) -> None:
        while not self.pieces.done and not self.pieces.undecided:
            self.step()


def dislikes(bad: set[int]) -> Callable[[Piece], bool]:
    """An honest destination: it refuses a piece if one of its calls is bad, and no other."""
    return lambda piece: any(place in bad for place in range(*piece))


def refuses_all(_: Piece) -> bool:
    return True


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, set[int]]:
    """A number of calls, and which of them are bad: few, many, all, or neighbours."""
    calls = draw(st.integers(1, 600))
    places = st.integers(0, calls - 1)
    kind = draw(st.sampled_from(["few", "some", "all", "run"]))
    if kind == "few":
        return calls, draw(st.sets(places, max_size=4))
    if kind == "run":
        start, stop = sorted((draw(places), draw(places)))
        return calls, set(range(start, stop + 1))
    if kind == "all":
        return calls, set(range(calls))
    chooser = random.Random(draw(st.integers(0, 2**32)))
    return calls, {place for place in range(calls) if chooser.random() < 0.3}


def test_a_batch_that_is_accepted_is_sent_once_and_whole() -> None:
    run = Run(600, dislikes(set()), witness=False)
    run.finish()
    assert run.sent == [(0, 600)]
    assert not run.pieces.bisecting


def test_one_bad_call_is_found_by_halving() -> None:
    run = Run(8, dislikes({5}), witness=False)
    run.finish()
    assert run.sent == [(0, 8), (0, 4), (4, 8), (4, 6), (4, 5), (5, 6), (6, 8)]
    assert run.found == [5]
    assert run.accepted == [0, 1, 2, 3, 4, 6, 7]


def test_a_suspect_is_sent_once_more_when_something_behind_it_is_accepted() -> None:
    run = Run(4, dislikes({0}), witness=False)
    for _ in range(4):
        run.step()
    assert run.sent[2:] == [(0, 1), (1, 2)]
    assert run.found == []
    run.step()
    assert run.sent[-1] == (0, 1)
    assert run.found == [0]
    run.finish()
    assert run.sent[5:] == [(2, 4)]


def test_a_second_half_is_at_fault_if_the_first_was_accepted_and_the_whole_refused() -> None:
    run = Run(2, dislikes({1}), witness=False)
    run.finish()
    assert run.found == [1]
    assert run.pieces.done


def test_what_is_accepted_of_a_batch_says_nothing_of_what_is_refused_after_it() -> None:
    """The destination may refuse everything from then on; only the half of a refused part is known to be bad."""
    run = Run(8, dislikes({3, 6, 7}), witness=False)
    run.finish()
    assert run.accepted == [0, 1, 2, 4, 5]
    assert run.found == [3]
    assert run.pieces.undecided
    run.testify()
    run.finish()
    assert run.found == [3, 6, 7]
    assert run.pieces.done


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_batch_of_which_nothing_is_accepted_waits_for_a_witness(calls: int) -> None:
    run = Run(calls, refuses_all, witness=False)
    run.finish()
    assert run.pieces.undecided
    assert not run.pieces.done
    assert run.found == []
    run.testify()
    run.finish()
    assert run.sent[-calls:] == [(place, place + 1) for place in range(calls)]
    assert run.found == list(range(calls))
    assert run.pieces.done


def test_a_destination_that_refuses_everything_convicts_no_call_however_many_there_are() -> None:
    for calls in range(1, 601):
        run = Run(calls, refuses_all, witness=False)
        run.finish()
        assert run.pieces.undecided
        assert len(run.sent) <= 2 * ceil(log2(calls)) + 2
        assert run.found == []
        run.pieces.reset()
        assert not run.pieces.bisecting
        assert not run.pieces.undecided
        assert run.pieces.take() == (0, calls), "all calls are one part again"
        assert run.pieces.done


@pytest.mark.parametrize(("calls", "refusals"), [(8, 8), (512, 20), (600, 22)])
def test_it_steps_aside_after_as_many_refusals_and_after_a_reset_after_as_many_again(
    calls: int, refusals: int
) -> None:
    run = Run(calls, refuses_all, witness=False)
    run.finish()
    assert len(run.sent) == refusals == 2 * ceil(log2(calls)) + 2
    run.pieces.reset()
    run.finish()
    assert run.sent[refusals:] == run.sent[:refusals]


def test_after_a_reset_only_what_was_not_accepted_is_sent_again_and_in_order() -> None:
    pieces = Pieces(8)
    assert pieces.refused(pieces.take()) == []
    assert pieces.take() == (0, 4)
    pieces.accepted((0, 4))
    assert pieces.refused(pieces.take()) == []
    assert pieces.refused(pieces.take()) == []
    assert pieces.refused(pieces.take()) == []
    piece = pieces.take()
    assert piece == (5, 6)
    pieces.back(piece)
    pieces.reset()
    assert pieces.take() == (4, 8)
    assert pieces.done


def test_a_part_that_comes_back_after_a_reset_stands_behind_what_is_before_it() -> None:
    pieces = Pieces(4)
    for _ in range(3):
        pieces.refused(pieces.take())
    piece = pieces.take()
    assert piece == (1, 2)
    pieces.reset()
    pieces.back(piece)
    assert [pieces.take() for _ in range(3)] == [(0, 1), (1, 2), (2, 4)]


def test_a_suspect_that_comes_back_after_a_reset_is_one_no_more() -> None:
    pieces = Pieces(2)
    for _ in range(3):
        pieces.refused(pieces.take())
    piece = pieces.take()
    assert piece == (0, 1)
    pieces.reset()
    pieces.back(piece)
    pieces.testified()
    assert [pieces.take() for _ in range(2)] == [(0, 1), (1, 2)]
    assert pieces.done


def test_a_part_that_comes_back_is_next() -> None:
    pieces = Pieces(4)
    pieces.refused(pieces.take())
    piece = pieces.take()
    pieces.back(piece)
    assert not pieces.done
    assert pieces.take() == piece == (0, 2)


def test_a_suspect_that_comes_back_is_next_and_still_undecided() -> None:
    pieces = Pieces(2)
    for _ in range(3):
        pieces.refused(pieces.take())
    pieces.back(pieces.take())
    assert pieces.undecided
    assert not pieces.done
    assert [pieces.take() for _ in range(2)] == [(0, 1), (1, 2)]
    assert pieces.done


@pytest.mark.parametrize("calls", [2, 3])
def test_a_suspect_that_is_accepted_clears_all_of_them(calls: int) -> None:
    """The destination refused what it takes, so that its refusals say nothing of the calls."""
    refusing = True
    run = Run(calls, lambda _: refusing, witness=False)
    while len(run.sent) < 2 * calls - 1 and not run.pieces.undecided:
        run.step()
    assert run.pieces.undecided
    refusing = False
    run.step()
    run.finish()
    assert run.found == []
    assert run.accepted == list(range(calls))


def test_a_witness_while_a_suspect_is_sent_again_puts_the_others_back() -> None:
    pieces = Pieces(2)
    for _ in range(3):
        pieces.refused(pieces.take())
    assert pieces.take() == (0, 1)
    pieces.testified()
    pieces.accepted((0, 1))
    assert pieces.take() == (1, 2)
    assert pieces.done


@settings(deadline=None, max_examples=150)
@given(batches())
def test_an_honest_destination_gets_every_good_call_once_and_every_bad_one_is_found_once(
    batch: tuple[int, set[int]],
) -> None:
    calls, bad = batch
    run = Run(calls, dislikes(bad), witness=True)
    run.finish()
    assert run.pieces.done
    assert run.accepted == [place for place in range(calls) if place not in bad], "once, in order"
    assert sorted(run.found) == sorted(bad)
    firsts = [piece for number, piece in enumerate(run.sent) if piece not in run.sent[:number]]
    assert firsts == sorted(firsts, key=lambda piece: (piece[0], -piece[1])), "left to right"
    assert all(run.sent.count(piece) <= 2 for piece in firsts)
    assert len(firsts) <= 1 + 2 * len(bad) * ceil(log2(calls))
    assert len(run.sent) <= len(firsts) + len(bad), "one request more for each that is bad"


@settings(deadline=None, max_examples=150)
@given(batches(), st.integers(0, 2**32))
def test_retries_probes_and_refused_keys_in_between_change_nothing(
    batch: tuple[int, set[int]], seed: int
) -> None:
    calls, bad = batch
    chooser = random.Random(seed)
    run = Run(calls, dislikes(bad), witness=True)
    pieces = run.pieces
    probed: set[int] = set()
    while not pieces.done:
        kind = chooser.choices(["step", "retry", "probe", "reset", "witness"], [10, 2, 2, 1, 1])[0]
        if kind == "step":
            run.step()
            continue
        if kind == "witness":
            run.testify()
            continue
        if kind == "reset":
            pieces.reset()
            continue
        piece = pieces.take()
        if kind == "probe":
            place = chooser.randrange(*piece)
            for rest in ((place + 1, piece[1]), (piece[0], place)):
                if rest[0] < rest[1]:
                    pieces.back(rest)
            piece = (place, place + 1)
            probed.add(place)
            if not dislikes(bad)(piece) and chooser.random() < 0.5:
                run.answer(piece)
                continue
        pieces.back(piece)
    assert sorted(run.accepted) == [place for place in range(calls) if place not in bad]
    assert sorted(run.found) == sorted(bad)
    kept = [place for place in run.accepted if place not in probed]
    assert kept == sorted(kept), "what wasn't a probe went out in order"


@settings(deadline=None, max_examples=150)
@given(batches(), st.integers(0, 40))
def test_nothing_is_lost_by_a_destination_that_refuses_everything_for_a_while(
    batch: tuple[int, set[int]], outage: int
) -> None:
    """Without a witness, a probe that is refused holds the destination: what is left begins anew."""
    calls, bad = batch
    run = Run(
        calls,
        lambda piece: len(run.sent) <= outage or dislikes(bad)(piece),
        witness=False,
    )
    for _ in range(50 * calls + 100):
        if run.pieces.done:
            break
        if not run.pieces.undecided:
            run.step()
            continue
        piece = run.pieces.take()
        if len(run.sent) < outage or dislikes(bad)(piece):
            run.sent.append(piece)
            run.pieces.back(piece)
            run.pieces.reset()
            if len(run.sent) > outage:  # other calls come by, and are accepted
                run.witness = True
        else:
            run.answer(piece)
    assert run.pieces.done
    assert sorted(run.accepted + run.found) == list(range(calls)), "each has one fate"
    assert bad <= set(run.found)


# --- a lane ---------------------------------------------------------------------------------------


def batch_of(*types: int) -> Batch:
    """A batch of calls of these types."""
    batch = Batch(Limits())
    for kind in types:
        batch.append(b"{}", kind, Chunk(("events", 0), [0], [0], [None], read_at=0.0), 0)
    return batch


class Trial:
    """A lane's bisection, played through call by call.

    Args:
        batches: of the lane, sent for the first time in this order.
        settings: of the bisection.
    """

    def __init__(self, *batches: Batch, **settings: float) -> None:
        self.bisection = Bisection(**settings)
        self.now = 100.0
        for batch in batches:
            self.bisection.begin(batch)

    def send(
        self,
        batch: Batch,
        *,
        accepted: bool,
        held: bool = False,
        witness: bool = False,
        **said: bool,
    ) -> tuple[Piece | None, list[int], bool]:
        """Make an attempt; a second passes.

        Returns:
            What was sent, the places found at fault, and whether the destination is blamed.
        """
        piece = self.bisection.take(batch, probes=held, witness=witness)
        started, self.now = self.now, self.now + 1
        verdict = (
            self.bisection.accepted(batch, piece, started, self.now)
            if accepted
            else self.bisection.refused(batch, piece, self.now, held=held, **said)
        )
        return piece, verdict.guilty, verdict.blames


def test_a_lone_refused_call_waits_for_the_witness_and_is_convicted_when_it_is_refused_again() -> (
    None
):
    bad = batch_of(PAGE)
    trial = Trial(bad)
    assert trial.send(bad, accepted=False, witness=True) == ((0, 1), [], False)
    assert bad.not_before == trial.now + PROBE_INTERVAL
    assert trial.send(bad, accepted=True, witness=True) == (None, [], False)
    assert bad.not_before == trial.now, "at once"
    assert trial.send(bad, accepted=False, witness=True) == ((0, 1), [0], False)
    assert trial.bisection.done(bad)


def test_a_destination_that_refused_everything_for_a_while_convicts_nothing() -> None:
    """The witness comes when it is well again; so do the suspects."""
    batch = batch_of(PAGE, PAGE)
    trial = Trial(batch)
    for _ in range(3):
        assert trial.send(batch, accepted=False, witness=True)[1:] == ([], False)
    assert trial.send(batch, accepted=True, witness=True) == (None, [], False)
    assert trial.send(batch, accepted=True, witness=True) == ((0, 1), [], False)
    assert trial.send(batch, accepted=True, witness=True) == ((1, 2), [], False)
    assert trial.bisection.done(batch)


def test_a_second_refusal_of_what_was_sent_before_the_acceptance_decides_nothing() -> None:
    """The destination may have refused everything until then."""
    batch, late = batch_of(PAGE), batch_of(PAGE)
    trial = Trial(batch, late)
    trial.send(batch, accepted=False)
    piece = trial.bisection.take(batch, probes=False, witness=False)
    trial.send(late, accepted=True)
    assert trial.bisection.refused(batch, piece, trial.now) == ([], False, False)
    assert not trial.bisection.done(batch)
    trial.bisection.forget(late)
    late = batch_of(PAGE)
    trial.bisection.begin(late)
    trial.send(late, accepted=True)
    assert trial.send(batch, accepted=False) == ((0, 1), [0], False)


@pytest.mark.parametrize(
    ("suspect", "behind", "guilty"),
    [
        (IDENTIFY, IDENTIFY, [0]),
        (IDENTIFY | FURTHER, IDENTIFY, [0]),
        (IDENTIFY, PAGE, []),
        (PAGE | FURTHER, IDENTIFY, []),
        (IDENTIFY, PAGE | FURTHER, []),
    ],
)
def test_traits_are_not_sent_once_more_when_newer_ones_were_accepted(
    suspect: int, behind: int, guilty: list[int]
) -> None:
    batch = batch_of(suspect, behind)
    trial = Trial(batch)
    trial.send(batch, accepted=False)
    trial.send(batch, accepted=False)
    assert trial.send(batch, accepted=True) == ((1, 2), guilty, False)
    assert trial.bisection.done(batch) is bool(guilty)


def test_traits_are_sent_once_more_when_older_ones_were_accepted() -> None:
    batch = batch_of(IDENTIFY, IDENTIFY)
    trial = Trial(batch)
    for _ in range(3):
        trial.send(batch, accepted=False)
    assert trial.send(batch, accepted=True) == ((0, 1), [], False)
    assert trial.send(batch, accepted=True) == ((1, 2), [], False)


def test_a_witness_that_is_refused_blames_the_destination_and_a_call_is_asked_next() -> None:
    """Then the witness again, each in its turn: the witness may be what is refused now."""
    bad = batch_of(PAGE, PAGE)
    trial = Trial(bad)
    for _ in range(3):
        trial.send(bad, accepted=False, witness=True)
    assert trial.send(bad, accepted=False, witness=True) == (None, [], True)
    probes = [trial.send(bad, accepted=False, held=True, witness=True) for _ in range(6)]
    assert [piece for piece, _, _ in probes[::2]] == [(0, 1), (1, 2), (0, 1)], "another each time"
    assert [piece for piece, _, _ in probes[1::2]] == [None] * 3
    assert all((found, blames) == ([], True) for _, found, blames in probes)


def test_hurrying_sends_the_witness_now_and_moves_nothing_else() -> None:
    bad, other = batch_of(PAGE), batch_of(PAGE)
    trial = Trial(bad, other)
    trial.bisection.hurry(trial.now)
    trial.send(bad, accepted=False)
    other.not_before = later = trial.now + 100
    trial.bisection.hurry(trial.now)
    assert bad.not_before == trial.now
    assert other.not_before == later


def test_without_a_witness_the_call_itself_is_sent_again_and_blames_the_destination() -> None:
    bad = batch_of(PAGE)
    trial = Trial(bad)
    trial.send(bad, accepted=False)
    assert trial.send(bad, accepted=False) == ((0, 1), [], True)
    assert trial.bisection.trial is None
    assert bad.not_before == trial.now, "the destination says when"


def test_another_batch_of_the_lane_is_witness_if_it_was_sent_after_the_refusal() -> None:
    bad, early, late = batch_of(PAGE), batch_of(PAGE), batch_of(PAGE)
    trial = Trial(bad, early, late)
    piece = trial.bisection.take(early, probes=False, witness=False)
    started = trial.now
    trial.send(bad, accepted=False)
    trial.bisection.accepted(early, piece, started, trial.now)
    assert bad.not_before > trial.now
    trial.send(late, accepted=True)
    assert bad.not_before == trial.now, "it may be sent"
    assert trial.send(bad, accepted=False) == ((0, 1), [0], False)


def test_another_batch_that_is_refused_waits_and_blames_the_destination_once_one_is_undecided() -> (
    None
):
    first, second = batch_of(PAGE, PAGE), batch_of(PAGE)
    trial = Trial(first, second)
    trial.send(first, accepted=False)
    assert trial.send(second, accepted=False) == ((0, 1), [], False)
    assert trial.bisection.blocked(second)
    assert not trial.bisection.blocked(first)
    trial.send(first, accepted=False)
    assert trial.send(first, accepted=False) == ((1, 2), [], True)
    assert not trial.bisection.blocked(second)


def test_a_call_that_was_refused_alone_before_a_blame_needs_no_second_trial() -> None:
    """Once something was accepted since; the same refusal without it decides nothing."""
    bad, good = batch_of(PAGE), batch_of(PAGE)
    trial = Trial(bad, good)
    trial.send(bad, accepted=False)
    trial.send(bad, accepted=False)
    assert trial.send(bad, accepted=False, held=True) == ((0, 1), [], True)
    assert trial.send(good, accepted=True, held=True) == ((0, 1), [], False)
    assert trial.send(bad, accepted=False) == ((0, 1), [0], False)


def test_an_answer_that_says_misconfigured_drops_every_suspicion() -> None:
    bad, good = batch_of(PAGE), batch_of(PAGE)
    trial = Trial(bad, good)
    trial.send(bad, accepted=False)
    piece = trial.bisection.take(good, probes=False, witness=False)
    trial.bisection.misconfigured(good, piece, trial.now)
    assert trial.bisection.trial is None
    assert trial.send(good, accepted=True, held=True) == ((0, 1), [], False)


def test_what_was_accepted_before_a_blame_does_not_convict_after_it() -> None:
    bad, good = batch_of(PAGE), batch_of(PAGE, PAGE)
    trial = Trial(bad, good)
    trial.send(bad, accepted=False)
    trial.send(bad, accepted=False)
    trial.send(bad, accepted=False, held=True)
    piece = trial.bisection.take(good, probes=True, witness=False)
    trial.bisection.accepted(good, piece, trial.now, trial.now)
    piece = trial.bisection.take(good, probes=False, witness=False)
    trial.bisection.misconfigured(good, piece, trial.now + 1)
    assert trial.send(bad, accepted=False) == ((0, 1), [], False)


def test_a_single_call_that_is_too_large_needs_no_witness() -> None:
    bad = batch_of(PAGE)
    trial = Trial(bad)
    assert trial.send(bad, accepted=False, too_large=True) == ((0, 1), [0], False)


def test_a_call_that_is_all_there_is_and_refused_for_so_long_is_given_up_once() -> None:
    """A second one, with nothing accepted between, is none any more: it is the destination that refuses."""
    first, second, good, third = (batch_of(PAGE) for _ in range(4))
    trial = Trial(first, max_hold_seconds=10 * PROBE_INTERVAL)
    trial.send(first, accepted=False, quiet=True)
    trial.send(first, accepted=False, quiet=True)
    for _ in range(7):
        assert trial.send(first, accepted=False, held=True, quiet=True) == ((0, 1), [], True)
    assert trial.send(first, accepted=False, held=True, quiet=True) == ((0, 1), [0], True)
    trial.bisection.forget(first)
    trial.bisection.begin(second)
    for _ in range(100):
        assert trial.send(second, accepted=False, held=True, quiet=True)[1] == []
    trial.bisection.forget(second)
    trial.bisection.begin(good)
    trial.send(good, accepted=True, held=True)
    trial.bisection.forget(good)
    trial.bisection.begin(third)
    found = [trial.send(third, accepted=False, held=True, quiet=True)[1] for _ in range(10)]
    assert found == [[]] * 9 + [[0]]


@pytest.mark.parametrize("company", ["in its batch", "in another batch", "in the open batch"])
def test_a_call_with_company_is_never_given_up(company: str) -> None:
    first = batch_of(*[PAGE] * (2 if company == "in its batch" else 1))
    trial = Trial(first, max_hold_seconds=PROBE_INTERVAL)
    if company == "in another batch":
        trial.bisection.begin(batch_of(PAGE))
    quiet = company != "in the open batch"
    for _ in range(100):
        assert trial.send(first, accepted=False, held=True, quiet=quiet)[1] == []


@pytest.mark.parametrize("calls", [1, 2, 3, 8, 100, 2500])
def test_a_destination_that_refuses_everything_is_blamed_after_few_requests(calls: int) -> None:
    batch = batch_of(*[PAGE] * calls)
    trial = Trial(batch)
    blames, requests = False, 0
    while not blames:
        _, found, blames = trial.send(batch, accepted=False, witness=True)
        requests += 1
        assert found == []
        assert requests <= 2 * ceil(log2(calls)) + 3
    assert trial.bisection.left(batch) == list(range(calls))


class Judging(RuleBasedStateMachine):
    """A lane whose requests, answers, breakdowns and probes come in any order.

    Every call has a name, its batch and its place. It is found at fault only if the destination refused it alone twice,
    with an acceptance in between, or for one of two other reasons: see `proven`.
    """

    @initialize(witness=st.booleans())
    def begin(self, witness: bool) -> None:
        self.witness = witness
        self.bisection = Bisection()
        self.now = 0.0
        self.waiting: list[Batch] = []
        self.under_way: list[tuple[Batch, Piece | None, float, bool]] = []
        self.poison: set[tuple[Batch, int]] = set()
        self.made: set[tuple[Batch, int]] = set()
        self.accepted: list[tuple[Batch, int]] = []
        self.convicted: list[tuple[Batch, int]] = []
        # What was refused, and what was accepted: when it was sent, and when it was answered.
        self.refusals: dict[tuple[Batch, Piece], list[tuple[float, float]]] = {}
        self.acceptances: list[tuple[Batch, Piece | None, float, float]] = []
        self.broken = False
        self.held = False
        self.requests = 0

    def tick(self, seconds: float = 0.01) -> float:
        self.now += seconds
        return self.now

    @rule(
        calls=st.lists(
            st.tuples(st.sampled_from([False, False, True]), st.sampled_from([IDENTIFY, PAGE])),
            min_size=1,
            max_size=9,
        )
    )
    def add(self, calls: list[tuple[bool, int]]) -> None:
        batch = batch_of(*(kind for _, kind in calls))
        self.waiting.append(batch)
        self.made |= {(batch, place) for place in range(len(calls))}
        self.poison |= {(batch, place) for place, (poisonous, _) in enumerate(calls) if poisonous}

    @rule()
    def breaks(self) -> None:
        self.broken = not self.broken

    @rule(seconds=st.sampled_from([1.0, PROBE_INTERVAL]))
    def pass_time(self, seconds: float) -> None:
        self.tick(seconds)

    @rule(chosen=st.integers(0, 100))
    def send(self, chosen: int) -> None:
        if self.held and self.under_way:
            return
        now = self.tick()
        may = [
            batch
            for batch in self.waiting
            if batch.not_before <= now and not self.bisection.blocked(batch)
        ]
        if not may:
            return
        batch = may[chosen % len(may)]
        self.waiting.remove(batch)
        if batch not in self.bisection:
            self.bisection.begin(batch)
        piece = self.bisection.take(
            batch, probes=self.held, witness=self.witness and bool(self.accepted)
        )
        self.requests += 1
        self.under_way.append((batch, piece, now, self.held))

    @rule(chosen=st.integers(0, 100), refused=st.integers(0, 6), more=st.integers(0, 4))
    def outage(self, chosen: int, refused: int, more: int) -> None:
        """Refuse everything for so many requests, and be well again for some more."""
        for number in range(refused + more):
            self.broken = number < refused
            before = len(self.under_way)
            self.send(chosen)
            if len(self.under_way) > before:
                self.answer(before, "400")

    @precondition(lambda self: self.under_way)
    @rule(chosen=st.integers(0, 100), said=st.sampled_from(["400"] * 6 + ["503", "401"]))
    def answer(self, chosen: int, said: str) -> None:
        batch, piece, started, probe = self.under_way.pop(chosen % len(self.under_way))
        now = self.tick()
        calls = {(batch, place) for place in range(*(piece or (0, 0)))}
        assert not calls & set(self.accepted), "nothing is sent again that was accepted"
        assert not calls & set(self.convicted), "nor what was found at fault"
        self.waiting.append(batch)
        if said == "503":
            self.bisection.back(batch, piece)
        elif said == "401":
            self.held = True
            self.bisection.misconfigured(batch, piece, now)
        elif self.broken or calls & self.poison:
            if piece is not None:
                self.refusals.setdefault((batch, piece), []).append((started, now))
            self.judge(batch, self.bisection.refused(batch, piece, now, held=self.held))
        else:
            self.held = self.held and not probe
            for place in range(*(piece or (0, 0))):
                if batch.types[place] == IDENTIFY:
                    before = [at for one, at in self.accepted if one is batch]
                    assert not [at for at in before if at > place and batch.types[at] == IDENTIFY]
                self.accepted.append((batch, place))
            self.acceptances.append((batch, piece, started, now))
            self.judge(batch, self.bisection.accepted(batch, piece, started, now))
        for batch in list(self.waiting):
            if batch in self.bisection and self.bisection.done(batch):
                self.waiting.remove(batch)
                self.bisection.forget(batch)

    def judge(self, batch: Batch, verdict: Verdict) -> None:
        for place in verdict.guilty:
            call = batch, place
            assert call not in self.accepted
            assert call not in self.convicted
            assert self.proven(batch, place)
            self.convicted.append(call)
        if verdict.blames:
            self.held = True

    def proven(self, batch: Batch, place: int) -> bool:
        """Whether what the destination said is enough to find a call at fault."""
        alone = self.refusals[batch, (place, place + 1)]
        first = alone[0][1]
        last = alone[-1][0]
        if any(first <= sent and said <= last for _, _, sent, said in self.acceptances):
            return True
        parts = [
            (piece, sent, said)
            for one, piece, sent, said in self.acceptances
            if one is batch and piece is not None
        ]
        halves = [
            (start, place)
            for (one, (start, stop)), refusals in self.refusals.items()
            if one is batch and stop == place + 1 and (start + stop) // 2 == place
            for (piece, sent, said) in parts
            if piece == (start, place) and refusals[0][1] <= sent and said <= last
        ]
        if halves:
            return True
        return batch.types[place] == IDENTIFY and any(
            first <= sent and IDENTIFY in batch.types[max(piece[0], place + 1) : piece[1]]
            for piece, sent, _ in parts
        )

    def teardown(self) -> None:
        """The destination is mended, and good calls come by: each call finds its fate, within few requests."""
        if not hasattr(self, "bisection"):
            return
        self.broken = False
        while self.under_way:
            self.answer(0, "400")
        before = self.requests
        left = len(self.made) - len(self.accepted) - len(self.convicted)
        number = 0
        while self.waiting:
            number += 1
            self.tick(PROBE_INTERVAL)
            self.send(number)
            if self.under_way:
                self.answer(0, "400")
            if number % 8 == 0 and not (self.witness and self.accepted):
                self.add([(False, PAGE)])
                left += 1
            assert self.requests - before <= 5 * left + 4
            assert number < 10_000, "nothing may be sent, and it waits"
        assert sorted(map(repr, [*self.accepted, *self.convicted])) == sorted(map(repr, self.made))
        assert self.poison <= set(self.convicted)


Judging.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestJudging = Judging.TestCase


# --- witnesses ------------------------------------------------------------------------------------


def lane(budget: Budget) -> Lane:
    return Lane(
        write_key="key",
        limits=Limits(),
        merging=Merging(),
        nonce=b"n" * 16,
        ledger=Account().ledger(),
        share=budget.share(),
    )


def named(*calls: tuple[bytes, int]) -> Batch:
    batch = batch_of(*(kind for _, kind in calls))
    batch.calls[:] = [call for call, _ in calls]
    return batch


def test_a_witness_is_a_small_page_or_track_call_of_what_was_accepted() -> None:
    """Of a record with several, too; an identify call would lay old traits over new ones."""
    one, witnesses = lane(Budget(1_000_000)), Witnesses()
    batch = named(
        (b"refused", PAGE),
        (b"traits", IDENTIFY),
        (b"x" * (WITNESS_BYTES + 1), PAGE),
        (b"yes", PAGE | FURTHER),
    )
    witnesses.delivered(one, batch, (1, 3), 0.0)
    assert witnesses.of(one, 0.0) is None
    witnesses.delivered(one, batch, (1, 4), 0.0)
    assert witnesses.of(one, 0.0) == b"yes"
    assert witnesses.of(lane(Budget(1)), 0.0) is None


def test_a_witness_is_renewed_now_and_then_and_forgotten_when_it_is_old() -> None:
    """Before Segment forgets its id."""
    budget = Budget(1_000_000)
    one, witnesses = lane(budget), Witnesses()
    witnesses.delivered(one, named((b"first", PAGE)), (0, 1), 0.0)
    witnesses.delivered(one, named((b"second", PAGE)), (0, 1), WITNESS_RENEWAL - 1)
    assert witnesses.of(one, WITNESS_RENEWAL) == b"first"
    witnesses.delivered(one, named((b"third", PAGE)), (0, 1), WITNESS_RENEWAL)
    assert budget.used == len(b"third")
    assert witnesses.of(one, WITNESS_RENEWAL + WITNESS_AGE - 1) == b"third"
    assert witnesses.of(one, WITNESS_RENEWAL + WITNESS_AGE) is None
    assert budget.used == 0


def test_the_witnesses_of_a_thousand_lanes_stay_within_their_bytes() -> None:
    """The oldest ones go; what is held is in the budget, and given back at the end."""
    budget = Budget(10_000_000)
    lanes, witnesses = [lane(budget) for _ in range(1000)], Witnesses()
    for number, one in enumerate(lanes):
        witnesses.delivered(one, named((b"x" * WITNESS_BYTES, PAGE)), (0, 1), float(number))
        assert budget.used <= WITNESSES_BYTES
    held = [one for one in lanes if witnesses.of(one, 1000.0)]
    assert held == lanes[-(WITNESSES_BYTES // WITNESS_BYTES) :]
    witnesses.clear()
    assert budget.used == 0
