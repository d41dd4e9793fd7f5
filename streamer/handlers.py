"""Runs what site code registered: with a time limit, in threads of its own, so that nothing it does stops the stream.

A plain function runs in a thread, because it may do what blocks: the event loop, and with it the heartbeats, go on. An
`async` one runs on the event loop. One that takes too long is given up; a thread can't be stopped, so it is left behind
and another one is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

import structlog

from streamer.errors import PluginError
from streamer.hooks import API_WRITE_KEY, FORMATTED_DATA, handler_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from streamer.hooks import Call, Event, Handler, Hooks

log = structlog.get_logger()

_T = TypeVar("_T")

MAX_STUCK = 8
"""So many threads may be stuck in plain handlers; then no more of these are called until one comes back."""

MAX_PENDING_BYTES = 16_000_000
"""What actions that haven't run yet may keep: JSON of batches and events. What is beyond is dropped, and counted."""

_PACKAGE = f"{Path(__file__).parent}/"
_MAX_RUNNING = 16  # actions side by side
_MAX_TRACEBACK = 2000  # characters


class Observer(Protocol):
    """Is told what the metrics need."""

    def hook_failed(self, hook: str, how: str) -> None:
        """A handler `raised`, hung (`timeout`), gave something `wrong`, or was not called at all (`dropped`)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A filter that didn't do its work.

    Attributes:
        detail: which hook and handler, and what happened, with the traceback if there is one.
    """

    detail: str


class _TookTooLongError(Exception):
    """A handler didn't come back in time; the text says which."""


_Job: TypeAlias = "tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]"


class Worker:
    """A thread for plain functions, one at a time, that is replaced when a function doesn't come back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] | None = None
        self._stuck = 0

    async def call(self, function: Callable[[], _T]) -> _T:
        """Call a function in the thread.

        A cancellation, as by a time limit, gives the thread up.

        Args:
            function: what to call.

        Raises:
            Exception: what the function raised.
            _TookTooLongError: too many threads are stuck already.
        """
        if self._stuck >= MAX_STUCK:
            raise _TookTooLongError(f"{self._stuck} calls before it still haven't come back")
        if self._jobs is None:
            self._jobs = SimpleQueue()
            # A daemon: a stop doesn't wait for what is stuck.
            threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True).start()
        jobs = self._jobs
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()
        jobs.put((function, loop, done))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not done.done():
                self._stuck += 1
                done.add_done_callback(self._came_back)
                done.add_done_callback(_forget)
                if self._jobs is jobs:
                    self._jobs = None
                jobs.put(None)
            raise

    def close(self) -> None:
        """Let the thread end when it has nothing left to do."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None

    def _came_back(self, _: asyncio.Future[Any]) -> None:
        self._stuck -= 1


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        function, loop, done = job
        result: Any = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - code of others: even sys.exit() ends no thread here
            error = _as_exception(raised)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_finish, done, result, error)


def _finish(done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def traceback_of(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Give the end of an exception's traceback, from where site code begins.

    Args:
        error: the exception.
        secrets: what isn't shown: write keys that a handler was given, and may say.
    """
    own = error.__traceback__
    while own is not None and _is_ours(own.tb_frame.f_code.co_filename):
        own = own.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, own)).strip()
    except Exception:  # noqa: BLE001 - an exception of others may fail to say what it is
        text = type(error).__name__
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        for form in {secret, repr(secret)[1:-1], repr(f"{secret}'")[1:-2]}:
            text = text.replace(form, "[write key]")
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_TRACEBACK else f"…{text[-_MAX_TRACEBACK:]}"


def _is_ours(file: str) -> bool:
    return file.startswith(_PACKAGE) or "importlib" in file


left_behind: set[asyncio.Future[Any]] = set()
"""What was given up and hasn't ended: an event loop that closes would wait for it."""


def _failed(observer: Observer, hook: str, how: str, **facts: object) -> None:
    observer.hook_failed(hook, how)
    log.error("a handler failed", hook=hook, how=how, **facts)


class Filters:
    """Runs the filters that see events and calls.

    Args:
        hooks: what is registered.
        timeout_seconds: how long a handler may take for one chunk of records.
        observer: is told of failures.
    """

    def __init__(self, hooks: Hooks, timeout_seconds: float, observer: Observer) -> None:
        self._hooks = hooks
        self._timeout_seconds = timeout_seconds
        self._observer = observer
        self._worker = Worker("filters")

    @property
    def choose_write_keys(self) -> bool:
        """Whether a handler says which write key an event has."""
        return bool(self._hooks.handlers(API_WRITE_KEY))

    @property
    def see_calls(self) -> bool:
        """Whether a handler is given the calls."""
        return bool(self._hooks.handlers(FORMATTED_DATA))

    def close(self) -> None:
        """Let the thread end."""
        self._worker.close()

    async def write_keys(
        self, keys: Sequence[str], events: Sequence[Event], deadline: float = float("inf")
    ) -> list[str | Failure]:
        """Ask for the write keys of a chunk's events.

        Args:
            keys: what each would have.
            events: the events.
            deadline: when it is too late for anything, in seconds of the event loop's clock.

        Returns:
            for each event what the handlers made of its key, or why they couldn't.
        """
        found: list[Any] = list(keys)
        secrets = set(keys)
        for handler in self._hooks.handlers(API_WRITE_KEY):
            places = [i for i, key in enumerate(found) if not isinstance(key, Failure)]
            arguments = [(found[place], events[place]) for place in places]
            given: list[Any]
            try:
                given = await _limited(self._chosen(handler, arguments), self._seconds(deadline))
            except _TookTooLongError as error:
                given = [self._late(API_WRITE_KEY, handler, error)] * len(places)
            except Exception as error:  # noqa: BLE001 - code of others may raise anything
                given = [error] * len(places)
            secrets |= {key for key in given if type(key) is str}
            for place, key in zip(places, given, strict=True):
                found[place] = key
            for place in places:
                key = found[place]
                if isinstance(key, Exception):
                    found[place] = self._raised(API_WRITE_KEY, handler, key, secrets)
                elif type(key) is not str and not isinstance(key, Failure):
                    gave = "nothing" if key is None else type(key).__name__
                    detail = (
                        f"{handler_name(handler)} gave {gave}; expected the write key as text, or an empty one to"
                        " keep the event back"
                    )
                    _failed(self._observer, API_WRITE_KEY, "wrong", detail=detail)
                    found[place] = Failure(f"{API_WRITE_KEY}: {detail}.")
        return found

    async def _chosen(self, handler: Handler, arguments: list[tuple[Any, Event]]) -> list[Any]:
        """Call a handler for each event; what it raises stands in place of what it gives."""
        if inspect.iscoroutinefunction(handler):
            return await asyncio.gather(*(_awaited(handler(*one)) for one in arguments))

        given_up = threading.Event()

        def each() -> list[Any]:
            given: list[Any] = []
            for one in arguments:
                if given_up.is_set():
                    break
                try:
                    given.append(handler(*one))
                except BaseException as error:  # noqa: BLE001 - code of others may raise anything
                    given.append(_as_exception(error))
            return given

        try:
            given = await self._worker.call(each)
        except asyncio.CancelledError:
            given_up.set()
            raise
        if any(map(inspect.isawaitable, given)):
            given = await asyncio.gather(*map(_awaited, given))
        return given

    async def formatted_data(
        self, data: list[list[Call]], deadline: float = float("inf")
    ) -> list[object] | Failure:
        """Have the calls of a chunk's records changed.

        Args:
            data: a list for each record, of its calls.
            deadline: when it is too late for anything, in seconds of the event loop's clock.

        Returns:
            what the handlers made of it, of the same length; or why they couldn't.
        """
        changed: Any = data
        for handler in self._hooks.handlers(FORMATTED_DATA):
            try:
                changed = await _limited(
                    _called(self._worker, handler, lambda: (changed,)),  # noqa: B023 - awaited here
                    self._seconds(deadline),
                )
                if isinstance(changed, list):
                    changed = [*changed]  # of whatever class it is, and whoever changes it later
            except _TookTooLongError as error:
                return self._late(FORMATTED_DATA, handler, error)
            except Exception as error:  # noqa: BLE001 - code of others may raise anything
                return self._raised(FORMATTED_DATA, handler, error)
            if not isinstance(changed, list) or len(changed) != len(data):
                found = (
                    f"a list of {len(changed)}"
                    if isinstance(changed, list)
                    else type(changed).__name__
                )
                detail = (
                    f"{handler_name(handler)} gave {found}; expected a list of {len(data)}, in which position i is the"
                    " list of the calls of record i: an empty one leaves the record out"
                )
                _failed(self._observer, FORMATTED_DATA, "wrong", detail=detail)
                return Failure(f"{FORMATTED_DATA}: {detail}.")
        return cast("list[object]", changed)

    def _seconds(self, deadline: float) -> float:
        left = deadline - asyncio.get_running_loop().time()
        return min(self._timeout_seconds, max(left, 0.0))

    def _late(self, hook: str, handler: Handler, error: Exception) -> Failure:
        _failed(self._observer, hook, "timeout", handler=handler_name(handler), why=str(error))
        return Failure(f"{hook}: {handler_name(handler)} was given up: {error}.")

    def _raised(
        self, hook: str, handler: Handler, error: Exception, secrets: Iterable[str] = ()
    ) -> Failure:
        text = traceback_of(error, secrets)
        _failed(self._observer, hook, "raised", handler=handler_name(handler), exception=text)
        return Failure(f"{hook}: {handler_name(handler)} raised: {text}")


async def _awaited(key: Any) -> Any:  # noqa: ANN401 - whatever a handler gives
    """Await what a handler gives, if it can be awaited; what that raises stands in place of what it gives."""
    if not inspect.isawaitable(key):
        return key
    try:
        return await key
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return _as_exception(error)


async def _called(
    worker: Worker, handler: Handler, arguments: Callable[[], tuple[Any, ...]]
) -> Any:  # noqa: ANN401 - whatever it gives
    """Call a handler where it may run, with arguments that are made there."""
    try:
        if inspect.iscoroutinefunction(handler):
            return await handler(*arguments())
        result = await worker.call(lambda: handler(*arguments()))
        return await result if inspect.isawaitable(result) else result
    except (SystemExit, KeyboardInterrupt) as error:  # these would end the event loop
        raise _as_exception(error) from error


async def _limited(work: Coroutine[Any, Any, _T], seconds: float) -> _T:
    """Await work for so long; then it is cancelled and left to itself, whether it obeys or not.

    Raises:
        _TookTooLongError: it isn't done by then.
        Exception: what it raised; what would end more than it (a cancellation, an exit) as a RuntimeError.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            left_behind.add(task)
            task.add_done_callback(_forget)
    if not task.done():
        raise _TookTooLongError(f"it took longer than hook_timeout, {seconds:g} s")
    if task.cancelled():
        raise RuntimeError("it raised CancelledError, though nobody cancelled it")
    error = task.exception()
    if error is not None:
        raise _as_exception(error)
    return task.result()


def _forget(task: asyncio.Future[Any]) -> None:
    left_behind.discard(task)
    if not task.cancelled():
        task.exception()  # nobody else asks for it


def _as_exception(error: BaseException) -> Exception:
    """Give an exception that a future takes and that ends nothing but what raised it."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    # Not what it says of itself: that may raise, too.
    name = type(error).__name__
    return RuntimeError(f"it raised {name}").with_traceback(error.__traceback__)


class Actions:
    """Tells actions what has happened, beside the stream: no request waits for them.

    Args:
        hooks: what is registered.
        timeout_seconds: how long a handler may take.
        observer: is told of failures.
    """

    def __init__(self, hooks: Hooks, timeout_seconds: float, observer: Observer) -> None:
        self._hooks = hooks
        self._timeout_seconds = timeout_seconds
        self._observer = observer
        self._worker = Worker("actions")
        self._waiting: deque[tuple[str, Callable[[], tuple[Any, ...]], int]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._held = 0
        self._plain = asyncio.Lock()  # a plain one's time begins when the thread is free
        self._idle = asyncio.Event()
        self._idle.set()

    def wanted(self, hook: str) -> bool:
        """Whether an action has a handler."""
        return bool(self._hooks.handlers(hook))

    def tell(self, hook: str, arguments: Callable[[], tuple[Any, ...]], size: int) -> None:
        """Have the handlers of an action called soon.

        Args:
            hook: the action.
            arguments: makes what a handler is called with; once for each, so that they share no objects.
            size: bytes that are kept for it until then.
        """
        if self._held + size > MAX_PENDING_BYTES and self._held:
            _failed(
                self._observer,
                hook,
                "dropped",
                why="its handlers are slower than the requests: it wasn't called",
            )
            return
        self._held += size
        self._waiting.append((hook, arguments, size))
        self._start()

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until every action has been told, or the time is over; what runs then is cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        for hook, _, _ in self._waiting:
            _failed(
                self._observer, hook, "dropped", why="streamer stopped before it could be called"
            )
        self._waiting.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._worker.close()

    def _start(self) -> None:
        while self._waiting and len(self._running) < _MAX_RUNNING:
            hook, arguments, size = self._waiting.popleft()
            task = asyncio.create_task(self._tell(hook, arguments))
            self._running.add(task)
            self._idle.clear()
            task.add_done_callback(lambda task, size=size: self._ended(task, size))  # type: ignore[misc]

    def _ended(self, task: asyncio.Task[None], size: int) -> None:
        self._running.discard(task)
        self._held -= size
        self._start()
        if not self._running:
            self._idle.set()

    async def _tell(self, hook: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
        for handler in self._hooks.handlers(hook):
            # A plain one makes its arguments in the thread too: reading the JSON of a batch takes some milliseconds.
            turn = contextlib.nullcontext() if inspect.iscoroutinefunction(handler) else self._plain
            try:
                async with turn:
                    await _limited(_called(self._worker, handler, arguments), self._timeout_seconds)
            except _TookTooLongError as error:
                _failed(
                    self._observer, hook, "timeout", handler=handler_name(handler), why=str(error)
                )
            except Exception as error:  # noqa: BLE001 - code of others may raise anything
                _failed(
                    self._observer,
                    hook,
                    "raised",
                    handler=handler_name(handler),
                    exception=traceback_of(error),
                )


def at_start(hooks: Hooks, hook: str, value: _T, *arguments: object) -> _T:
    """Have a filter change what is set up at a start: the mapping of a type of call, or the group maps.

    Args:
        hooks: what is registered.
        hook: the filter.
        value: what is changed; the handlers may do so in place.
        arguments: what else they are called with.

    Returns:
        what they made of it, of the same type.

    Raises:
        PluginError: a handler raised, or gave something else back.
    """
    for handler in hooks.handlers(hook):
        try:
            changed = handler(value, *arguments)
            if inspect.isawaitable(changed):
                changed = _awaited_elsewhere(changed)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{hook}: {handler_name(handler)} raised:\n{traceback_of(error)}"
            ) from error
        expected = "dict" if isinstance(value, dict) else "list"
        if not isinstance(changed, Mapping if expected == "dict" else list):
            found = "nothing" if changed is None else type(changed).__name__
            raise PluginError(
                f"{hook}: {handler_name(handler)} returned {found}; expected the {expected} that it was given, changed"
                " or not"
            )
        value = cast("_T", dict(changed) if isinstance(changed, Mapping) else changed)
    return value


def _awaited_elsewhere(awaitable: Awaitable[_T]) -> _T:
    """Await where an event loop may be running already: on one of its own, in a thread."""

    async def run() -> _T:
        return await awaitable

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()
