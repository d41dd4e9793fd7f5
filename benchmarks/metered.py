"""`streamer run`, which says at its end what its metrics and its account cost, as shares of its own CPU.

Two runs differ by more than metrics cost, so both numbers are of one run: every method of `Metrics`, every rendering of
`/metrics` and every step of the console's sampling is timed, and held against the CPU of the whole process. What the
clock takes is subtracted. The HTTP around a scrape isn't in it: a client that asks for any page costs that.

The account is written too often to be timed: its calls are counted, and multiplied by what one costs alone. Counting
itself costs the process a few thousandths of its CPU.

It takes its settings from the environment, and prints one line that begins with "metrics:". `end_to_end.py` runs it.
"""

# ruff: noqa: T201 - a script, which prints

from __future__ import annotations

import statistics
import time
import timeit
from collections import Counter
from functools import wraps
from inspect import iscoroutinefunction
from types import coroutine
from typing import TYPE_CHECKING

from streamer import server
from streamer.cli.run import run
from streamer.console import Console
from streamer.core.account import Account, Ledger
from streamer.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OBSERVING, SCRAPING, CONSOLE = "observing", "scraping", "the console"
REPEATS = 100_000
LEDGER: dict[str, tuple[object, ...]] = {
    "consumed": ("topic", 1, 1),
    "made": ("track", 1),
    "merged": ("identify",),
    "delivered": ("track", 1),
}
"""The methods of `Ledger` that a run with default settings calls, with arguments such as it is called with."""

seconds: Counter[str] = Counter()
spans: Counter[str] = Counter()
counts: Counter[str] = Counter()
accounts: list[Account] = []


def timed(part: str, work: Callable[..., object]) -> Callable[..., object]:
    """Add to a part what each call of a function takes."""

    @wraps(work)
    def call(*args: object, **keywords: object) -> object:
        begin = time.thread_time()
        try:
            return work(*args, **keywords)
        finally:
            seconds[part] += time.thread_time() - begin
            spans[part] += 1

    return call


def timed_steps(part: str, work: Callable[..., object]) -> Callable[..., object]:
    """Add to a part what each step of a coroutine takes that runs until it is cancelled."""

    @coroutine
    def steps(*args: object) -> Iterator[object]:
        working = work(*args)
        send, throw = timed(part, working.send), timed(part, working.throw)
        waits_for = send(None)
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the coroutine
                waits_for = throw(error)
            else:
                waits_for = send(answer)

    async def call(*args: object) -> None:
        await steps(*args)

    return call


def counted(name: str, work: Callable[..., object]) -> Callable[..., object]:
    """Count the calls of a function."""

    @wraps(work)
    def call(*args: object) -> object:
        counts[name] += 1
        return work(*args)

    return call


def watch() -> None:
    """Time what the metrics do from now on, and count what the account does."""
    for name, work in vars(Metrics).items():
        if not name.startswith("_") and name != "age_histogram":  # which is a part of each scrape
            wrap = timed_steps if iscoroutinefunction(work) else timed
            setattr(Metrics, name, wrap(OBSERVING, work))
    Console.run = timed_steps(CONSOLE, Console.run)
    choose = server.choose_encoder

    def choose_timed(accept: str) -> tuple[Callable[..., bytes], str]:
        encode, content_type = choose(accept)
        return timed(SCRAPING, encode), content_type

    server.choose_encoder = choose_timed
    for name in LEDGER:
        setattr(Ledger, name, counted(name, getattr(Ledger, name)))
    open_ledger = Account.ledger

    def keep(account: Account) -> Ledger:
        accounts.append(account)
        return open_ledger(account)

    Account.ledger = keep


def alone(statement: str, **names: object) -> float:
    """Measure what a statement costs by itself: seconds."""
    passes = timeit.repeat(
        statement, timer=time.thread_time, number=REPEATS, repeat=5, globals=names
    )
    return statistics.median(passes) / REPEATS


def report(cpu: float) -> str:
    """Say what the metrics and the account cost.

    Args:
        cpu: seconds that the whole process took.
    """
    nothing = timed("nothing", lambda: None)
    for _ in range(REPEATS):
        nothing()
    clock = seconds["nothing"] / REPEATS
    parts = {
        part: (seconds[part] - spans[part] * clock) / cpu for part in (OBSERVING, SCRAPING, CONSOLE)
    }
    ledger = Account().ledger()
    account = sum(
        times
        * alone(
            "write(*args)", write=getattr(ledger, name).__wrapped__, args=(ledger, *LEDGER[name])
        )
        for name, times in counts.items()
    )
    # Calls that are made are counted one by one in a dict, which the ledger gets now and then.
    made = sum(accounts[0].made.values())
    account += made * alone("made['track'] += 1", made={"track": 0})
    shares = [f"{part} {share:.2%} ({spans[part]:,} times)" for part, share in parts.items()]
    return (
        f"metrics: {sum(parts.values()):.2%} of the CPU of a run: {', '.join(shares)};"
        f" the account beside them: {account / cpu:.2%}"
    )


if __name__ == "__main__":
    watch()
    try:
        run()
    finally:
        print(report(time.process_time()))
