"""`streamer mock-segment`: Segment as a process of its own."""

import asyncio
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from streamer.errors import ConfigError, StartError
from streamer.mock_segment import Fault, FaultError, MockSegment, Stats


def mock_segment(
    host: Annotated[
        str, typer.Option(help="Address to listen on. Whoever reaches it can set faults.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes one that is free.")
    ] = 9465,
    journal: Annotated[
        Path | None,
        typer.Option(help="NDJSON file to append a line to for every call and its fate."),
    ] = None,
    journal_calls: Annotated[
        bool, typer.Option(help="Write the calls themselves to the journal too.")
    ] = True,
    write_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A write key that is known; may be repeated. The calls of others get 200 and are thrown away, as at "
            "Segment. Without it, all keys are known."
        ),
    ] = None,
    requests_per_second: Annotated[
        float | None, typer.Option(help="Answer 429 to a write key that sends more than this.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="Misbehave from the start; may be repeated: delay:seconds=0.2,jitter_seconds=0.3 or "
            "answer:status=529,count=10 or answer:status=429,retry_after_seconds=2,retry_after_form=date or "
            "drop:accept=true,probability=0.1 or hang:duration_seconds=30 or refuse:event=bad. "
            "PUT /faults changes them while it runs."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the faults' probabilities and jitter.")] = 0,
    until_eof: Annotated[
        bool,
        typer.Option(
            "--until-eof",
            help="Stop when standard input ends, too: for a program that starts this and must not leave it behind.",
        ),
    ] = False,
) -> None:
    """Play Segment on loopback, for development: its limits, silent discards, deduplication and bad days."""
    try:
        segment = MockSegment(
            host=host,
            port=port,
            known_keys=write_key or None,
            faults=[Fault.parse(text) for text in fault or ()],
            seed=seed,
            requests_per_second=requests_per_second,
            journal=journal,
            journal_calls=journal_calls,
            keep_calls=False,
        )
    except FaultError as error:
        raise ConfigError(f"--fault: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"--requests-per-second: {error}.") from error
    try:
        asyncio.run(_serve(segment, until_eof))
    except OSError as error:
        reason = error.strerror or error
        if journal is not None and error.filename is not None:
            raise StartError(f"--journal {journal} can't be written: {reason}.") from error
        raise StartError(
            f"mock Segment can't listen on {host}:{port}: {reason}. Choose another --port, or 0 for any."
        ) from error
    _show(segment.stats)


async def _serve(segment: MockSegment, until_eof: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_eof() -> None:
        while os.read(sys.stdin.fileno(), 65_536):
            pass
        with suppress(RuntimeError):  # it has stopped for another reason
            loop.call_soon_threadsafe(stop.set)

    if until_eof:
        threading.Thread(target=wait_for_eof, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with segment:
        typer.echo(f"mock Segment listens on {segment.url}")
        await stop.wait()


def _show(stats: Stats) -> None:
    console = Console()
    if not console.is_terminal:
        typer.echo(stats.summary())
        return
    table = Table("", "", "count", title="mock Segment")
    counts = {
        "answers": stats.answers,
        "refusals": stats.refusals,
        "accepted": stats.accepted,
        "duplicate": stats.duplicates,
        "discarded": stats.discards,
    }
    for heading, counter in counts.items():
        for name, count in sorted(counter.items()):
            table.add_row(heading, name, f"{count:,}")
        table.add_section()
    console.print(table)
