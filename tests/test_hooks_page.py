"""docs/hooks.md names what there is, and each of its examples does what stands below it; so does what migrates.

An example is a block of Python and, after it, a console: events, a command, and what that prints. `streamer run` in it
is all of streamer but Kafka: see `without_kafka.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from documents import DOCUMENTS, ROOT, assert_printed, run_streamer
from streamer import hooks
from streamer.core.model import DeadLetter, Reason
from streamer.dead_letter import KafkaSink
from streamer.demo.broker import EmbeddedBroker

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCUMENTS["docs/hooks.md"]
MIGRATING = DOCUMENTS["docs/migrating-from-altis.md"]
PLUGINS = 'plugins = ["my_site"]\n'


class Example(NamedTuple):
    heading: str
    code: str
    told: str  # what stands between the code and the console
    console: str


def _examples() -> list[Example]:
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        fenced = r"^```python\n(.*?)^```\n(.*?)^```console\n(.*?)^```"
        blocks = re.findall(fenced, section, re.MULTILINE | re.DOTALL)
        found += [Example(heading, *block) for block in blocks]
    return found


def _migrated() -> Example:
    """All the Python of the other page, which is one module there."""
    section = MIGRATING.partition("\n## Site code\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    code = "\n\n".join(block for language, block in blocks if language == "python")
    (console,) = [block for language, block in blocks if language == "console"]
    return Example("migrating", code, section, console)


def _script() -> str:
    """What brings records back: the one block of Python that is no plug-in."""
    section = PAGE.partition("\n### After `hook_failed`\n")[2].partition("\n## ")[0]
    script = re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert script
    return script[1]


EXAMPLES = _examples()
MIGRATED = _migrated()


def test_each_hook_has_a_section_with_an_example() -> None:
    names = [name.rpartition(".")[2] for name in (*hooks.FILTERS, *hooks.ACTIONS)]
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert headings[-len(names) :] == names
    assert {example.heading for example in EXAMPLES} >= set(names)
    assert len(EXAMPLES) + 1 == PAGE.count("```python\n")  # and the script


def test_the_page_for_people_who_move_has_every_hook_and_both_languages() -> None:
    for name in (*hooks.FILTERS, *hooks.ACTIONS):
        assert name in MIGRATING
    assert "altis.analytic.segment.api_write_key" in MIGRATING
    shown = re.findall(r'@hooks\.\w+\("(.+?)"\)', MIGRATED.code)
    for name in shown:
        assert re.search(
            rf"add_(filter|action)\( '{name.replace('analytics', 'analytics?')}'", MIGRATING
        )
    assert MIGRATING.count("```python\n") == MIGRATED.told.count("```python\n")


def test_the_tables_have_every_name_with_its_arguments() -> None:
    functions = re.findall(r"^\| `hooks\.(\w+)(?:(\(.*?\)))?` \|", PAGE, re.MULTILINE)
    assert {name for name, _ in functions} == set(hooks.__all__) - {"Hooks", "registered"}
    for name, arguments in functions:
        if arguments:
            signature = inspect.signature(getattr(hooks, name))
            bare = [
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in signature.parameters.values()
            ]
            assert arguments == str(inspect.Signature(bare))
    rows = re.findall(r"^\| \[`(\w+)`\]\(#\w+\), an? (\w+) \| `(.+?)` \|", PAGE, re.MULTILINE)
    assert rows == [
        (name.rpartition(".")[2], kind, ", ".join(arguments))
        for kind, group in (("filter", hooks.FILTERS), ("action", hooks.ACTIONS))
        for name, arguments in group.items()
    ]


def _without_kafka(example: Example, folder: Path) -> str:
    status = re.search(r"answers the first request with (\d+)", example.told)
    script = ROOT / "tests/without_kafka.py"
    done = subprocess.run(
        [sys.executable, script, *(status.groups() if status else ())],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "example",
    [*EXAMPLES, MIGRATED],
    ids=[f"{number}-{example.heading}" for number, example in enumerate([*EXAMPLES, MIGRATED])],
)
def test_an_example_does_what_stands_below_it(example: Example, tmp_path: Path) -> None:
    (tmp_path / "my_site.py").write_text(example.code)
    (tmp_path / "streamer.toml").write_text(PLUGINS)
    assert f"```toml\n{PLUGINS}```" in PAGE
    assert f"```toml\n{PLUGINS}```" in MIGRATING
    for part in re.split(r"^\$ ", example.console, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        if command == "cat events.ndjson":
            (tmp_path / "events.ndjson").write_text(shown)
        elif command.startswith("cat "):
            assert (tmp_path / command.removeprefix("cat ")).read_text() == shown
        elif command.startswith("streamer run"):
            assert_printed(shown, _without_kafka(example, tmp_path))
        else:
            done = run_streamer(command.removeprefix("streamer "), tmp_path)
            printed = done.stdout + done.stderr
            assert done.returncode == ("hook_failed" in shown), printed
            assert_printed(shown, printed)
            assert done.stdout.count("\n") == shown.count("\n") - shown.count("hook_failed")


def test_the_script_brings_back_what_a_handler_failed_for(tmp_path: Path) -> None:
    """Once each, as it was; and no letter with another reason."""
    script = tmp_path / "bring_back.py"

    def letter(value: bytes, reason: Reason) -> DeadLetter:
        return DeadLetter(
            kind="record",
            reason=reason,
            detail="",
            topic="analytics-events",
            partition=0,
            offset=0,
            key=b"a1",
            value=value,
            timestamp_ms=1643673911400,
            headers=(),
        )

    async def main() -> list[tuple[bytes | None, bytes | None, int]]:
        async with EmbeddedBroker() as broker:
            kafka = {"bootstrap_servers": broker.bootstrap}
            text = _script().replace("localhost:9092", broker.bootstrap)
            script.write_text(text.replace("10_000", "3_000"))
            sink = KafkaSink("analytics-events.dead-letter", kafka)
            reasons = {b"1": Reason.HOOK_FAILED, b"2": Reason.NOT_JSON, b"3": Reason.HOOK_FAILED}
            letters = [letter(value, reason) for value, reason in reasons.items()]
            assert await sink.write(letters) == (3, "")
            await sink.close()
            for _ in range(2):
                process = await asyncio.create_subprocess_exec(sys.executable, script)
                assert await process.wait() == 0
            async with AIOKafkaProducer(**kafka) as producer:
                await producer.send_and_wait("analytics-events", b"end", b"a1")
            found: list[tuple[bytes | None, bytes | None, int]] = []
            async with AIOKafkaConsumer(
                "analytics-events", **kafka, auto_offset_reset="earliest"
            ) as consumer:
                async for record in consumer:
                    if record.value == b"end":
                        return found
                    found.append((record.key, record.value, record.timestamp))
        raise AssertionError

    found = asyncio.run(asyncio.wait_for(main(), 60))
    assert found == [(b"a1", b"1", 1643673911400), (b"a1", b"3", 1643673911400)]
