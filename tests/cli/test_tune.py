"""`streamer tune`: what it prints of a trace or of made-up events, and what it says where it can't."""

from __future__ import annotations

import builtins
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from typer.testing import CliRunner

from documents import assert_printed, run_streamer, transcripts
from streamer.cli import app
from streamer.errors import ConfigError, StartError

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
    assert "Wanted: 95 % of the events at most 3.00 s late." in text
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
    assert "None of these settings does that" in printed(*SHORT, "--max-lateness", "100ms")
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


def test_what_is_wrong_is_said_before_anything_is_played(tmp_path: Path) -> None:
    assert "missing.ndjson can't be read" in problem(str(tmp_path / "missing.ndjson"))
    assert "flush.interval" in problem("--interval", "1s,banana")
    assert "flush.max_calls" in problem("--max-calls", "0")
    assert "--request-time" in problem("--request-time", "soon")
    assert "--max-lateness" in problem("--max-lateness", "2")
    assert "--for" in problem("--for", "ever")


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_trade_off_is_drawn(tmp_path: Path, form: str) -> None:
    picture = tmp_path / f"out.{form}"
    printed(*SHORT, "--plot", str(picture))
    assert (b"<svg" if form == "svg" else b"PNG") in picture.read_bytes()[:1000]


def test_what_cant_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--plot" in problem(*SHORT, "--plot", str(tmp_path / "out.docx"))
    assert "--plot" in problem(*SHORT, "--plot", str(tmp_path / "nowhere" / "out.svg"))
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'altis-streamer[plot]'" in problem(*SHORT, "--plot", "out.svg")
