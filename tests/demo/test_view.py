"""What a run shows: lines that are aligned, a picture that fits, and the account."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from streamer.core.account import Account
from streamer.core.destination import State
from streamer.core.model import Reason
from streamer.demo.topics import Letter
from streamer.demo.view import Figures, Lines, LiveView, _curve, open_view, print_account


def console(width: int = 80, height: int = 24, *, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=terminal, color_system=None
    )


def printed(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def figures(seconds: float = 3.0) -> Figures:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 1_234_567, 1)
    ledger.made("track", 1_234_000)
    ledger.delivered("track", 1_230_000)
    ledger.made("identify", 1_000_000)
    for _ in range(3):
        ledger.merged("identify")
    ledger.dead_lettered(Reason.NOT_JSON)
    return Figures(
        phase="1,000 events a second for 30s, flush interval 1s",
        progress="3 of 30 s",
        elapsed_seconds=seconds,
        produced=1_300_000,
        account=account,
        events_per_second=1000.4,
        requests_per_second=3.25,
        calls_per_request=612.3,
        p50=0.31,
        p95=1.04,
        p99=12.5,
        accepted={"track": 1_230_000},
        requests=2_000,
        lag=65_000,
        plays="healthy",
        letters=[Letter("call_too_large", "It is " + "very " * 40 + "large.", "3/1234567")] * 9,
    )


def test_a_terminal_gets_the_picture_and_all_else_lines() -> None:
    assert isinstance(open_view(console()), Lines)
    live = open_view(console(terminal=True))
    live.close()
    assert isinstance(live, LiveView)


def test_lines_come_once_a_second_and_are_aligned() -> None:
    to = console()
    lines = Lines(to)
    for quarter in range(13):
        lines.show(figures(quarter / 4))
    head, *rows = printed(to).splitlines()
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    for name, cell in (("p99 s", "12.50"), ("events/s", "1000"), ("saved", "0%"), ("lag", "65000")):
        end = head.index(name) + len(name)
        assert {row[:end].split()[-1] for row in rows} == {cell}


def test_a_line_says_why_segment_does_not_flow_and_stays_short() -> None:
    to = console()
    held = figures()
    held.state, held.reason, held.retry_seconds = State.BACKING_OFF, "503 " + "so " * 90, 2.34
    Lines(to).show(held)
    row = printed(to).splitlines()[-1]
    assert "backing off 2.3 s: 503 so so" in row
    assert len(row) < 140


def test_lines_before_anything_was_delivered() -> None:
    to = console()
    Lines(to).show(Figures(elapsed_seconds=1.0))
    cells = printed(to).splitlines()[1].split()
    assert " ".join(cells) == "1 0 0 0 0 - - - 0.0 - - 0 flowing"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
def test_the_picture_fits_the_terminal(width: int, height: int) -> None:
    """All of its lines, with room for the shell's; nothing of a number or a head is cut off."""
    to = console(width, height, terminal=True)
    live = LiveView(to)
    shown = figures()
    for second in range(100):
        shown.elapsed_seconds = float(second)
        live._picture.take(shown)
    lines = to.render_lines(live._picture, pad=False)
    live.close()
    text = ["".join(segment.text for segment in line) for line in lines]
    assert len(text) < height
    assert max(map(len, text)) <= min(width, 120)
    frame = "\n".join(text)
    for words in (
        "3 of 30 s", "p50 0.31   p95 1.04   p99 12.50", "calls per request  612", "65,000", "● flowing", "healthy",
        "made", "merged", "in flight", "delivered", "accepted", "1,234k", "1,230k", "dead letters", "65,433",
        "call_too_large", "3/1234567", "It is very",
    ):  # fmt: skip
        assert words in frame, words
    assert "█" in frame


def test_the_picture_says_why_segment_does_not_flow() -> None:
    to = console(terminal=True)
    live = LiveView(to)
    held = figures()
    held.state, held.reason, held.retry_seconds = State.PAUSED, "429 Too Many Requests", 1.0
    held.held = True
    live.show(held)
    live.close()
    assert "● paused 1.0 s: 429 Too Many Requests" in printed(to)
    assert "the producer waits for commits" in printed(to)


def test_the_account_has_every_fate() -> None:
    to = console()
    end = figures()
    end.duplicates = 5
    print_account(to, end, {"200": 1_990, "503": 10})
    text = printed(to)
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "dead letters (not_json 1)",
        "65,433",
        "1,234,000",
        "2,000 requests (200: 1,990, 503: 10)",
        "5 calls",
    ):
        assert words in text
    assert "released:" not in text, "what didn't happen takes no line"


def test_a_curve_is_drawn_against_its_highest_value() -> None:
    assert _curve([0, 4, 8]) == "▁▅█"
    assert _curve([None, 8, None]) == " █ "
    assert _curve([0, 0]) == "  "
    assert _curve([]) == ""
