"""What a run shows: a live view on a terminal, a line a second elsewhere, and the account at the end.

It only draws. `Figures` is all it knows, and whoever runs the demo fills it in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streamer.core.account import Account
from streamer.core.destination import State
from streamer.core.model import CALL_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from streamer.demo.topics import Letter

_STYLES = {
    State.FLOWING: "green",
    State.PAUSED: "yellow",
    State.BACKING_OFF: "red",
    State.MISCONFIGURED: "red",
}
_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 300
_LONGEST_STATE = 40
_WIDEST = 120
_FIXED_LINES = 20
"""Lines of the live view besides the dead letters."""


@dataclass(slots=True)
class Figures:
    """How a run stands.

    Attributes:
        phase: what is being done: "producing", and so on.
        progress: how much of the run is over, as text.
        elapsed_seconds: since the first event.
        produced: records.
        held: whether the producer waits for commits.
        account: streamer's own; it goes on changing.
        events_per_second, requests_per_second: of the last seconds: records settled, requests that came in at mock
            Segment.
        calls_per_request: the same, None without requests.
        p50, p95, p99: lateness of the last seconds, measured at mock Segment, in seconds; None if nothing came.
        accepted: calls that mock Segment accepted, by type.
        duplicates: calls that it had accepted before.
        requests: that came in there.
        lag: records behind the committed offsets.
        state: of the destination, as streamer sees it.
        reason: why it doesn't flow.
        retry_seconds: until it is asked again.
        plays: what mock Segment does, and what it does next.
        letters: the last dead letters.
    """

    phase: str = "starting"
    progress: str = ""
    elapsed_seconds: float = 0.0
    produced: int = 0
    held: bool = False
    account: Account = field(default_factory=Account)
    events_per_second: float = 0.0
    requests_per_second: float = 0.0
    calls_per_request: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    accepted: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    requests: int = 0
    lag: int = 0
    state: State = State.FLOWING
    reason: str = ""
    retry_seconds: float = 0.0
    plays: str = ""
    letters: Sequence[Letter] = ()

    @property
    def saved(self) -> float | None:
        """The share of the calls made that merging saved; None before there are any."""
        made = sum(self.account.made.values())
        return sum(self.account.merged.values()) / made if made else None

    @property
    def segment(self) -> str:
        """The destination's state in words, with its reason."""
        words = str(self.state).replace("_", " ")
        if self.state is State.FLOWING:
            return words
        until = f" {self.retry_seconds:.1f} s" if self.retry_seconds >= 0.1 else ""
        return f"{words}{until}: {self.reason}"


class View(Protocol):
    """Shows figures while a run lasts."""

    def show(self, figures: Figures) -> None:
        """Show them; called several times a second."""

    def say(self, sentence: str) -> None:
        """Say something that happened."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def open_view(console: Console) -> View:
    """Open the view that fits: live on a terminal, else lines."""
    return LiveView(console) if console.is_terminal else Lines(console)


class Lines:
    """A line a second, for logs, pipes and files."""

    _COLUMNS = (
        ("s", 4), ("produced", 9), ("delivered", 10), ("letters", 8), ("events/s", 9), ("p50 s", 6), ("p95 s", 6),
        ("p99 s", 6), ("req/s", 6), ("calls/req", 10), ("saved", 6), ("lag", 7),
    )  # fmt: skip

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 1
        self._headed = False

    def show(self, figures: Figures) -> None:
        """See `View.show`."""
        if figures.elapsed_seconds < self._next:
            return
        self._next = int(figures.elapsed_seconds) + 1
        if not self._headed:
            self._headed = True
            self._print("".join(f"{name:>{width}}" for name, width in self._COLUMNS) + "  Segment")
        cells = (
            f"{int(figures.elapsed_seconds)}",
            f"{figures.produced}",
            f"{figures.account.delivered}",
            f"{figures.account.dead_lettered.total()}",
            f"{figures.events_per_second:.0f}",
            _seconds(figures.p50),
            _seconds(figures.p95),
            _seconds(figures.p99),
            f"{figures.requests_per_second:.1f}",
            _whole(figures.calls_per_request),
            _percent(figures.saved),
            f"{figures.lag}",
        )
        line = "".join(
            f"{cell:>{width}}" for cell, (_, width) in zip(cells, self._COLUMNS, strict=True)
        )
        segment = figures.segment
        if len(segment) > _LONGEST_STATE:
            segment = segment[: _LONGEST_STATE - 1] + "…"
        self._print(f"{line}  {segment}")

    def say(self, sentence: str) -> None:
        """See `View.say`."""
        self._print(sentence)

    def close(self) -> None:
        """See `View.close`."""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


class LiveView:
    """A picture that is drawn anew several times a second, in the lines where it stands."""

    def __init__(self, console: Console) -> None:
        self._picture = _Picture()
        self._live = Live(
            self._picture, console=console, auto_refresh=False, transient=True, screen=False
        )
        self._live.start()

    def show(self, figures: Figures) -> None:
        """See `View.show`."""
        self._picture.take(figures)
        self._live.refresh()

    def say(self, sentence: str) -> None:
        """See `View.say`; the picture shows it anyway."""

    def close(self) -> None:
        """See `View.close`."""
        self._live.stop()


class _Picture:
    """The live view's picture, as wide as the terminal and no higher."""

    def __init__(self) -> None:
        self._figures = Figures()
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._latenesses: deque[float | None] = deque(maxlen=_HISTORY)

    def take(self, figures: Figures) -> None:
        """Remember what to draw, and a point a second of the curves."""
        self._figures = figures
        while len(self._rates) < int(figures.elapsed_seconds):
            self._rates.append(figures.events_per_second)
            self._latenesses.append(figures.p95)
            if len(self._rates) == _HISTORY:
                break

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = min(options.max_width, _WIDEST), console.size.height
        figures = self._figures
        head = Table.grid(expand=True, padding=(0, 2))
        head.add_column(no_wrap=True)
        head.add_column(justify="right", no_wrap=True)
        head.add_row(
            Text.assemble(("streamer demo", "bold"), "  ", figures.phase),
            Text(figures.progress),
        )
        accounts = Table.grid(expand=True)
        accounts.add_column(ratio=5)
        accounts.add_column(ratio=11)
        accounts.add_row(
            Panel(self._records(), title="Records", title_align="left", border_style="dim"),
            Panel(self._calls(), title="Calls", title_align="left", border_style="dim"),
        )
        room = min(
            max(height - _FIXED_LINES - 1, 1), 10
        )  # a line less than there are: of the shell's
        picture = Group(
            head,
            Panel(self._flow(width), border_style="dim"),
            accounts,
            Panel(
                self._letters(room),
                title="Last dead letters: reason, partition/offset, detail",
                title_align="left",
                border_style="dim",
            ),
            "",  # where a terminal writes ^C, without harm to the picture
        )
        yield from console.render(picture, options.update(width=width))

    def _flow(self, width: int) -> RenderableType:
        figures = self._figures
        points = max(width - 60, 0)
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(style="dim", no_wrap=True, width=13)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_row(
            "events/s",
            Text.assemble(
                (f"{figures.events_per_second:<36,.0f}", "bold"),
                (_curve(list(self._rates)[-points:]), "cyan"),
            ),
        )
        percentiles = (("p50", figures.p50), ("p95", figures.p95), ("p99", figures.p99))
        late = "   ".join(f"{name} {_seconds(value)}" for name, value in percentiles)
        table.add_row(
            "lateness, s",
            Text.assemble(
                (f"{late:<36}", "bold"), (_curve(list(self._latenesses)[-points:]), "cyan")
            ),
        )
        table.add_row(
            "requests/s",
            f"{figures.requests_per_second:<9.1f}calls per request  {_whole(figures.calls_per_request)}",
        )
        table.add_row(
            "calls saved",
            f"{_percent(figures.saved):<9}by merging: {sum(figures.account.merged.values()):,}"
            f" of {sum(figures.account.made.values()):,} made",
        )
        held = "; the producer waits for commits" if figures.held else ""
        table.add_row("lag", f"{figures.lag:<9,}not committed yet{held}")
        table.add_row(
            "Segment",
            Text.assemble(
                ("● ", _STYLES[figures.state]), (figures.segment, _STYLES[figures.state])
            ),
        )
        table.add_row("mock Segment", figures.plays)
        return table

    def _records(self) -> RenderableType:
        figures, account = self._figures, self._figures.account
        table = Table.grid(expand=True)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        unread = figures.produced - account.consumed.total() + account.released
        for name, number in (
            ("produced", figures.produced),
            ("delivered", account.delivered),
            ("dead letters", account.dead_lettered.total()),
            ("in flight", account.in_flight),
            ("not read yet", max(unread, 0)),
        ):
            table.add_row(name, f"{number:,}")
        return table

    def _calls(self) -> RenderableType:
        figures, account = self._figures, self._figures.account
        table = Table.grid(expand=True, padding=(0, 0, 0, 1))
        table.add_column(style="dim", no_wrap=True)
        heads = ("made", "merged", "in flight", "delivered", "accepted")
        for _ in heads:
            table.add_column(justify="right", no_wrap=True)
        table.add_row("", *(Text(head, style="dim") for head in heads))
        for kind in CALL_TYPES:
            row = (
                account.made[kind],
                account.merged[kind],
                account.calls_in_flight[kind],
                account.calls_delivered[kind],
                figures.accepted.get(kind, 0),
            )
            table.add_row(kind, *(_short(number) for number in row))
        return table

    def _letters(self, room: int) -> RenderableType:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(style="yellow", no_wrap=True, width=14)
        table.add_column(style="dim", no_wrap=True, min_width=6)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        letters = list(self._figures.letters)[-room:]
        for letter in reversed(letters):
            table.add_row(letter.reason, letter.place, letter.detail)
        for _ in range(room - len(letters)):
            table.add_row("", "", "")
        return table


def print_account(console: Console, figures: Figures, answers: Mapping[str, int]) -> None:
    """Print every record's and every call's fate, beside what mock Segment counted.

    Args:
        console: where to.
        figures: at the end.
        answers: mock Segment's requests, by what they were answered.
    """
    account = figures.account
    letters = ", ".join(f"{reason} {n}" for reason, n in sorted(account.dead_lettered.items()))
    unread = figures.produced - account.consumed.total()
    records = Table(show_header=False)
    records.add_column()
    records.add_column(justify="right")
    rows = [
        ("produced", figures.produced),
        ("consumed", account.consumed.total()),
        ("delivered", account.delivered),
        ("filtered", account.filtered.total()),
        ("dead letters" + (f" ({letters})" if letters else ""), account.dead_lettered.total()),
        ("released: consumed, but not settled at the stop", account.released),
        ("not consumed: left in Kafka at the stop", max(unread, 0)),
        ("in flight", account.in_flight),
    ]
    for name, number in rows:
        if number or not name.startswith(("filtered", "released", "not consumed")):
            records.add_row(name, f"{number:,}")
    calls = Table()
    heads = ("type", "made", "merged", "refused", "released", "delivered", "accepted")
    for head in heads:
        calls.add_column(head, justify="left" if head == "type" else "right")
    for kind in CALL_TYPES:
        row = (
            account.made[kind],
            account.merged[kind],
            account.refused[kind],
            account.calls_released[kind],
            account.calls_delivered[kind],
            figures.accepted.get(kind, 0),
        )
        calls.add_row(kind, *(f"{number:,}" for number in row))
    console.print("Records")
    console.print(records)
    console.print("Calls (delivered: streamer's count; accepted: mock Segment's)")
    console.print(calls)
    said = ", ".join(f"{answer}: {n:,}" for answer, n in sorted(answers.items()))
    answered = f" ({said})" if said else ""
    requests = f"{figures.requests:,} request{'' if figures.requests == 1 else 's'}"
    console.print(f"{requests}{answered}", soft_wrap=True)
    if figures.duplicates:
        console.print(
            f"{figures.duplicates:,} calls came again, and were dropped by their messageId"
        )


def _curve(values: Sequence[float | None]) -> str:
    """Draw values as bars against the highest of them; a gap where there is none."""
    most = max((value for value in values if value is not None), default=0.0)
    last = len(_BARS) - 1
    return "".join(
        " " if value is None or most <= 0 else _BARS[min(int(value / most * len(_BARS)), last)]
        for value in values
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _short(number: int) -> str:
    """Write a count so that five of them fit beside each other in 80 columns."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1000:,.0f}k"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
