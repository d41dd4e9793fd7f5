"""docs/hooks.md names what there is, and each of its examples does what stands below it; so does what migrates.

An example is a block of Python and, after it, a console: events, a command, and what that prints. `streamer run` in it
is all of streamer but Kafka: see `without_kafka.py`.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from documents import DOCUMENTS, ROOT, assert_printed, run_streamer
from streamer import hooks

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


EXAMPLES = _examples()
MIGRATED = _migrated()


def test_each_hook_has_a_section_with_an_example() -> None:
    names = [name.rpartition(".")[2] for name in (*hooks.FILTERS, *hooks.ACTIONS)]
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert headings[-len(names) :] == names
    assert {example.heading for example in EXAMPLES} >= set(names)
    assert len(EXAMPLES) == PAGE.count("```python\n")


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
