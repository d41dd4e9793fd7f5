"""What every test may ask for: installed programs, a real Kafka, and the order of the run."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Protocol

import hypothesis
import pytest

from kafka_broker import jars
from kafka_broker.broker import KafkaBroker
from kafka_broker.topics import Kafka

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIRE_ALL = "STREAMER_REQUIRE_ALL"
"""Set to 1 (as `.ci/run` does), a test that lacks a program fails instead of being skipped."""

PACKAGES = {
    "java": "default-jre-headless",
    "mvn": "maven",
    "node": "nodejs",
    "npm": "npm",
    "promtool": "prometheus",
    "chromium": "chromium",
}
"""Debian's package for each program that a test may need."""

OLDEST_JAVA = 17
"""Apache Kafka 4 brokers run on Java 17 and newer (Kafka's upgrade notes)."""

_missing: dict[str, set[str]] = {}  # a program to the tests that were skipped for want of it


class Require(Protocol):
    """The fixture `require`: skips the test unless these programs are installed."""

    def __call__(self, *programs: str) -> None:
        """Skips the test, or fails it under `STREAMER_REQUIRE_ALL=1`, if a program is missing.

        Args:
            programs: commands that must be on the PATH, such as `"java", "mvn"`.
        """


@functools.cache
def _lacks(program: str) -> bool:
    if shutil.which(program) is None:
        return True
    if program != "java":
        return False
    answer = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', answer.stderr)
    return version is None or int(version[1]) < OLDEST_JAVA


def _how_to_install(programs: set[str]) -> str:
    packages = sorted(PACKAGES.get(program, program) for program in programs)
    return f"apt-get install {' '.join(packages)}"


@pytest.fixture(scope="session")
def require() -> Require:
    """A callable that skips the test unless the named programs are installed."""

    def require(*programs: str) -> None:
        lacking = {program for program in programs if _lacks(program)}
        if not lacking:
            return
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        for program in lacking:
            _missing.setdefault(program, set()).add(test)
        needed = " and ".join(
            f"{program} {OLDEST_JAVA}+" if program == "java" else program
            for program in sorted(lacking)
        )
        message = f"needs {needed}: {_how_to_install(lacking)}"
        if os.environ.get(REQUIRE_ALL) == "1":
            pytest.fail(f"{REQUIRE_ALL}=1, but this test {message}", pytrace=False)
        pytest.skip(message)

    return require


@pytest.fixture(scope="session")
def kafka(require: Require) -> Iterator[Kafka]:
    """A real Kafka that the whole run shares: every test makes topics and groups of its own.

    A test that stops, kills or freezes its broker starts one of its own: `with KafkaBroker() as broker`.
    """
    require("java", "mvn")
    with KafkaBroker() as broker:
        yield Kafka(broker.bootstrap)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the whole-pipeline tests last, and properties untraced.

    A broken unit should show before the whole pipeline starts. Coverage's tracer costs a property several times its
    own time, and says nothing: lines that only a random example reaches would be covered by luck.
    """
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)
    for item in items:
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.obj):
            item.add_marker("no_cover")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetches Kafka's jars before the first test: the download should not spend a test's time-out."""
    wanted = any("kafka" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly and not (_lacks("java") or _lacks("mvn")):
        with contextlib.suppress(jars.JarsError):  # the fixture tries again, and says what is wrong
            jars.fetch()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says in one loud line what wasn't tested, and what to install so that it is."""
    if _missing:
        tests = set().union(*_missing.values())
        terminalreporter.write_line(
            f"NOT TESTED: {len(tests)} tests need {', '.join(sorted(_missing))}. "
            f"Install with: {_how_to_install(set(_missing))}",
            red=True,
            bold=True,
        )
