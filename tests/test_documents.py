"""The documents say what the code does: files, names, settings, commands and what these print.

That relative links lead to files is held in `test_project.py`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import metrics_page
from documents import DOCUMENTS, ROOT, assert_printed, fenced, run_streamer, transcripts
from streamer import logs
from streamer.cli import SUMMARIES, load
from streamer.config import SETTINGS, load_config
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.core.model import CALL_TYPES, FilterReason, Reason
from streamer.metrics import TRIGGERS
from streamer.mock_segment.faults import KINDS
from streamer.pipeline import make_transform

if TYPE_CHECKING:
    from collections.abc import Iterator

TEST_NAME = re.compile(r"test_\w{20,}|Test\w+")
TEST_DEFINED = re.compile(r"^(?:def |class )?(test_\w+|Test\w+)", re.MULTILINE)
DESIGN = DOCUMENTS["docs/design.md"]
MAPPING, SEGMENT = DOCUMENTS["docs/mapping.md"], DOCUMENTS["docs/segment.md"]


def _section(document: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)",
        document,
        re.MULTILINE | re.DOTALL,
    )
    assert found, f"there is no heading {heading!r}"
    return found[1]


def _rows(section: str) -> list[list[str]]:
    """The cells of the tables of a section, without heads."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    heads = {i for i, line in enumerate(lines[1:]) if re.fullmatch(r"[|-]+", line)}
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for i, line in enumerate(lines)
        if i not in heads and i - 1 not in heads
    ]


def _code(text: str) -> list[str]:
    """What stands between backticks, outside of fenced blocks."""
    return re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )


# --- design.md ------------------------------------------------------------------------------------


def _layout() -> Iterator[str]:
    """The paths that the tree in design.md draws."""
    folders: list[str] = []
    for line in _section(DESIGN, "## The layout").splitlines():
        found = re.match(r"    ( *)([\w./]+)(?:  |$)", line)
        if found is None:
            if folders:
                return
            continue
        depth = len(found[1]) // 2
        folders[depth:] = [found[2]]
        if not found[2].endswith("/"):
            yield "".join(folders)


def test_the_layout_in_the_design_is_that_of_the_package() -> None:
    """Each module stands in it, and it has none that isn't there."""
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "streamer").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert set(_layout()) == modules


@cache
def _source() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "streamer").rglob("*.py"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_a_document_names_exist(name: str) -> None:
    named = [
        code for code in _code(DOCUMENTS[name]) if re.fullmatch(r"[\w./-]+\.(py|toml|yml)", code)
    ]
    places = [ROOT, ROOT / "streamer", ROOT / "streamer/core"]
    missing = [n for n in named if not any((place / n).exists() for place in places)]
    assert set(missing) <= {"streamer.toml", "my_site.py"}  # the reader's own


def test_classes_and_methods_that_the_design_names_exist() -> None:
    """`Lane`, `Offsets.committable`: each of their words stands in the code."""
    named = {c for c in _code(DESIGN) if re.fullmatch(r"[A-Z]\w*[a-z]\w*(\.\w+)?", c)}
    code = _source() + (ROOT / "tests/whole_pipeline.py").read_text()
    wrong = [
        name
        for name in named
        if not all(
            re.search(rf"\b(class|def) {w}\b|\b{w}\b *[:=]|import.*\b{w}\b", code)
            for w in name.split(".")
        )
    ]
    assert len(named) > 20
    assert wrong == []


def _metrics() -> set[str]:
    labels = {
        metrics_page.sample_name(family): {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for family in metrics_page.families()
    }
    return {_with_labels(name, names) for name, names in labels.items()}


def _with_labels(name: str, labels: set[str]) -> str:
    return f"{name}{{{','.join(sorted(labels))}}}" if labels else name


def test_the_metrics_in_the_design_are_those_of_the_code() -> None:
    """Each with its labels, none too many and none missing."""
    named = {
        _with_labels(name, {label for label in labels.split(",") if label})
        for name, _, labels in re.findall(
            r"`(streamer_[a-z_]+)(\{([a-z_,]+)\})?`", _section(DESIGN, "## Metrics")
        )
    }
    assert named == _metrics()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_metrics_that_a_document_names_exist(name: str) -> None:
    known = {metric.partition("{")[0] for metric in _metrics()}
    named = {c.partition("{")[0] for c in _code(DOCUMENTS[name]) if re.match(r"streamer_\w+", c)}
    assert named <= known


def test_the_page_of_the_metrics_is_what_the_code_makes_of_it() -> None:
    assert DOCUMENTS["docs/metrics.md"] == metrics_page.page(), "write it anew: make docs"


def test_the_triggers_in_the_design_are_those_of_the_code() -> None:
    rows = _rows(_section(DESIGN, "## When a batch closes"))
    assert sorted(code for row in rows for code in _code(row[0])) == sorted(TRIGGERS)


# --- settings and commands ------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_that_a_document_names_exist(name: str) -> None:
    sections = {key.partition(".")[0] for key in SETTINGS if "." in key}
    named = {
        code
        for code in _code(DOCUMENTS[name])
        if code.partition(".")[0] in sections and re.fullmatch(r"[a-z_]+\.[a-z_]+", code)
    } - {"transform.py", "segment.py"}
    assert named <= set(SETTINGS)
    variables = re.findall(r"\bSTREAMER_([A-Z]+__[A-Z_]+)", DOCUMENTS[name])
    assert {variable.lower().replace("__", ".") for variable in variables} <= set(SETTINGS)


@pytest.mark.parametrize(("name", "toml"), fenced("toml"))
def test_settings_that_a_document_shows_are_valid(name: str, toml: str, tmp_path: Path) -> None:
    file = tmp_path / f"{Path(name).stem}.toml"
    file.write_text(toml)
    make_transform(load_config(file, environ={}), "key")


def _called() -> Iterator[list[str]]:
    """The arguments of every streamer command that a document shows or names, up to a redirection."""
    for text in DOCUMENTS.values():
        lines = re.findall(r"^\$ (.+)$", text, re.MULTILINE)
        lines += re.findall(
            r"^    ((?:\S+=\S+ |\.venv/bin/)*streamer [a-z-]+ .*)$", text, re.MULTILINE
        )
        for code in [*lines, *_code(text)]:
            code = code.partition(" > ")[0]  # noqa: PLW2901 - the rest is the shell's
            words = [word for word in shlex.split(code) if not re.match(r"[A-Z_]+=", word)]
            if words and Path(words[0]).name == "streamer" and len(words) > 1:
                yield words[1:]


def test_commands_that_a_document_shows_are_accepted() -> None:
    """They exist, and so do their options."""
    called = list(_called())
    assert {arguments[0] for arguments in called} == set(SUMMARIES)
    for command, *arguments in called:
        placeholders = {"FILE": "events.ndjson"}
        given = [placeholders.get(argument, argument) for argument in arguments]
        if given != ["--help"]:
            load(command).make_context(command, given)


def test_targets_of_make_that_a_document_names_exist() -> None:
    phony = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = set(" ".join(phony).split())
    for text in DOCUMENTS.values():
        for words in re.findall(r"(?:`|^\$ |^    )make ([a-z -]+)", text, re.MULTILINE):
            assert set(words.split()) <= targets


# --- what the README says that commands print -------------------------------------------------------


def test_transform_prints_what_the_readme_shows(tmp_path: Path) -> None:
    shown = transcripts("README.md")
    (tmp_path / "events.ndjson").write_text(shown["cat events.ndjson"])
    done = run_streamer("transform events.ndjson", tmp_path)
    assert done.returncode == 1
    expected = shown["streamer transform events.ndjson"]
    assert len(expected.splitlines()) == 2
    assert_printed(expected, done.stdout + done.stderr)


# --- mapping.md and segment.md ----------------------------------------------------------------------


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_the_default_mapping_in_the_document_is_that_of_the_code() -> None:
    """Every key of every call, in order, with the paths it comes from."""
    documented: dict[str, list[tuple[str, list[str]]]] = {kind: [] for kind in CALL_TYPES}
    for key, source, kinds in _rows(_section(MAPPING, "## The default mapping")):
        for kind in CALL_TYPES if kinds == "all" else kinds.split(", "):
            documented[kind].append((key.strip("`"), _code(source)))
    for kind, tree in default_mapping().items():
        expected = []
        for key, leaf in _leaves(tree):
            paths = leaf if isinstance(leaf, list) else [leaf]
            if leaf or key == "messageId":
                found = [path.split("|")[0] for path in paths if path and "|static" not in path]
                expected.append((key, found))
        assert documented[kind] == expected


def test_the_keys_without_a_source_in_the_document_are_those_of_the_code() -> None:
    section = _section(MAPPING, "## The default mapping")
    named = set(_code(section[section.index("mapped to nothing") :]))
    empty = {key for key, leaf in _leaves(default_mapping()["page"]) if not leaf}
    assert named == empty - {"messageId"}


def test_every_reason_stands_in_the_document() -> None:
    rows = _rows(_section(MAPPING, "## Reasons"))
    assert [row[0].strip("`") for row in rows] == [str(reason) for reason in Reason]


def test_every_reason_to_filter_stands_in_the_document() -> None:
    rows = _rows(_section(MAPPING, "## What isn't forwarded"))
    assert [row[0].strip("`") for row in rows] == [str(reason) for reason in FilterReason]


def test_every_callback_stands_in_the_document() -> None:
    rows = _rows(_section(MAPPING, "### Callbacks"))
    assert sorted(name for row in rows for name in _code(row[0])) == sorted(BUILTIN_CALLBACKS)


def test_every_fault_of_the_mock_stands_in_the_document() -> None:
    rows = _rows(_section(SEGMENT, "## The mock"))
    assert [row[0].strip("`") for row in rows] == list(KINDS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_into_a_document_lead_to_a_heading(name: str) -> None:
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#([^)\s]+)\)", DOCUMENTS[name]):
        document = (ROOT / name).parent / target if target else ROOT / name
        headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
        assert anchor in anchors


# --- logs.md --------------------------------------------------------------------------------------

LOGS = DOCUMENTS["docs/logs.md"]


def _logged() -> Iterator[tuple[str, str]]:
    """Every line that the code logs, with the name of the method that does."""
    for path in (ROOT / "streamer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(ast.Name("log"), "log"), args=[_, text]):
                    level = "log"
                case ast.Call(func=ast.Attribute(ast.Name("log"), level), args=[text]):
                    pass
                case ast.Call(func=ast.Name("_follow"), args=[text, *_]):
                    level = "debug"
                case _:
                    continue
            for part in ast.walk(text):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value, level


def test_every_line_that_the_code_logs_stands_in_the_document() -> None:
    rows = _rows(_section(LOGS, "## Every line"))
    told = {row[0]: set(row[1].split(", ")) for row in rows}
    logged = set(_logged())
    assert len(logged) > 40
    assert told.keys() == {text for text, _ in logged}
    for text, level in logged:
        assert {"exception": "error", "log": None}.get(level, level) in {*told[text], None}


def test_the_bounds_of_the_log_in_the_document_are_those_of_the_code() -> None:
    bounds = _section(LOGS, "## How many lines")
    for said in (
        f"{logs.MOST_LINES} are written at once",
        f"{logs.PERIOD:g} s the last of them",
        f"up to {logs.PERIOD * logs.LONGEST_PAUSE / 60:g} minutes",
        f"{logs.MOST_KINDS} things",
        f"{logs.MOST_CHARACTERS:,} characters, no traceback than {10 * logs.MOST_CHARACTERS:,}",
    ):
        assert said in " ".join(bounds.split())


def test_lines_that_the_document_shows_are_of_the_code() -> None:
    lines = {text for text, _ in _logged()}
    shown = [
        line
        for name, block in fenced("text")
        if name == "docs/logs.md"
        for line in block.splitlines()
        if line != "…"
    ]
    assert len(shown) > 15
    for line in shown:
        found = re.fullmatch(r"[\d:.TZ-]+ \[(\w+) *\] (.+?) \[(streamer\.\w+|…).*", line)
        assert found, line
        assert found[2] in lines


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_line_of_a_document_is_too_long(name: str) -> None:
    """A row of a table can't be broken."""
    lines = [line for line in DOCUMENTS[name].splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


def test_tests_that_a_document_names_exist() -> None:
    named = {
        code for text in DOCUMENTS.values() for code in _code(text) if TEST_NAME.fullmatch(code)
    }
    there = {
        match
        for path in (ROOT / "tests").rglob("test_*.py")
        for match in TEST_DEFINED.findall(path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert named - there == set()


def test_what_is_not_there_yet_is_not_there() -> None:
    """A module or a command that came since is taken off the list."""
    planned = _section(DESIGN, "## Not there yet")
    for command in ("tune", "preview", "replay", "redrive"):
        assert (command in planned) is (command not in SUMMARIES)
    for word, module in (("altis", "core.altis"), ("hooks", "hooks")):
        there = importlib.util.find_spec(f"streamer.{module}") is not None
        assert (word in planned) is not there
    for setting in ("max_hold", "drop_events", "drop_traits", "sample"):
        there = any(key.endswith(f".{setting}") for key in SETTINGS)
        assert (setting in planned) is not there
