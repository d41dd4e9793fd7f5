"""What is drawn of a run: the same for the same seed, all kinds in turn, and nothing that lasts."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import orjson
import pytest

from chaos.plan import CALM_SECONDS, KINDS, MEMBERS, Plan, make
from chaos.run import Run
from streamer.mock_segment import Fault

SEEDS = range(40)


def test_a_seed_is_a_plan() -> None:
    assert make(7, 300) == make(7, 300)
    plans = [make(seed, 300) for seed in SEEDS]
    assert all(one.troubles != other.troubles for one, other in pairwise(plans))
    settings = Counter(value for plan in plans for value in plan.settings.items())
    assert min(settings.values()) > len(SEEDS) / 5


def test_a_plan_comes_back_from_a_report() -> None:
    plan = make(8, 300)
    report = {"verdict": "ok", **plan.as_json()}
    report["troubles"] = [{**each, "ends": 1} for each in report["troubles"]]
    assert Plan.from_json(orjson.loads(orjson.dumps(report))) == plan


@pytest.mark.parametrize("seconds", [60, 300, 1800])
def test_every_trouble_ends_while_records_still_come(seconds: float) -> None:
    for seed in SEEDS:
        plan = make(seed, seconds)
        assert [t.starts for t in plan.troubles] == sorted(t.starts for t in plan.troubles)
        assert plan.troubles[0].starts >= CALM_SECONDS
        assert max(t.ends for t in plan.troubles) <= seconds - CALM_SECONDS + 0.11  # rounded
        assert all(
            KINDS[t.kind].shortest <= t.seconds <= KINDS[t.kind].longest for t in plan.troubles
        )


def test_each_kind_has_its_turn() -> None:
    for seed in SEEDS:
        turns = Counter(trouble.kind for trouble in make(seed, 1800).troubles)
        assert turns.keys() == KINDS.keys()
        assert max(turns.values()) - min(turns.values()) <= 4
    kinds = Counter(trouble.kind for seed in SEEDS for trouble in make(seed, 60).troubles)
    assert min(kinds.values()) > len(SEEDS) / 20


def test_troubles_overlap_but_one_broker_has_one_at_a_time() -> None:
    overlaps = 0
    for seed in SEEDS:
        troubles = make(seed, 300).troubles
        overlaps += sum(a.ends > b.starts for a, b in pairwise(troubles))
        for area in ("broker", "producer", "dead_letter", "door", "growth"):
            end = -math.inf
            for trouble in troubles:
                if KINDS[trouble.kind].area == area:
                    assert trouble.starts > end
                    end = trouble.ends
    assert overlaps > 10 * len(SEEDS)


def test_members_that_are_away_come_back() -> None:
    """All of them may be away for a moment, but no trouble takes more than there are, and each gives back its own."""
    for seed in SEEDS:
        plan = make(seed, 1800)
        away = [t for t in plan.troubles if KINDS[t.kind].area == "members"]
        for trouble in away:
            others = [t for t in away if t.starts < trouble.starts < t.ends]
            assert len(others) <= MEMBERS
            assert trouble.seconds <= 20


def test_kinds_can_be_left_out() -> None:
    without = ("long_freeze", "broker_long_freeze")
    assert not {t.kind for t in make(9, 1800, without).troubles} & set(without)
    plan = make(9, 1800)
    left = plan.without(without).troubles
    assert left == [t for t in plan.troubles if t.kind not in without]


def test_a_run_knows_how_to_make_every_trouble() -> None:
    for seed in SEEDS:
        for trouble in make(seed, 300).troubles:
            fault = trouble.options.get("fault")
            assert (fault is not None) != hasattr(Run, f"_{trouble.kind}"), trouble
            if fault is not None:
                Fault.from_json(fault)
