"""`streamer.handlers`: site code raises, hangs and gives what it may not, and nothing of that stops the stream."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamer import virtual_time
from streamer.errors import PluginError
from streamer.handlers import (
    MAX_PENDING_BYTES,
    MAX_STUCK,
    Actions,
    Failure,
    Filters,
    Worker,
    at_start,
)
from streamer.hooks import (
    AFTER_SEND,
    API_WRITE_KEY,
    FORMATTED_DATA,
    GROUPS,
    MAPPING,
    REQUEST_FAILURE,
    REQUEST_SUCCESS,
    Hooks,
    handler_name,
)

LONG = 3600.0


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.failures: Counter[tuple[str, str]] = Counter()

    def hook_failed(self, hook: str, how: str) -> None:
        self.failures[hook, how] += 1


def filters(hooks: Hooks, timeout_seconds: float = LONG) -> tuple[Filters, Notes]:
    notes = Notes()
    return Filters(hooks, timeout_seconds, notes), notes


# --- filters of events and calls ---------------------------------------------------------------


def test_plain_and_async_handlers_change_the_key_one_after_the_other() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.api_write_key")
    def plain(key: str, event: dict[str, Any]) -> str:
        assert threading.current_thread() is not threading.main_thread()
        return f"{key}-{event['site']}"

    @hooks.filter("altis.analytics.segment.api_write_key", priority=20)
    async def asynchronous(key: str, event: dict[str, Any]) -> str:
        await asyncio.sleep(0)
        return "" if event["site"] == "c" else f"{key}!"

    @hooks.filter("altis.analytics.segment.api_write_key", priority=30)
    def lazily(key: str, event: dict[str, Any]) -> Any:  # noqa: ARG001
        async def later() -> str:
            return key

        return later()

    async def main() -> list[Any]:
        made, _ = filters(hooks)
        try:
            return await made.write_keys(["k", "k", "k"], [{"site": site} for site in "abc"])
        finally:
            made.close()

    assert asyncio.run(main()) == ["k-a!", "k-b!", ""]


def test_a_key_handler_that_raises_fails_that_event_alone() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.api_write_key")
    def lookup(key: str, event: dict[str, Any]) -> str:
        if event["site"] == "b":
            raise KeyError(key)
        return key

    @hooks.filter("altis.analytics.segment.api_write_key", priority=20)
    async def wrong(key: str, event: dict[str, Any]) -> Any:
        return 7 if event["site"] == "a" and event["wrong"] else key

    async def main() -> tuple[list[Any], Notes]:
        made, notes = filters(hooks)
        events: list[dict[str, Any]] = [
            {"site": "a", "wrong": False},
            {"site": "b"},
            {"site": "a", "wrong": True},
        ]
        found = await made.write_keys(["the-secret"] * 3, events)
        made.close()
        return found, notes

    with capture_logs() as logs:
        (good, raised, wrong_), notes = asyncio.run(main())
    assert good == "the-secret"
    assert isinstance(raised, Failure)
    assert "KeyError: '[write key]'" in raised.detail
    assert "raise KeyError(key)" in raised.detail, "the traceback"
    assert "the-secret" not in str(logs)
    assert isinstance(wrong_, Failure)
    assert "gave int; expected the write key as text" in wrong_.detail
    assert notes.failures == {(API_WRITE_KEY, "raised"): 1, (API_WRITE_KEY, "wrong"): 1}
    assert [(line["hook"], line["how"]) for line in logs] == [
        (API_WRITE_KEY, "raised"),
        (API_WRITE_KEY, "wrong"),
    ]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    "raises",
    [
        ValueError("no"),
        TimeoutError("mine"),
        StopIteration("next"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
)
def test_a_filter_that_raises_whatever_it_is_fails_with_its_traceback(
    raises: BaseException, *, plain: bool
) -> None:
    hooks = Hooks()

    def fail(*_: Any) -> Any:
        raise raises

    async def fail_async(*_: Any) -> Any:
        raise raises

    handler = fail if plain else fail_async
    hooks.filter("altis.analytics.segment.formatted_data")(handler)
    hooks.filter("altis.analytics.segment.api_write_key")(handler)

    async def main() -> tuple[list[Any], Notes]:
        made, notes = filters(hooks)
        found = [await made.formatted_data([[{}]]), *await made.write_keys(["k"], [{}])]
        made.close()
        return found, notes

    found, notes = asyncio.run(main())
    for failure in found:
        assert isinstance(failure, Failure)
        assert "raised" in failure.detail
        assert handler.__name__ in failure.detail
        assert type(raises).__name__ in failure.detail
        if isinstance(raises, ValueError | TimeoutError):
            assert "raise raises" in failure.detail
    assert notes.failures == {(FORMATTED_DATA, "raised"): 1, (API_WRITE_KEY, "raised"): 1}


def test_a_handler_that_ignores_its_cancellation_is_left_to_itself() -> None:
    hooks = Hooks()
    came_back = []

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def stubborn(data: list[list[Any]]) -> list[list[Any]]:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            await asyncio.sleep(50)
            came_back.append(True)
        return data

    async def main() -> None:
        made, notes = filters(hooks, timeout_seconds=10.0)
        found = await made.formatted_data([[{}]])
        assert isinstance(found, Failure)
        assert asyncio.get_running_loop().time() - virtual_time.START == pytest.approx(10.0)
        assert notes.failures == {(FORMATTED_DATA, "timeout"): 1}
        await asyncio.sleep(100)
        assert came_back == [True]

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "gave NoneType; expected a list of 2"),
        ([[]], "gave a list of 1; expected a list of 2"),
        ([[], [], []], "gave a list of 3"),
        ({}, "gave dict"),
    ],
)
def test_formatted_data_of_another_length_is_a_failure_that_says_the_rule(
    given: Any, says: str
) -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    def shorten(data: list[list[Any]]) -> Any:  # noqa: ARG001
        return given

    async def main() -> tuple[Any, Notes]:
        made, notes = filters(hooks)
        try:
            return await made.formatted_data([[{}], [{}]]), notes
        finally:
            made.close()

    found, notes = asyncio.run(main())
    assert isinstance(found, Failure)
    assert says in found.detail
    assert "position i" in found.detail
    assert notes.failures == {(FORMATTED_DATA, "wrong"): 1}


def test_an_async_handler_that_hangs_is_given_up_after_the_time_limit() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def hang(data: list[list[Any]]) -> list[list[Any]]:
        await asyncio.sleep(LONG)
        return data

    @hooks.filter("altis.analytics.segment.api_write_key")
    async def hang_too(key: str, event: dict[str, Any]) -> str:  # noqa: ARG001
        await asyncio.sleep(LONG)
        return key

    async def main() -> None:
        made, notes = filters(hooks, timeout_seconds=10.0)
        started = asyncio.get_running_loop().time()
        found = await made.formatted_data([[{}]])
        assert isinstance(found, Failure)
        assert "longer than hook_timeout, 10 s" in found.detail
        assert asyncio.get_running_loop().time() - started == 10.0
        keys = await made.write_keys(["a", "b"], [{}, {}])
        assert all(isinstance(key, Failure) for key in keys)
        assert notes.failures == {(FORMATTED_DATA, "timeout"): 1, (API_WRITE_KEY, "timeout"): 1}

    virtual_time.run(main())


def test_a_plain_handler_that_hangs_is_left_behind_and_the_loop_goes_on() -> None:
    hooks = Hooks()
    release = threading.Event()

    @hooks.filter("altis.analytics.segment.formatted_data")
    def hang(data: list[list[Any]]) -> list[list[Any]]:
        if data[0]:
            release.wait(60)
        return data

    async def main() -> None:
        made, notes = filters(hooks, timeout_seconds=0.1)
        turns = 0

        async def beat() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        beating = asyncio.create_task(beat())
        assert isinstance(await made.formatted_data([[{}]]), Failure)
        assert turns > 3, "heartbeats went on"
        beating.cancel()
        assert await made.formatted_data([[]]) == [[]], "another thread does the work"
        assert notes.failures == {(FORMATTED_DATA, "timeout"): 1}
        made.close()

    try:
        asyncio.run(main())
    finally:
        release.set()


def test_what_a_handler_gave_is_masked_in_what_the_next_one_raises() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.api_write_key")
    async def one(key: str, event: dict[str, Any]) -> str:  # noqa: ARG001
        return "SECRET'OF\"SHOP"

    @hooks.filter("altis.analytics.segment.api_write_key", priority=20)
    def two(key: str, event: dict[str, Any]) -> str:
        raise KeyError({key: event, "more": "x" * 1900})

    async def main() -> Any:
        made, _ = filters(hooks)
        try:
            return await made.write_keys(["the-default"], [{}])
        finally:
            made.close()

    with capture_logs() as logs:
        (failure,) = asyncio.run(main())
    assert isinstance(failure, Failure)
    assert "SHOP" not in failure.detail
    assert "SHOP" not in str(logs)


def test_the_name_of_a_handler_never_shows_what_it_holds() -> None:
    class Keys:
        def __init__(self, key: str) -> None:
            self.key = key

        def __repr__(self) -> str:
            return self.key

        def __call__(self, key: str, event: dict[str, Any]) -> str:
            raise ValueError(key, event)

        def choose(self, key: str, event: dict[str, Any], secret: str = "") -> str:  # noqa: ARG002
            raise ValueError("no")

    hooks = Hooks()
    hooks.filter("altis.analytics.segment.api_write_key")(Keys("hidden"))
    hooks.filter("altis.analytics.segment.api_write_key")(Keys("hidden").choose)
    hooks.filter("altis.analytics.segment.api_write_key")(
        partial(Keys("hidden").choose, secret="hidden")
    )
    names = [handler_name(one) for one in hooks.handlers(API_WRITE_KEY)]
    assert [name.rpartition(".")[2] for name in names] == ["Keys", "choose", "choose"]
    assert "hidden" not in str(names)
    register: Any = hooks.filter("altis.analytics.segment.groups")
    for handler in (Keys("hidden"), partial(Keys("hidden").choose, secret="hidden")):
        with pytest.raises(TypeError, match="takes") as caught:
            register(handler)
        assert "hidden" not in str(caught.value)


def test_a_plain_handler_of_keys_that_is_given_up_is_asked_no_further() -> None:
    hooks = Hooks()
    asked = []
    release = threading.Event()

    @hooks.filter("altis.analytics.segment.api_write_key")
    def slow(key: str, event: dict[str, Any]) -> str:
        asked.append(event["n"])
        release.wait(60)
        return key

    async def main() -> None:
        made, _ = filters(hooks, timeout_seconds=0.05)
        found = await made.write_keys(["k"] * 100, [{"n": number} for number in range(100)])
        assert all(isinstance(one, Failure) for one in found)
        made.close()
        await asyncio.sleep(0.01)
        release.set()

    asyncio.run(main())
    assert_no_thread("filters")
    assert asked == [0]


def test_a_deadline_is_shorter_than_the_time_limit() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def hang(data: list[list[Any]]) -> list[list[Any]]:
        await asyncio.sleep(LONG)
        return data

    async def main() -> None:
        made, _ = filters(hooks, timeout_seconds=10.0)
        deadline = asyncio.get_running_loop().time() + 12
        for _ in range(5):
            assert isinstance(await made.formatted_data([[{}]], deadline), Failure)
        assert asyncio.get_running_loop().time() == pytest.approx(deadline)

    virtual_time.run(main())


@pytest.mark.parametrize("how", ["iter", "len"])
def test_a_list_of_a_class_of_its_own_is_taken_for_what_it_gives(how: str) -> None:
    class Odd(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter([]) if how == "iter" else super().__iter__()

        def __len__(self) -> int:
            if how == "len":
                raise ValueError("no")
            return super().__len__()

    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def odd(data: list[list[Any]]) -> Any:
        return Odd(data)

    async def main() -> Any:
        made, _ = filters(hooks)
        return await made.formatted_data([[{}]])

    found = asyncio.run(main())
    assert isinstance(found, Failure), how


# --- the thread --------------------------------------------------------------------------------


def test_no_more_threads_than_that_get_stuck() -> None:
    release = threading.Event()

    async def main() -> None:
        worker = Worker("test")
        for _ in range(MAX_STUCK):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await worker.call(lambda: release.wait(60))
        with pytest.raises(Exception, match=f"{MAX_STUCK} calls before it"):
            await worker.call(int)
        release.set()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await worker.call(lambda: 7) == 7
                    break
                except Exception:  # noqa: BLE001 - until they have come back
                    await asyncio.sleep(0.01)
        worker.close()

    asyncio.run(main())
    assert_no_thread("test")


def test_what_a_function_raises_comes_back_even_an_exit() -> None:
    async def main() -> None:
        worker = Worker("test")
        for raised, says in ((ValueError, "why"), (SystemExit, "it raised SystemExit")):

            def fail(raised: type[BaseException] = raised) -> None:
                raise raised("why")

            with pytest.raises((ValueError, RuntimeError), match=says):
                await worker.call(fail)
        assert await worker.call(lambda: "alive") == "alive"
        worker.close()

    asyncio.run(main())
    assert_no_thread("test")


def assert_no_thread(name: str) -> None:
    deadline = time.monotonic() + 10
    while any(thread.name == name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- actions -----------------------------------------------------------------------------------


def test_every_handler_of_an_action_gets_objects_of_its_own_in_order() -> None:
    hooks = Hooks()
    seen: list[Any] = []

    @hooks.action("altis.analytics.segment.request_success")
    async def first(response: Any, batch: list[Any]) -> None:
        batch.clear()
        seen.append((response, "first"))

    @hooks.action("altis.analytics.segment.request_success", priority=20)
    def second(response: Any, batch: list[Any]) -> None:
        seen.append((response, batch))

    async def main() -> None:
        notes = Notes()
        actions = Actions(hooks, LONG, notes)
        for number in range(3):
            actions.tell(REQUEST_SUCCESS, lambda number=number: (number, [{}]), 2)  # type: ignore[misc]
        assert not seen, "nobody waits for it"
        await actions.drain(LONG)
        assert not notes.failures

    asyncio.run(main())
    assert [one for one in seen if one[1] == "first"] == [(n, "first") for n in range(3)]
    assert [one for one in seen if one[1] != "first"] == [(n, [{}]) for n in range(3)]
    assert_no_thread("actions")


def test_an_action_that_raises_or_hangs_is_counted_and_the_others_are_told() -> None:
    hooks = Hooks()
    told = []

    @hooks.action("altis.analytics.segment.request_failure")
    async def fail(response: Any, batch: list[Any]) -> None:  # noqa: ARG001
        raise RuntimeError("no")

    @hooks.action("altis.analytics.segment.request_failure", priority=11)
    async def hang(response: Any, batch: list[Any]) -> None:  # noqa: ARG001
        await asyncio.sleep(LONG)

    @hooks.action("altis.analytics.segment.request_failure", priority=12)
    async def tell(response: Any, batch: list[Any]) -> None:  # noqa: ARG001
        told.append(response)

    async def main() -> None:
        notes = Notes()
        actions = Actions(hooks, 5.0, notes)
        actions.tell(REQUEST_FAILURE, lambda: (1, []), 0)
        await actions.drain(LONG)
        assert notes.failures == {(REQUEST_FAILURE, "raised"): 1, (REQUEST_FAILURE, "timeout"): 1}

    with capture_logs() as logs:
        virtual_time.run(main())
    assert told == [1]
    assert logs[0]["how"] == "raised"
    assert "RuntimeError: no" in logs[0]["exception"]


def test_actions_slower_than_the_requests_are_dropped_not_kept_without_end() -> None:
    hooks = Hooks()
    told = []

    @hooks.action("altis.analytics.segment.after_send")
    async def slow(results: Any, batches: Any, events: Any) -> None:  # noqa: ARG001
        await asyncio.sleep(1)
        told.append(results)

    async def main() -> None:
        notes = Notes()
        actions = Actions(hooks, LONG, notes)
        for number in range(12):
            actions.tell(AFTER_SEND, lambda number=number: (number, [], []), MAX_PENDING_BYTES // 8)  # type: ignore[misc]
        assert notes.failures == {(AFTER_SEND, "dropped"): 4}
        await actions.drain(LONG)
        assert sorted(told) == list(range(8))
        actions.tell(AFTER_SEND, lambda: (99, [], []), 2 * MAX_PENDING_BYTES)
        await actions.drain(LONG)
        assert told[-1] == 99, "one that is larger than all that may be kept isn't dropped for ever"

    virtual_time.run(main())


def test_a_stop_waits_for_actions_no_longer_than_it_may() -> None:
    hooks = Hooks()

    @hooks.action("altis.analytics.segment.request_success")
    async def hang(response: Any, batch: list[Any]) -> None:  # noqa: ARG001
        await asyncio.sleep(LONG)

    async def main() -> None:
        notes = Notes()
        actions = Actions(hooks, LONG, notes)
        for _ in range(20):
            actions.tell(REQUEST_SUCCESS, lambda: (1, []), 0)
        await asyncio.sleep(0)
        await actions.drain(3.0)
        assert asyncio.get_running_loop().time() - virtual_time.START <= 3.0
        assert notes.failures[REQUEST_SUCCESS, "dropped"] == 4, "16 run side by side"

    virtual_time.run(main())


def test_without_a_handler_nothing_is_wanted() -> None:
    async def main() -> None:
        actions = Actions(Hooks(), LONG, Notes())
        assert not any(actions.wanted(h) for h in (REQUEST_SUCCESS, REQUEST_FAILURE, AFTER_SEND))
        await actions.drain(0)

    asyncio.run(main())


# --- filters of the set-up ---------------------------------------------------------------------


def test_filters_at_a_start_may_be_async_also_where_a_loop_runs() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.groups")
    async def add(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        return [*groups, {"field": "b"}]

    @hooks.filter("altis.analytics.segment.mapping")
    def name(mapping: dict[str, Any], type: str) -> dict[str, Any]:  # noqa: A002
        mapping["type"] = type
        return mapping

    async def main() -> Any:
        return at_start(hooks, GROUPS, [{"field": "a"}])

    assert asyncio.run(main()) == at_start(hooks, GROUPS, [{"field": "a"}])
    assert at_start(hooks, GROUPS, [{"field": "a"}]) == [{"field": "a"}, {"field": "b"}]
    assert at_start(hooks, MAPPING, {}, "page") == {"type": "page"}


def test_a_filter_at_a_start_that_fails_is_an_error_that_names_it() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.mapping")
    def forgets(mapping: dict[str, Any], type: str) -> Any:  # noqa: A002
        mapping["type"] = type

    @hooks.filter("altis.analytics.segment.groups")
    def fails(groups: Any) -> Any:  # noqa: ARG001
        raise LookupError("gone")

    with pytest.raises(PluginError, match=r"forgets returned nothing; expected the dict"):
        at_start(hooks, MAPPING, {}, "page")
    with pytest.raises(PluginError, match=r"(?s)fails raised:.*LookupError: gone"):
        at_start(hooks, GROUPS, [])
