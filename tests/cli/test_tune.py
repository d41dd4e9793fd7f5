"""`streamer tune`: what it prints of a trace or of made-up events, and what it says where it can't."""

from __future__ import annotations

import builtins
import sys
from array import array
from io import StringIO
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from rich.console import Console
from typer.testing import CliRunner

from documents import assert_printed, run_streamer, transcripts
from streamer.cli import app
from streamer.cli.tune_report import Result as Found
from streamer.cli.tune_report import Setting, report
from streamer.errors import ConfigError, StartError
from streamer.simulation import Aim, Played, Point
from streamer.trace import Arrival, Trace

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

SHORT = ("--rate", "40", "--for", "20s", "--interval", "500ms,1s,2s,4s")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGMENT_API_WRITE_KEY", raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["tune", *arguments])


def printed(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.stdout


def as_json(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(printed(*arguments, "--json"))
    return document


def problem(*arguments: str) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError | StartError), result.stdout
    return str(result.exception)


def trace_of(path: Path, *lines: dict[str, Any]) -> str:
    head = {"trace": 1, "streamer": "0", "profile": "default"}
    path.write_bytes(b"\n".join(orjson.dumps(line) for line in (head, *lines)))
    return str(path)


def page(at_ms: int) -> dict[str, Any]:
    return {
        "at": at_ms, "topic": "t", "partition": 0, "bytes": 2000, "key": "k", "calls": [], "main": ["page", 500],
    }  # fmt: skip


def test_a_row_for_each_interval_with_all_that_is_weighed() -> None:
    found = as_json(*SHORT)
    assert found["records"] == 800
    assert [row["settings"]["flush.interval"] for row in found["settings"]] == [
        "500ms",
        "1s",
        "2s",
        "4s",
    ]
    late = [row["lateness_seconds"]["p95"] for row in found["settings"]]
    requests = [row["requests_per_second"] for row in found["settings"]]
    billed = [row["calls_billed"] for row in found["settings"]]
    assert late == sorted(late)
    assert requests == sorted(requests, reverse=True)
    assert billed == sorted(billed, reverse=True)
    for row in found["settings"]:
        assert (
            row["calls_billed"] == row["calls_made"] - row["calls_merged"] - row["calls_suppressed"]
        )
        assert row["lateness_seconds"]["p50"] < row["lateness_seconds"]["p99"]
        assert row["bytes_per_second"] > 0
    assert found["in_force"] == {"flush.interval": "1s"}


def test_equal_seeds_give_equal_answers_and_others_dont() -> None:
    assert as_json(*SHORT) == as_json(*SHORT)
    assert as_json(*SHORT) != as_json(*SHORT, "--seed", "2")


def test_the_table_marks_what_is_in_force_the_knee_and_what_is_recommended() -> None:
    text = printed(*SHORT, "--max-lateness", "3s")
    rows = {
        line.split()[1]: line
        for line in text.splitlines()
        if line.startswith(("•", "◆", "★")) and "in force" not in line
    }
    assert "•" in rows["1s"]
    starred = [line for line in text.splitlines() if line.startswith("★")]
    assert len(starred) == 1
    assert "• in force  ◆ the knee  ★ recommended" in text
    assert "Wanted: 95 % of the events at most 3s late." in text
    assert 'Recommended: flush.interval = "' in text
    assert "left out" not in text  # nothing is suppressed
    assert "\x1b" not in text  # it isn't a terminal


def test_what_is_recommended_meets_the_aim_and_stands_in_the_table() -> None:
    found = as_json(*SHORT, "--max-lateness", "3s")
    best = next(row for row in found["settings"] if row["settings"] == found["recommended"])
    assert 2.5 < best["lateness_seconds"]["p95"] <= 3.0
    found = as_json(*SHORT, "--max-requests", "0.4")
    best = next(row for row in found["settings"] if row["settings"] == found["recommended"])
    assert 0.35 < best["requests_per_second"] <= 0.4


def test_an_aim_that_nothing_meets_is_said() -> None:
    said = " ".join(printed(*SHORT, "--max-lateness", "100ms").split())
    assert "Wanted: 95 % of the events at most 100ms late." in said
    assert 'None of these settings does that. The least late is flush.interval = "500ms"' in said
    said = " ".join(printed(*SHORT, "--max-requests", "0.1").split())
    assert 'The fewest requests are with flush.interval = "4s"' in said
    assert "Some do the one, and some the other." in printed(
        *SHORT, "--max-lateness", "1s", "--max-requests", "0.3"
    )
    assert as_json(*SHORT, "--max-lateness", "100ms")["recommended"] is None


def test_other_settings_are_varied_together_with_the_interval() -> None:
    text = printed(*SHORT, "--max-calls", "20,2500", "--suppress-for", "10m")
    assert "max_calls" in text
    assert "left" in text
    found = as_json(*SHORT, "--max-calls", "20,2500", "--suppress-for", "10m")
    assert len(found["settings"]) == 8
    for row in found["settings"]:
        assert row["calls_suppressed"] > 0
        if row["settings"]["flush.max_calls"] == "20":
            assert row["calls_per_request"] <= 20


def test_the_file_says_what_is_in_force(tmp_path: Path) -> None:
    settings = tmp_path / "streamer.toml"
    settings.write_text('[flush]\ninterval = "3s"\n')
    text = printed("--config", str(settings), "--rate", "20", "--for", "30s")
    assert any(line.startswith("•") and " 3s " in line for line in text.splitlines())
    assert "That is too short to say anything of 30s, 1m." in " ".join(text.split())


def test_an_interval_that_was_asked_for_and_is_too_long_for_the_trace_is_said() -> None:
    text = printed("--rate", "20", "--for", "30s", "--interval", "1s,10s,20s,1m")
    assert "That is too short to say much of 20s, 1m." in " ".join(text.split())
    assert "too short" not in printed(*SHORT)


def test_of_a_single_row_nothing_is_said_that_needs_several() -> None:
    text = printed("--rate", "20", "--for", "30s", "--interval", "2s")
    assert "knee" not in text
    assert (
        text.splitlines()[-1]
        == "For a recommendation name an aim: --max-lateness or --max-requests."
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_gets_fewer_columns_and_whole_numbers(width: int) -> None:
    rows = [
        Setting(
            {"flush.interval": f"{seconds}s", "flush.max_calls": "2500"},
            Point(seconds, Played(60.0, 1200, array("d", [seconds, seconds]), 60 / seconds, 3000)),
        )
        for seconds in (1, 12, 24)
    ]
    written = StringIO()
    console = Console(file=written, width=width)
    trace = Trace("default", [Arrival(at, ("t", 0), 1, "k", None, "empty") for at in (0, 60_000)])
    report(console, "it", trace, "1s", Found(rows, rows[0], [rows[1]], rows[1]), Aim(), "")
    printed_lines = written.getvalue().splitlines()
    assert "…" not in "".join(printed_lines)
    assert max(len(line.rstrip()) for line in printed_lines) <= width
    assert [line.split()[:3] for line in printed_lines if line.startswith(("•", "◆"))][:2] == [
        ["•", "1s", "2500"],
        ["◆★", "12s", "2500"],
    ]
    assert ("no room for: kB per s, calls per req." in "".join(printed_lines)) == (width < 120)


def test_full_batches_are_said_to_make_the_interval_meaningless() -> None:
    text = printed("--rate", "100", "--for", "20s", "--interval", "1s,2s,5s", "--max-calls", "20")
    assert "From 1s on batches are full before they are old" in text


@pytest.mark.parametrize("document", ["README.md", "docs/tuning.md"])
def test_it_prints_what_the_documents_show(tmp_path: Path, document: str) -> None:
    """To the digit: the events are made up of a seed, and the clock is virtual."""
    shown = {
        command.removeprefix("streamer "): output
        for command, output in transcripts(document).items()
        if command.startswith("streamer tune ")
    }
    assert shown
    for arguments, output in shown.items():
        done = run_streamer(arguments, tmp_path)
        assert done.returncode == 0, done.stderr
        assert_printed(output, done.stdout)


def test_a_trace_is_played(tmp_path: Path) -> None:
    trace = trace_of(tmp_path / "trace.ndjson", *(page(at) for at in range(0, 20_000, 100)))
    found = as_json(trace, "--interval", "1s,2s")
    assert found["records"] == 200
    assert found["settings"][0]["calls_made"] == 200
    assert found["settings"][0]["requests_per_second"] == pytest.approx(1.0, rel=0.1)


def test_a_trace_without_time_says_nothing_of_intervals(tmp_path: Path) -> None:
    trace = trace_of(tmp_path / "trace.ndjson", page(5), page(5))
    assert "all records have one timestamp" in problem(trace)


def test_a_trace_without_calls_says_nothing(tmp_path: Path) -> None:
    rejected = {"topic": "t", "partition": 0, "bytes": 5, "reason": "not_json"}
    trace = trace_of(tmp_path / "trace.ndjson", *({"at": at, **rejected} for at in (0, 60_000)))
    assert "no calls are made of any of these records" in problem(trace)


def test_what_falls_behind_is_marked_and_said_and_not_recommended(tmp_path: Path) -> None:
    trace = trace_of(tmp_path / "trace.ndjson", *(page(at) for at in range(0, 30_000, 10)))
    settings = ("--interval", "1s,5s", "--max-calls", "20,2500", "--max-requests-per-second", "2")
    text = printed(trace, *settings, "--max-requests", "3")
    assert sum(line.startswith("!") for line in text.splitlines()) == 2
    assert "2 of 4 settings can't keep up (!): with flush.interval 1s, flush.max_calls 20" in text
    found = as_json(trace, *settings, "--max-requests", "3")
    assert found["recommended"]["flush.max_calls"] == "2500"
    behind = [row for row in found["settings"] if not row["keeps_up"]]
    assert {row["settings"]["flush.max_calls"] for row in behind} == {"20"}
    assert all(row["requests_per_second"] < 2.05 for row in behind)


def test_site_code_has_its_say_in_what_made_up_events_make(tmp_path: Path) -> None:
    (tmp_path / "its_site.py").write_text(
        "from streamer import hooks\nhooks.register_callback('plan_name', lambda value: 'x' * 900)\n"
    )
    settings = tmp_path / "streamer.toml"
    settings.write_text(
        'plugins = ["its_site"]\n[transform.mapping.identify.traits]\nplan = "endpoint.Id|plan_name"\n'
    )
    done = run_streamer(
        "tune --config streamer.toml --rate 10 --for 10s --interval 1s --json", tmp_path
    )
    assert done.returncode == 0, done.stderr
    plain = run_streamer("tune --rate 10 --for 10s --interval 1s --json", tmp_path)
    sizes = [orjson.loads(one.stdout)["settings"][0]["bytes_per_second"] for one in (done, plain)]
    assert sizes[0] > 1.2 * sizes[1]


def test_a_files_name_is_only_a_name(tmp_path: Path) -> None:
    name = "\x1b[2J[bold]$x^{$.ndjson"
    trace = trace_of(tmp_path / name, page(0), page(20_000))
    picture = tmp_path / "out.svg"
    text = printed(trace, "--interval", "1s", "--plot", str(picture))
    assert "\x1b" not in text
    assert "[bold]$x^{$.ndjson" in text.replace("\n", "")
    assert b"<svg" in picture.read_bytes()[:1000]


def test_what_is_wrong_is_said_before_anything_is_played(tmp_path: Path) -> None:
    assert "missing.ndjson can't be read" in problem(str(tmp_path / "missing.ndjson"))
    assert problem("--interval", "1s,banana").startswith(
        '--interval: flush.interval = "banana": must'
    )
    assert problem("--max-calls", "0").startswith('--max-calls: flush.max_calls = "0": must')
    assert "--request-time" in problem("--request-time", "soon")
    assert "each request would be given up" in problem("--request-time", "15s")
    assert "--max-lateness" in problem("--max-lateness", "2")
    assert "--for" in problem("--for", "ever")


def test_what_only_made_up_events_have_isnt_taken_with_a_trace(tmp_path: Path) -> None:
    trace = trace_of(tmp_path / "trace.ndjson", page(0), page(1000))
    assert problem(trace, "--rate", "100", "--for", "1m").startswith(
        "--rate, --for: only of made-up"
    )


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_trade_off_is_drawn(tmp_path: Path, form: str) -> None:
    picture = tmp_path / f"out.{form}"
    assert str(picture) in "".join(printed(*SHORT, "--plot", str(picture)).splitlines())
    assert (b"<svg" if form == "svg" else b"PNG") in picture.read_bytes()[:1000]


def test_what_cant_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "must end with what form" in problem(*SHORT, "--plot", str(tmp_path / "out.docx"))
    assert "must end with what form" in problem(*SHORT, "--plot", str(tmp_path / "out"))
    assert "there is no folder" in problem(*SHORT, "--plot", str(tmp_path / "nowhere" / "out.svg"))
    (tmp_path / "folder.svg").mkdir()
    assert "can't be written" in problem(*SHORT, "--plot", str(tmp_path / "folder.svg"))
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'altis-streamer[plot]'" in problem(*SHORT, "--plot", "out.svg")
