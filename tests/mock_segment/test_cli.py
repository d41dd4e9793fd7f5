"""`streamer mock-segment` as a process: it says where it is, ends cleanly, and says in a sentence what is wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from rich.console import Console

from streamer.cli import load
from streamer.cli.mock_segment import _show
from streamer.errors import ConfigError, StartError
from streamer.mock_segment import Stats, digest, read_journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-c", "from streamer.cli import main; main()", "mock-segment"]


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command, read its address, and stop it by its own id whatever happens."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(
                r"mock Segment listens on (http://127\.0\.0\.1:\d+)/v1/batch\n", line
            )
            assert found, line
            yield process, found[1]
        finally:
            process.kill()


def ask(address: str, method: str, path: str, document: object = None) -> tuple[int, Any]:
    with closing(HTTPConnection(address.removeprefix("http://"), timeout=30)) as connection:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, orjson.dumps(document), headers)
        response = connection.getresponse()
        return response.status, orjson.loads(response.read())


def post(address: str, write_key: str, *calls: dict[str, str]) -> int:
    return ask(address, "POST", "/v1/batch", {"batch": calls, "writeKey": write_key})[0]


TRACK = {"type": "track", "userId": "u", "event": "scroll", "messageId": "m"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_plays_until_a_signal_ends_it_and_then_says_what_it_saw(
    number: signal.Signals, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.ndjson"
    options = ["--journal", str(journal), "--no-journal-calls", "--write-key", "known"]
    with running(*options, "--fault", "delay:seconds=0.001") as (process, address):
        assert post(address, "known", TRACK, TRACK) == 200
        assert post(address, "unknown", TRACK) == 200
        assert ask(address, "GET", "/faults")[1]["applied"] == [2]
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out == (
        "requests 2 (200 2), accepted 1 (track 1), duplicate 1, discarded 1 (unknown_write_key 1)\n"
    )
    lines = list(read_journal(journal))
    assert [(line.fate, line.key_digest, line.call) for line in lines] == [
        ("accepted", digest("known"), None),
        ("duplicate", digest("known"), None),
        ("discarded", digest("unknown"), None),
    ]


def test_a_port_in_use_is_one_sentence_and_exit_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--port", port], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            ["--fault", "boom"],
            ConfigError,
            r"--fault: kind of a fault must be one of .*, and 'boom'",
        ),
        (["--requests-per-second", "0"], ConfigError, "--requests-per-second: .*above 0"),
        (["--journal", "/"], StartError, "--journal / can't be written"),
    ],
)
def test_a_bad_option_is_named(options: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load("mock-segment").main([*options, "--port", "0"], standalone_mode=False)


def test_on_a_terminal_the_counts_are_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console().is_terminal
    stats = Stats()
    stats.accepted["track"] = 1234
    stats.discards["no_event"] = 5

    _show(stats)
    shown = capsys.readouterr().out
    assert re.search(r"accepted.*track.*1,234", shown)
    assert re.search(r"discarded.*no_event.*5", shown)


def test_stops_with_its_standard_input_if_it_is_told_to() -> None:
    """So it can't outlive who started it, however that one ends."""
    with subprocess.Popen(
        [*COMMAND, "--port", "0", "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline().startswith("mock Segment listens on")
            assert process.poll() is None
            process.stdin.close()
            assert process.wait(20) == 0
        finally:
            process.kill()
