"""The pipeline with site code, against no Kafka and no Segment: what handlers do to records, lanes and the account."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiokafka import ConsumerRecord
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from streamer import pipeline as module
from streamer import virtual_time
from streamer.config import load_config
from streamer.core.model import Delivered, Reason, Response, Retry
from streamer.hooks import Hooks
from streamer.pipeline import Pipeline
from streamer.segment import Answer

if TYPE_CHECKING:
    from streamer.core.aggregate import Lane
    from streamer.core.model import DeadLetter

KEY = "the-default-key"
PARTITION = ("events", 0)
LONG = 3600.0


def make(hooks: Hooks, **settings: str) -> Pipeline:
    variables = {
        "segment__write_key": KEY,
        "segment__endpoint": "http://127.0.0.1:9/v1/batch",
        "kafka__bootstrap_servers": "127.0.0.1:9",
        **settings,
    }
    environ = {f"STREAMER_{name.upper()}": value for name, value in variables.items()}
    made = Pipeline(load_config(None, {}, environ), hooks)
    made.assigned(frozenset({PARTITION}))
    return made


def records(*values: bytes | None, start: int = 0) -> list[ConsumerRecord]:
    return [
        ConsumerRecord(
            topic="events", partition=0, offset=offset, timestamp=1_700_000_000_000, timestamp_type=0, key=None,
            value=value, checksum=None, serialized_key_size=0, serialized_value_size=0, headers=(),
        )
        for offset, value in enumerate(values, start=start)
    ]  # fmt: skip


def event(user: str, blog: str = "1", event_type: str = "click") -> bytes:
    return orjson.dumps(
        {
            "event_type": event_type,
            "endpoint": {"Id": user, "Attributes": {"Plan": ["pro"]}},
            "attributes": {"blogId": blog},
        }
    )


def lanes(pipeline: Pipeline) -> dict[str, Lane]:
    assert pipeline._generation is not None
    return pipeline._generation.lanes


def letters(pipeline: Pipeline) -> list[DeadLetter]:
    return [waiting.letter for waiting in pipeline._letters._waiting]


def deliver(pipeline: Pipeline, outcome: Any = None) -> None:
    """Do what delivery does with a batch that Segment accepts, for every lane."""
    for lane in lanes(pipeline).values():
        lane.close("time", 0.0)
        while lane.ready:
            batch = lane.ready.popleft()
            piece = (0, len(batch))
            response = Response(200, {}, '{"success": true}')
            answer = Answer(outcome or Delivered(200), response, 10, 0.1)
            pipeline.answered(batch, piece, answer)
            if outcome is not None:
                lane.ready.append(batch)
                break
            for kind, calls in batch.counts():
                lane.ledger.delivered(kind, calls, batch.further(kind))
            pipeline.settled(batch)
            lane.settle(batch, 0.0)


async def end(pipeline: Pipeline) -> None:
    await pipeline.revoked()
    await pipeline.ended()
    account = pipeline.account
    assert account.balance() == []
    assert account.in_flight == 0
    assert pipeline._budget.used == 0


def test_without_handlers_the_short_way_is_taken_and_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        pipeline = make(Hooks())
        monkeypatch.setattr(pipeline, "_process_with_site_code", None)
        await pipeline.read([(PARTITION, records(event("ann")))])
        assert pipeline.account.made["track"] == 1
        await end(pipeline)

    virtual_time.run(main())


def test_destinations_that_are_held_are_named_by_their_sites_and_never_by_their_keys() -> None:
    async def main() -> None:
        sites = {str(number): f"key-{number}" for number in range(2, 12)}
        pipeline = make(Hooks(), segment__sites__write_keys=orjson.dumps(sites).decode())
        values = [event("ann", blog) for blog in ("1", *sites)]
        await pipeline.read([(PARTITION, records(*values))])
        destinations = pipeline._delivery.destinations
        now = asyncio.get_running_loop().time()
        for key in (KEY, *list(sites.values())[3:]):
            destinations[key].misconfigured("401: no such key", now)
        destination = destinations["key-2"]
        destination.finish(destination.start(), Retry("rate_limited", "slower", 429, 9.0), now, 0.5)
        assert pipeline.not_ready()[1:] == [
            "Segment: the default write key, site 5, site 6, site 7, site 8 and 3 more: misconfigured: 401: no such key"
        ]
        assert pipeline.held() == ["Segment: site 2: paused: slower"]
        await end(pipeline)

    virtual_time.run(main())


def test_a_site_has_a_lane_of_its_own_and_one_without_a_key_is_filtered() -> None:
    async def main() -> None:
        pipeline = make(Hooks(), segment__sites__write_keys='{"2": "key-2", "3": ""}')
        values = [event("ann", blog) for blog in ("1", "2", "3", "2")]
        await pipeline.read([(PARTITION, records(*values))])
        assert {
            key: len(lane.open.calls) for key, lane in lanes(pipeline).items() if lane.open
        } == {
            KEY: 2,
            "key-2": 3,  # one identify call of two
        }
        assert pipeline.account.filtered == {"no_write_key": 1}
        assert pipeline.readings().open_profiles == 2
        assert pipeline.committable(PARTITION, 4) is None
        deliver(pipeline)
        assert pipeline.committable(PARTITION, 4) == 4
        assert pipeline.account.delivered == 3
        await end(pipeline)

    virtual_time.run(main())


def test_one_key_too_many_makes_dead_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LANES", 3)
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.api_write_key")
    async def own(key: str, event: dict[str, Any]) -> str:  # noqa: ARG001
        return f"key-{event['attributes']['blogId']}"

    async def main() -> None:
        pipeline = make(hooks)
        values = [event("ann", str(blog)) for blog in (1, 2, 3, 1, 4)]
        await pipeline.read([(PARTITION, records(*values))])
        assert set(lanes(pipeline)) == {KEY, "key-1", "key-2"}
        assert [(one.offset, one.reason) for one in letters(pipeline)] == [
            (2, Reason.TOO_MANY_WRITE_KEYS),
            (4, Reason.TOO_MANY_WRITE_KEYS),
        ]
        await pipeline.ended()
        assert pipeline.account.balance() == []

    virtual_time.run(main())


def test_records_that_site_code_leaves_without_a_main_call_are_delivered_with_their_chunk() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def identify_only(data: list[list[Any]]) -> list[list[Any]]:
        return [one[:1] if number % 2 else [*one, one[-1]] for number, one in enumerate(data)]

    async def main() -> None:
        pipeline = make(hooks)
        await pipeline.read([(PARTITION, records(*map(event, "abcd")))])
        assert pipeline.account.made == {"identify": 4, "group": 0, "page": 0, "track": 4}
        assert pipeline.account.in_flight == 4
        deliver(pipeline)
        assert pipeline.account.delivered == 4
        assert pipeline.account.calls_delivered["track"] == 4
        assert pipeline.committable(PARTITION, 4) == 4
        await end(pipeline)

    virtual_time.run(main())


def test_a_handler_that_raises_makes_dead_letters_with_the_traceback_and_the_stream_goes_on() -> (
    None
):
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def fail(data: list[list[Any]]) -> list[list[Any]]:
        if len(data) == 2:
            raise ArithmeticError("a bug of the site")
        return data

    async def main() -> None:
        pipeline = make(hooks)
        await pipeline.read([(PARTITION, records(event("a"), event("b")))])
        await pipeline.read([(PARTITION, records(event("c"), start=2))])
        assert [(one.offset, one.reason, one.value) for one in letters(pipeline)] == [
            (0, Reason.HOOK_FAILED, event("a")),
            (1, Reason.HOOK_FAILED, event("b")),
        ]
        assert "ArithmeticError: a bug of the site" in letters(pipeline)[0].detail
        deliver(pipeline)
        assert pipeline.account.delivered == 1
        assert pipeline.committable(PARTITION, 3) is None, "the dead letters aren't written"
        await pipeline.ended()
        assert pipeline.account.balance() == []

    virtual_time.run(main())


def test_a_handler_that_hangs_is_given_up_and_its_records_become_dead_letters() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def hang(data: list[list[Any]]) -> list[list[Any]]:
        await asyncio.sleep(LONG)
        return data

    async def main() -> None:
        pipeline = make(hooks, hook_timeout="3s")
        await pipeline.read([(PARTITION, records(event("a")))])
        assert asyncio.get_running_loop().time() - virtual_time.START == pytest.approx(3)
        (letter,) = letters(pipeline)
        assert "longer than hook_timeout, 3 s" in letter.detail
        await pipeline.ended()
        assert pipeline.account.balance() == []

    virtual_time.run(main())


@pytest.mark.parametrize("hook", ["formatted_data", "api_write_key"])
def test_after_a_revocation_while_a_handler_runs_nothing_of_it_counts(hook: str) -> None:
    hooks = Hooks()
    finished = []

    async def slowly(first: Any, *_: Any) -> Any:
        await asyncio.sleep(5)
        finished.append(hook)
        return first

    register: Any = hooks.filter
    register(f"altis.analytics.segment.{hook}")(slowly)

    async def main() -> None:
        pipeline = make(hooks)
        reading = asyncio.create_task(pipeline.read([(PARTITION, records(event("a"), b"no"))]))
        await asyncio.sleep(1)
        assert not reading.done()
        await end(pipeline)
        assert pipeline.account.released == 2
        assert pipeline.account.made["track"] == 0
        await asyncio.wait_for(reading, 0.1)  # the new generation is read at once
        assert not letters(pipeline)
        assert not finished
        pipeline.assigned(frozenset({PARTITION}))
        assert not finished
        await pipeline.read([(PARTITION, records(event("a")))])
        assert finished == [hook]
        assert pipeline.account.made["track"] == 1
        await end(pipeline)

    virtual_time.run(main())


def test_actions_are_told_of_requests_and_of_settled_batches() -> None:
    hooks = Hooks()
    told: list[tuple[str, Any]] = []

    @hooks.action("altis.analytics.segment.request_success")
    async def success(response: Response, batch: list[dict[str, Any]]) -> None:
        told.append(("success", (response.ok, [call["type"] for call in batch])))

    @hooks.action("altis.analytics.segment.request_failure")
    async def failure(response: Response | Exception, batch: list[dict[str, Any]]) -> None:
        told.append(("failure", (response, len(batch))))

    @hooks.action("altis.analytics.segment.after_send")
    async def after(results: Any, batches: Any, events: Any) -> None:
        types = [[call["type"] for call in one] for one in (*batches, *events)]
        told.append(("after", (len(results), results[0].status, types)))

    async def main() -> None:
        pipeline = make(hooks)
        await pipeline.read([(PARTITION, records(event("a"), event("a"), b"no"))])
        assert pipeline._budget.used > 0
        deliver(pipeline, Retry("timeout", "no answer"))
        deliver(pipeline)
        await pipeline._actions.drain(LONG)
        assert told[0][0] == "failure"
        assert sorted(told[1:]) == [
            ("after", (1, 200, [["identify", "track", "track"], ["identify", "track"] * 2])),
            ("success", (True, ["identify", "track", "track"])),
        ]
        assert not pipeline._responses
        await pipeline.ended()
        assert pipeline.account.balance() == []
        assert pipeline._budget.used == 0

    virtual_time.run(main())


def test_a_slow_action_holds_no_request_and_no_commit_back() -> None:
    hooks = Hooks()

    @hooks.action("altis.analytics.segment.request_success")
    async def slow(response: Any, batch: Any) -> None:  # noqa: ARG001
        await asyncio.sleep(LONG)

    async def main() -> None:
        pipeline = make(hooks)
        await pipeline.read([(PARTITION, records(event("a")))])
        deliver(pipeline)
        assert pipeline.committable(PARTITION, 1) == 1
        assert asyncio.get_running_loop().time() == virtual_time.START
        with capture_logs() as logs:
            await pipeline._actions.drain(1)
        assert logs == []
        await end(pipeline)

    virtual_time.run(main())


def test_the_account_balances_whatever_site_code_leaves() -> None:
    """Every shape that a record can have after formatted_data, mixed in one chunk."""
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def mix(data: list[list[Any]]) -> Any:
        shapes: list[Any] = [
            lambda one: one,
            lambda _: [],
            lambda _: None,
            lambda one: one[:1],
            lambda one: one[1:],
            lambda one: [one[1], one[1], one[0], one[1]],
            lambda one: [one[0], one[0]],
            lambda one: [{**one[1], "event": ""}],
            lambda one: [
                {"type": "group", "userId": "x", "groupId": "g", "traits": {"a": 1}},
                *one,
            ],
            lambda one: one * 50,
        ]
        return [shapes[number % len(shapes)](one) for number, one in enumerate(data)]

    async def main() -> None:
        pipeline = make(hooks, flush__max_calls="7")
        values = [event(f"user-{number % 7}") for number in range(100)]
        await pipeline.read([(PARTITION, records(*values, b"no", None))])
        assert pipeline.account.balance() == []
        while any(not lane.idle for lane in lanes(pipeline).values()):
            deliver(pipeline)
        account = pipeline.account
        assert account.balance() == []
        reasons = Counter(one.reason for one in letters(pipeline))
        assert reasons == {"hook_failed": 10, "invalid_call": 10, "not_json": 1, "empty": 1}
        assert (account.delivered, account.filtered) == (
            50,
            {"hook": 10},
        )  # 20 without a main call wait for their chunk
        await pipeline.ended()
        assert account.balance() == []
        assert account.released == 42

    virtual_time.run(main())


def test_changed_settings_hold_for_open_batches_and_for_lanes_to_come() -> None:
    async def main() -> None:
        pipeline = make(Hooks(), segment__sites__write_keys='{"2": "key-2"}')
        await pipeline.read([(PARTITION, records(*[event(f"u{n}") for n in range(4)]))])
        pipeline.settings.change({"flush.max_calls": 6, "flush.interval": "9s"})
        assert [batch.trigger for batch in lanes(pipeline)[KEY].ready] == ["calls"]
        more = records(*[event(f"u{n}", "2") for n in range(4, 8)], start=4)
        await pipeline.read([(PARTITION, more)])
        assert [len(batch) for batch in lanes(pipeline)["key-2"].ready] == [6]
        assert pipeline._delivery.interval_seconds == 9.0
        text = generate_latest(pipeline.registry).decode()
        assert "streamer_config_flush_interval_seconds 9.0" in text
        assert "streamer_config_flush_max_calls 6.0" in text
        assert 'streamer_config_reloads_total{result="ok"} 1.0' in text
        await end(pipeline)

    virtual_time.run(main())


def test_suppression_is_switched_on_and_off_while_it_runs() -> None:
    async def main() -> None:
        pipeline = make(Hooks())
        offset = 0

        async def suppressed_of_two() -> int:
            nonlocal offset
            before = pipeline.account.suppressed["identify"]
            for _ in range(2):
                await pipeline.read([(PARTITION, records(event("ann"), start=offset))])
                deliver(pipeline)
                offset += 1
            return pipeline.account.suppressed["identify"] - before

        assert await suppressed_of_two() == 0
        pipeline.settings.change({"aggregate.suppress_for": "1h"})
        assert await suppressed_of_two() == 1
        pipeline.settings.change({"aggregate.suppress_for": "2h"})
        assert await suppressed_of_two() == 2
        pipeline.settings.change({"aggregate.suppress_for": "0s"})
        assert pipeline._generation is not None
        assert len(pipeline._generation.digests) == 0
        assert await suppressed_of_two() == 0
        pipeline.settings.change({"aggregate.suppress_for": "1h"})
        assert await suppressed_of_two() == 1
        await end(pipeline)

    virtual_time.run(main())
