"""`streamer run` as a person or an orchestrator meets it: its errors, its exit statuses, the signals that end it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest

from kafka_broker.broker import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-c", "from streamer.cli import main; main()", "run"]
KEY = "wRiTeKeYwRiTeKeYwRiTeKeYwRiTeKeY"
WAIT = 20.0


def environment(**variables: str) -> dict[str, str]:
    """Nothing of the test's own environment, a key, and what a test adds."""
    return {"PATH": os.environ["PATH"], "SEGMENT_API_WRITE_KEY": KEY, **variables}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )


class Running:
    """A service that was started; what it logs is read as it comes."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.lines: list[dict[str, Any]] = []
        self.text = b""
        self._unread = b""

    def until(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until it has logged lines of an event so often, and give them."""
        deadline = time.monotonic() + WAIT
        while len(found := [line for line in self.lines if line["event"] == event]) < count:
            self._read(deadline)
        return found

    def end(self) -> int:
        """Wait until it ends, and give its exit status."""
        deadline = time.monotonic() + WAIT
        while self._read(deadline):
            pass
        return self.process.wait(WAIT)

    def _read(self, deadline: float) -> bool:
        stderr: IO[bytes] | None = self.process.stderr
        assert stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stderr, selectors.EVENT_READ)
            assert selector.select(deadline - time.monotonic()), self.text.decode()
        read = os.read(stderr.fileno(), 65_536)
        self.text += read
        *whole, self._unread = (self._unread + read).split(b"\n")
        self.lines += [json.loads(line) for line in whole]
        return bool(read)

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextmanager
def running(*arguments: str, **variables: str) -> Iterator[Running]:
    """A service that ends with the test."""
    service = Running("--port", "0", *arguments, **variables)
    try:
        yield service
    finally:
        service.close()


def composer(folder: Path, segment: bytes) -> Path:
    """A composer.json as Altis has it."""
    path = folder / "composer.json"
    path.write_bytes(
        b'{"extra":{"altis":{"modules":{"analytics":{"integrations":{"segment":%s}}}}}}' % segment
    )
    return path


def only_sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """What a mistake is answered with: one line, without a traceback, and status 2."""
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith("streamer: ")
    return line


# --- what is wrong before it starts ---------------------------------------------------------------


def test_a_port_in_use() -> None:
    """Names the port and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = only_sentence(run("--port", str(port)))
    assert f"port {port} of 127.0.0.1 is in use" in line
    assert "server.port" in line


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Names the file."""
    missing = tmp_path / "missing.toml"
    assert str(missing) in only_sentence(run("--config", str(missing)))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A folder, for one, which not even root can read as a file."""
    assert str(tmp_path) in only_sentence(run("--config", str(tmp_path)))


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    """Names the file and the place in it."""
    broken = tmp_path / "streamer.toml"
    broken.write_text("[kafka\n")
    line = only_sentence(run("--config", str(broken)))
    assert str(broken) in line
    assert "line 1" in line


@pytest.mark.parametrize("how", ["flag", "variable", "file"])
def test_a_bad_interval(how: str, tmp_path: Path) -> None:
    """Wherever it comes from; what is allowed is said."""
    if how == "flag":
        ended = run("--interval", "soon")
    elif how == "variable":
        ended = run(STREAMER_FLUSH__INTERVAL="soon")
    else:
        (tmp_path / "streamer.toml").write_text('[flush]\ninterval = "soon"\n')
        ended = run("--config", str(tmp_path / "streamer.toml"))
    line = only_sentence(ended)
    assert "interval" in line.lower()
    assert "soon" in line


def test_no_write_key() -> None:
    """Names the setting and the variable."""
    line = only_sentence(run(SEGMENT_API_WRITE_KEY=""))
    assert "segment.write_key" in line
    assert "SEGMENT_API_WRITE_KEY" in line


def test_a_bad_log_level() -> None:
    """Names the levels."""
    assert "debug, info, warning, error" in only_sentence(run("--log-level", "loud"))


def test_a_mapping_that_breaks_the_grammar(tmp_path: Path) -> None:
    """Says so before anything is read, not with a traceback."""
    file = tmp_path / "streamer.toml"
    file.write_text("[transform.mapping.page]\nname = 5\n")
    assert "page" in only_sentence(run("--config", str(file)))


def test_disabled() -> None:
    """Is no error: it says so, and ends."""
    ended = run(STREAMER_SEGMENT__ENABLED="false", SEGMENT_API_WRITE_KEY="")
    assert ended.returncode == 0
    [line] = ended.stderr.splitlines()
    said = json.loads(line)
    assert said["event"] == "segment.enabled is false: nothing to do"
    assert said["set_in"] == "STREAMER_SEGMENT__ENABLED"


@pytest.mark.parametrize("segment", [b"false", b'{"enabled":false,"api_key":"%s"}' % KEY.encode()])
def test_disabled_by_altis(segment: bytes, tmp_path: Path) -> None:
    """Likewise, and says where."""
    altis = composer(tmp_path, segment)
    ended = run("--altis", str(altis), SEGMENT_API_WRITE_KEY="")
    assert ended.returncode == 0
    [line] = ended.stderr.splitlines()
    assert json.loads(line)["event"] == "segment.enabled is false: nothing to do"
    assert json.loads(line)["set_in"] == str(altis)
    assert KEY not in ended.stderr


def test_enabled_by_altis_without_a_key(tmp_path: Path) -> None:
    """Names the three ways to set one."""
    altis = composer(tmp_path, b"true")
    line = only_sentence(run("--altis", str(altis), SEGMENT_API_WRITE_KEY=""))
    assert "segment.write_key" in line
    assert "SEGMENT_API_WRITE_KEY" in line
    assert f"extra.altis.modules.analytics.integrations.segment.api_key in {altis}" in line


def test_a_composer_json_that_is_none(tmp_path: Path) -> None:
    """Names the file and the line."""
    altis = tmp_path / "composer.json"
    altis.write_text("{\n")
    assert f"{altis}, line 2: not valid JSON" in only_sentence(run("--altis", str(altis)))


# --- without Kafka --------------------------------------------------------------------------------

UNREACHED = "no records from Kafka; trying again"


def test_no_broker_at_the_start() -> None:
    """One line every few seconds with address and cause, still alive and not ready; SIGTERM ends it well, soon."""
    address = f"127.0.0.1:{free_port()}"
    with running(STREAMER_KAFKA__BOOTSTRAP_SERVERS=address) as service:
        first, second = service.until(UNREACHED, 2)
        assert first["reason"] == second["reason"]
        assert address in first["reason"]
        assert "connection refused" in first["reason"]
        lines = [line for line in service.lines if line["level"] in {"warning", "error"}]
        assert len(lines) <= 4, "aiokafka's own lines don't bury it"
        assert service.process.poll() is None
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.end() == 0
        assert time.monotonic() - started < 5
        [stopped] = service.until("stopped")
        assert (stopped["consumed"], stopped["delivered"]) == (0, 0)
        assert KEY.encode() not in service.text


def test_the_profile_altis_is_warned_of_once_with_what_it_means() -> None:
    address = f"127.0.0.1:{free_port()}"
    with running(
        STREAMER_KAFKA__BOOTSTRAP_SERVERS=address, STREAMER_TRANSFORM__PROFILE="altis"
    ) as service:
        service.until("streamer runs")
        [warning] = [line for line in service.lines if "transform.profile" in line["event"]]
        assert warning["level"] == "warning"
        assert "one id" in warning["ids"]
        service.process.send_signal(signal.SIGTERM)
        assert service.end() == 0
        assert service.text.count(b"transform.profile") == 1


def test_an_interrupt_ends_it_as_well() -> None:
    """Ctrl-C is a SIGINT."""
    address = f"127.0.0.1:{free_port()}"
    with running(STREAMER_KAFKA__BOOTSTRAP_SERVERS=address) as service:
        service.until("streamer runs")
        service.process.send_signal(signal.SIGINT)
        assert service.end() == 0


@contextmanager
def silent_broker() -> Iterator[str]:
    """Something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        yield f"{host}:{port}"


def test_a_broker_that_says_nothing_does_not_hold_a_stop() -> None:
    """Longer than `shutdown_timeout`."""
    with (
        silent_broker() as address,
        running(
            STREAMER_KAFKA__BOOTSTRAP_SERVERS=address, STREAMER_SHUTDOWN_TIMEOUT="2s"
        ) as service,
    ):
        service.until("streamer runs")
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.end() == 0
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(number: signal.Signals) -> None:
    """With the status of a process that the signal ended. A console that is open holds the first stop for a second."""
    with (
        silent_broker() as address,
        running(STREAMER_KAFKA__BOOTSTRAP_SERVERS=address) as service,
    ):
        [line] = service.until("streamer runs")
        with urllib.request.urlopen(line["console"] + "events"):  # noqa: S310 - its own address
            service.process.send_signal(signal.SIGTERM)
            service.until("stopping: sending what flows, then committing")
            started = time.monotonic()
            service.process.send_signal(number)
            assert service.end() == 128 + number
            assert time.monotonic() - started < 2


def test_a_hangup_reads_the_settings_again(tmp_path: Path) -> None:
    """What can change does, at once; what is wrong is said and changes nothing; and it goes on running."""
    file = tmp_path / "streamer.toml"
    kafka = f'[kafka]\nbootstrap_servers = "127.0.0.1:{free_port()}"\n'
    file.write_text(kafka)
    with running("--config", str(file)) as service:
        service.until("streamer runs")
        file.write_text(kafka + '[flush]\ninterval = "7s"\nmemory_budget = "64MB"\n')
        service.process.send_signal(signal.SIGHUP)
        [line] = service.until("settings changed")
        assert line["flush.interval"] == "1s -> 7s"
        [needs] = service.until("some settings that were changed take effect only with a restart")
        assert needs["settings"] == "flush.memory_budget"
        file.write_text(kafka + '[flush]\ninterval = "7"\n')
        service.process.send_signal(signal.SIGHUP)
        [line] = service.until("the settings stay as they are: what was asked for is wrong")
        assert "flush.interval" in line["reason"]
        service.process.send_signal(signal.SIGTERM)
        assert service.end() == 0
