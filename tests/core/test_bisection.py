"""Bisection finds every call at fault, no other, and blames no call for what its destination does."""

from __future__ import annotations

import random
from math import ceil, log2
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.core.bisection import Pieces

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.core.bisection import Piece


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

    def step(self) -> None:
        piece = self.pieces.take()
        self.answer(piece)
        if self.pieces.undecided and self.witness:
            self.found += self.pieces.testified()
            assert not self.pieces.undecided

    def answer(self, piece: Piece) -> None:
        self.sent.append(piece)
        if self.refuses(piece):
            self.found += self.pieces.refused(piece)
            assert self.pieces.bisecting
        else:
            self.accepted += range(*piece)
            self.found += self.pieces.accepted()
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


def test_a_suspect_is_at_fault_only_when_something_behind_it_is_accepted() -> None:
    run = Run(4, dislikes({0}), witness=False)
    for _ in range(3):
        run.step()
    assert run.sent[-1] == (0, 1)
    assert run.found == []
    run.step()
    assert run.sent[-1] == (1, 2)
    assert run.found == [0]


def test_the_last_call_is_at_fault_if_something_of_its_batch_was_accepted() -> None:
    run = Run(2, dislikes({1}), witness=False)
    run.finish()
    assert run.found == [1]
    assert run.pieces.done


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_batch_of_which_nothing_is_accepted_waits_for_a_witness(calls: int) -> None:
    run = Run(calls, refuses_all, witness=False)
    run.finish()
    assert run.pieces.undecided
    assert not run.pieces.done
    assert run.found == []
    assert run.pieces.testified() == tuple(range(calls))
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
    assert pieces.refused(pieces.take()) == ()
    assert pieces.take() == (0, 4)
    assert pieces.accepted() == ()
    assert pieces.refused(pieces.take()) == ()
    assert pieces.refused(pieces.take()) == ()
    assert pieces.refused(pieces.take()) == ()
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
    assert pieces.testified() == ()
    assert [pieces.take() for _ in range(2)] == [(0, 1), (1, 2)]


def test_a_part_that_comes_back_is_next() -> None:
    pieces = Pieces(4)
    pieces.refused(pieces.take())
    piece = pieces.take()
    pieces.back(piece)
    assert not pieces.done
    assert pieces.take() == piece == (0, 2)


def test_a_suspect_that_comes_back_stays_a_suspect() -> None:
    pieces = Pieces(1)
    pieces.refused(pieces.take())
    pieces.back(pieces.take())
    assert pieces.testified() == (0,)


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


def test_a_suspect_that_is_refused_again_beside_accepted_ones_is_at_fault() -> None:
    bad = {0, 1, 2}
    run = Run(3, dislikes(bad), witness=False)
    run.finish()
    assert run.pieces.undecided
    bad -= {0, 1}
    run.step()
    run.finish()
    assert (run.accepted, run.found) == ([0, 1], [2])


def test_a_witness_while_a_suspect_is_sent_again_convicts_the_others() -> None:
    pieces = Pieces(2)
    for _ in range(3):
        pieces.refused(pieces.take())
    assert pieces.take() == (0, 1)
    assert pieces.testified() == (1,)
    assert pieces.accepted() == ()
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
    assert run.sent == sorted(run.sent, key=lambda piece: (piece[0], -piece[1])), "left to right"
    assert len(run.sent) <= 1 + 2 * len(bad) * ceil(log2(calls))


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
            run.found += pieces.testified()
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
