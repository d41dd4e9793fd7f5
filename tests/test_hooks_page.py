"""docs/hooks.md names what there is, and each of its examples does what stands below it.

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


EXAMPLES = _examples()


def test_each_hook_has_a_section_with_an_example() -> None:
    names = [name.rpartition(".")[2] for name in (*hooks.FILTERS, *hooks.ACTIONS)]
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert headings[-len(names) :] == names
    assert {example.heading for example in EXAMPLES} >= set(names)
    assert len(EXAMPLES) == PAGE.count("```python\n")


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
    "example", EXAMPLES, ids=[f"{n}-{example.heading}" for n, example in enumerate(EXAMPLES)]
)
def test_an_example_does_what_stands_below_it(example: Example, tmp_path: Path) -> None:
    (tmp_path / "my_site.py").write_text(example.code)
    (tmp_path / "streamer.toml").write_text('plugins = ["my_site"]\n')
    assert '```toml\nplugins = ["my_site"]\n```' in PAGE
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
