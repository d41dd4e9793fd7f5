"""`streamer demo`: what it shows and prints, how it ends, and that a wrong account can't end well."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import pytest

from streamer.cli.demo import compare
from streamer.core.account import Account
from streamer.core.model import CALL_TYPES, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka_broker.topics import Kafka

STREAMER = str(Path(sys.executable).with_name("streamer"))
WAIT = 90.0


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [STREAMER, "demo", *arguments], capture_output=True, text=True, timeout=WAIT, check=False
    )


class Running:
    """A demo that was started; its lines are read as they come."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [STREAMER, "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.text = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Read until a line matches; pytest's own time-out ends a wait in vain."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"it never said {pattern}: {self.text}")

    def end(self) -> int:
        """Read to the end, and give the exit status."""
        assert self.process.stdout is not None
        self.text += self.process.stdout.read()
        return self.process.wait(WAIT)


@contextmanager
def running(*arguments: str) -> Iterator[Running]:
    started = Running(*arguments)
    with started.process:
        try:
            yield started
        finally:
            started.process.kill()


def ask(method: str, url: str, document: object = None) -> None:
    """Ask mock Segment for something over HTTP."""
    data = json.dumps(document).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(url, data=data, headers=headers, method=method), timeout=20) as answer:  # noqa: S310 - http
        assert answer.status == 200


def assert_balances(result: dict[str, Any]) -> None:
    """Hold the identities of the JSON object."""
    settled = result["delivered"] + result["filtered"] + result["dead_lettered"]
    assert result["consumed"] == settled + result["released"] + result["in_flight"]
    assert list(result["calls"]) == list(CALL_TYPES)
    for calls in result["calls"].values():
        assert calls["made"] == sum(n for outcome, n in calls.items() if outcome != "made")
    mains = result["calls"]["page"]["delivered"] + result["calls"]["track"]["delivered"]
    assert result["delivered"] == mains


# --- to the end ------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_without_a_terminal_it_prints_a_line_a_second_and_the_account() -> None:
    done = demo("--events", "3000", "--rate", "1000", "--interval", "200ms")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "no colours and no cursor in a file"
    lines = done.stdout.splitlines()
    [head] = [n for n, line in enumerate(lines) if line.lstrip().startswith("s produced")]
    rows: list[str] = []
    while re.match(r" +\d+ ", lines[head + 1 + len(rows)]):
        rows.append(lines[head + 1 + len(rows)])
    assert len(rows) >= 3
    column = lines[head].index("Segment")
    assert {row[column:] for row in rows} == {"flowing"}, "columns stand under their heads"
    assert [int(row.split()[0]) for row in rows] == sorted({int(row.split()[0]) for row in rows})
    assert re.search(r"consumed\s+│ 3,000 ", done.stdout)
    assert re.search(r"delivered\s+│ 2,9\d\d ", done.stdout)
    assert re.search(r"dead letters .*not_json", done.stdout)
    assert "the account balances" in done.stdout
    assert not [line for line in lines if len(line) > 140]


@pytest.mark.e2e
def test_json_is_one_object_on_stdout_and_all_else_goes_to_stderr() -> None:
    done = demo("--json", "--for", "2s", "--rate", "500", "--interval", "200ms", "--seed", "7")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    result = json.loads(line)
    assert list(result) == [
        "produced", "consumed", "delivered", "filtered", "dead_lettered", "released", "in_flight", "calls",
        "requests", "lateness_seconds", "events_per_second", "peak_rss_bytes",
    ]  # fmt: skip
    assert_balances(result)
    assert result["produced"] == result["consumed"]
    assert 0 < result["produced"] <= 1_001, "two seconds, at 500 a second"
    assert (result["released"], result["in_flight"]) == (0, 0)
    p50, p95, p99 = (result["lateness_seconds"][f"p{n}"] for n in (50, 95, 99))
    assert 0.05 < p50 <= p95 <= p99, "mock Segment alone takes 50 ms"
    assert result["requests"] > 0
    assert result["events_per_second"] > 0
    assert 20e6 < result["peak_rss_bytes"] < 1e9
    assert "the account balances" in done.stderr


@pytest.mark.e2e
def test_more_than_it_can_do_is_done_as_fast_as_it_can() -> None:
    """And the embedded broker, which keeps little, forgets nothing that wasn't read."""
    done = demo("--json", "--events", "12000", "--rate", "20000")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert_balances(result)
    assert result["consumed"] == 12_000


@pytest.mark.e2e
def test_faults_are_shown_and_nothing_is_lost() -> None:
    done = demo("--faults", "--for", "8s", "--rate", "500", "--interval", "200ms")
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("503 Service Unavailable", "429 with Retry-After: 1", "healthy again"):
        assert f"mock Segment: {what}" in done.stdout
    assert re.search(r"requests \(200: .*429: .*503: ", done.stdout)
    assert "the account balances" in done.stdout


# --- a wrong account -------------------------------------------------------------------------------


@pytest.mark.e2e
def test_it_exits_1_if_mock_segment_counted_otherwise() -> None:
    """A judge that forgets what it saw is as good as a pipeline that says more than it did."""
    with running("--events", "2000", "--rate", "1000", "--interval", "200ms") as started:
        address = started.until(r"(http://127\.0\.0\.1:\d+)/stats")[1]
        started.until("^ +1 ")
        ask("POST", f"{address}/reset")
        assert started.end() == 1
        assert re.search(r"\d+ track calls delivered, \d+ accepted by mock Segment", started.text)
        assert "the account does not balance" in started.text
        assert "the account balances" not in started.text


def accounts() -> tuple[Account, dict[str, Any]]:
    """Three records, of which one is a dead letter, and what mock Segment says of them."""
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 3, 100)
    ledger.made("track", 2)
    ledger.delivered("track", 2)
    ledger.dead_lettered(Reason.NOT_JSON)
    return account, {"calls": {"accepted": {"track": 2}}, "discards": {}}


def test_an_account_that_everybody_confirms_is_right() -> None:
    account, stats = accounts()
    assert compare(account, stats, produced=3, committed=3, letters=1, finished=True) == []


@pytest.mark.parametrize("finished", [True, False])
def test_what_nobody_can_have_counted_is_told(finished: bool) -> None:
    account, stats = accounts()
    stats["calls"]["accepted"] = {"track": 1, "page": 1}
    stats["discards"] = {"no_event": 1}
    assert compare(account, stats, produced=2, committed=4, letters=0, finished=finished) == [
        "2 records were produced, 3 settled",
        *(["2 records were produced, 4 committed"] if finished else []),
        "4 records are committed, and only 3 settled",
        "1 dead letters counted, 0 found in Kafka",
        "0 page calls delivered, 1 accepted by mock Segment",
        "2 track calls delivered, 1 accepted by mock Segment",
        "mock Segment threw calls away: {'no_event': 1}",
    ]


def test_only_who_was_stopped_may_leave_records_unread_and_calls_unanswered() -> None:
    account, stats = accounts()
    ledger = account.ledger()
    ledger.consumed("events", 1, 100)
    ledger.made("track")
    ledger.end()
    stats["calls"]["accepted"] = {"track": 3}  # the answer to the third came too late
    seen = {"produced": 9, "committed": 3, "letters": 1}
    assert compare(account, stats, **seen, finished=False) == []
    assert compare(account, stats, **seen, finished=True) == [
        "9 records were produced, 3 settled",
        "9 records were produced, 3 committed",
        "2 track calls delivered, 3 accepted by mock Segment",
    ]


def test_what_is_still_in_flight_at_the_end_is_told() -> None:
    account, stats = accounts()
    account.ledger().consumed("events", 1, 100)
    wrong = compare(account, stats, produced=4, committed=3, letters=1, finished=False)
    assert wrong == ["1 records are in flight after the stop"]


# --- stopped ---------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_an_interrupt_ends_it_with_the_account() -> None:
    with running("--for", "1h", "--rate", "500") as started:
        started.until("^ +1 ")
        started.process.send_signal(signal.SIGINT)
        assert started.end() == 0
        assert "the account balances" in started.text


@pytest.mark.e2e
def test_an_interrupt_while_segment_is_down_says_what_was_released() -> None:
    with running("--for", "1h", "--rate", "500", "--interval", "200ms") as started:
        address = started.until(r"(http://127\.0\.0\.1:\d+)/stats")[1]
        started.until("^ +1 ")
        down = {"kind": "answer", "status": 503, "retry_after_seconds": 300}
        ask("PUT", f"{address}/faults", {"faults": [down]})
        started.until("paused .*503")
        interrupted = time.monotonic()
        started.process.send_signal(signal.SIGINT)
        assert started.end() == 0, started.text
        assert time.monotonic() - interrupted < 20, "the shutdown timeout is 10 s"
        assert re.search(r"released: [^│]*│ +[1-9]", started.text)
        assert "the account balances" in started.text


@pytest.mark.e2e
def test_a_second_interrupt_stops_at_once() -> None:
    with running("--for", "1h", "--rate", "500") as started:
        address = started.until(r"(http://127\.0\.0\.1:\d+)/stats")[1]
        ask("PUT", f"{address}/faults", {"faults": [{"kind": "hang", "seconds": 60}]})
        started.until("^ +2 ")
        started.process.send_signal(signal.SIGINT)
        started.until("stopping")
        interrupted = time.monotonic()
        started.process.send_signal(signal.SIGINT)
        assert started.end() == 128 + signal.SIGINT
        assert time.monotonic() - interrupted < 5
        host, _, port = address.removeprefix("http://").rpartition(":")
        assert _refuses(host, int(port)), "what it started ends with it"


def _refuses(host: str, port: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            return True
        time.sleep(0.05)
    return False


# --- a broker of one's own, and mistakes -----------------------------------------------------------


@pytest.mark.e2e
def test_a_broker_of_ones_own_is_left_as_it_was(kafka: Kafka) -> None:
    before = _left(kafka)
    done = demo("--json", "--kafka", kafka.bootstrap, "--events", "1500", "--interval", "200ms")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert_balances(result)
    assert result["consumed"] == 1_500
    deadline = time.monotonic() + 20
    while _left(kafka) != before and time.monotonic() < deadline:
        time.sleep(0.1)  # Kafka removes topics after it has said so
    assert _left(kafka) == before


def _left(kafka: Kafka) -> tuple[set[str], set[str]]:
    """The topics and the groups of a cluster, Kafka's own aside."""
    topics = kafka._admin.list_topics(timeout=20).topics
    groups = kafka._admin.list_consumer_groups().result().valid
    return {topic for topic in topics if topic[:2] != "__"}, {found.group_id for found in groups}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--for", "soon"], ["--for", "soon", "duration"]),
        (["--for", "0s"], ["--for"]),
        (["--interval", "1"], ["--interval", "duration"]),
        (["--kafka", "nowhere"], ["--kafka", "host:port"]),
        (["--kafka", "127.0.0.1:1"], ["127.0.0.1:1", "connection refused"]),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    done = demo(*arguments)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("streamer: ")
    assert all(word in last for word in words), last
    assert "Traceback" not in done.stderr


@pytest.mark.e2e
def test_on_a_terminal_it_draws_a_picture_and_leaves_the_account() -> None:
    """In 80 columns no line of the picture is wider."""
    terminal, theirs = os.openpty()
    command = [STREAMER, "demo", "--events", "1500", "--interval", "200ms"]
    size = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **size}
    )
    os.close(theirs)
    said = b""
    with process:
        try:
            while read := os.read(terminal, 65_536):
                said += read
        except OSError:  # the other side is closed
            pass
        finally:
            process.kill()
            os.close(terminal)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said.decode()).replace("\r", "")
    assert process.returncode == 0, text
    for words in (
        "events/s",
        "lateness",
        "calls per request",
        "calls saved",
        "● flowing",
        "Last dead letters",
    ):
        assert words in text
    picture = [line for line in text.splitlines() if line.startswith(("│", "╭", "╰"))]
    assert {len(line) for line in picture} <= set(range(81))
    assert "the account balances" in text
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") > 0, "the cursor is shown again"
