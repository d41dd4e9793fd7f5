"""`streamer run`: the service."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from streamer.cli import AltisOption, ConfigOption
from streamer.config import Config, load_config
from streamer.errors import ConfigError
from streamer.handlers import left_behind
from streamer.hooks import registered
from streamer.logs import catch_all, configure, release
from streamer.pipeline import Pipeline
from streamer.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger()


def run(
    config: ConfigOption = None,
    altis: AltisOption = None,
    interval: Annotated[str | None, typer.Option(help="Overrides flush.interval.")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Overrides flush.concurrency.")] = None,
    port: Annotated[int | None, typer.Option(help="Overrides server.port.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Forward events from Kafka to Segment until SIGTERM or SIGINT; a second signal stops at once.

    SIGHUP reads the settings again: flush settings and aggregate.suppress_for change while it runs.
    """
    configure(log_level)
    catch_all()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until settings can be read again
    flags = {"flush.interval": interval, "flush.concurrency": concurrency, "server.port": port}
    load = partial(load_config, config, flags, altis=altis)
    settings = load()
    configure(log_level, secrets=secrets_of(settings))
    for note in settings.notes:
        log.warning(note)
    if not settings.segment.enabled:
        log.info(
            "segment.enabled is false: nothing to do", set_in=settings.origins["segment.enabled"]
        )
        return
    if settings.transform.profile == "altis":
        log.warning(
            'transform.profile is "altis": calls are what the PHP integration sends, with its faults',
            ids="identify and page or track have one id, of which Segment keeps the first call; groups have none",
            traits="what is read a second time has its old ids, and Segment drops it",
            cost="identify and group calls aren't merged: each is billed",
            never="together with the PHP integration, or the other profile, into one Segment workspace",
        )
    plugins = load_plugins(settings.plugins, settings.file)
    if plugins or registered.names():
        log.info("site code is loaded", plugins=plugins, hooks=registered.names())
    asyncio.run(forward(settings, load))


def secrets_of(settings: Config) -> list[str]:
    """What no line of the log may show."""
    segment = settings.segment
    found = (
        segment.write_key,
        settings.kafka.sasl_password,
        settings.server.token,
        *segment.sites.write_keys.values(),
    )
    return [secret.get_secret_value() for secret in found if secret]


async def forward(settings: Config, load: Callable[[], Config]) -> None:
    """Run a pipeline until a signal comes.

    Args:
        settings: all of them.
        load: reads them again.
    """
    stop = asyncio.Event()
    pipeline = Pipeline(settings, load=load)
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with suppress(ConfigError):  # which is in the log
            await pipeline.settings.reload()

    def on_hangup() -> None:
        task = asyncio.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)  # a second one means now; what isn't committed is read again
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    collect_seldom()
    await pipeline.run(stop)
    account = pipeline.account
    release()
    log.info(
        "stopped",
        consumed=account.consumed.total(),
        delivered=account.delivered,
        filtered=account.filtered.total(),
        dead_lettered=account.dead_lettered.total(),
        released=account.released,
    )
    if left_behind:
        await asyncio.wait(left_behind, timeout=0.5)  # what was cancelled just now
    if left_behind:  # an event loop that closes would wait for it
        log.warning(
            "handlers that ignored their time limit are left behind", count=len(left_behind)
        )
        logging.shutdown()
        os._exit(0)


def collect_seldom() -> None:
    """Let Python's garbage collector look seldom.

    What was imported lives as long as the process, and calls are many objects that live for a second: looking through
    them as often as Python does by default costs a tenth of the CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
