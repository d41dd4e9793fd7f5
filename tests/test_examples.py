"""The examples work as their READMEs say, and as what they are: plug-ins that are installed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from documents import ROOT, assert_printed, run_streamer, transcripts

EXAMPLE = ROOT / "examples/my_site"


def _run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STREAMER_", "SEGMENT_", "COV_", "PYTEST_"))
    }
    return subprocess.run(
        command, cwd=folder, env=clean, capture_output=True, text=True, check=False
    )


def test_its_readme_shows_what_its_commands_print() -> None:
    """What it makes of its events, and its own tests; installing it would need the internet."""
    shown = transcripts("examples/my_site/README.md")
    assert len(shown) == 3
    for command, output in shown.items():
        program, *arguments = shlex.split(command)
        if program == "streamer":
            done = _run([Path(sys.executable).with_name("streamer"), *arguments], EXAMPLE)
            assert done.stdout.count("\n") == output.count("\n")
        elif program == "python":
            arguments += ["-p", "no:cacheprovider"]
            done = _run([sys.executable, *arguments], EXAMPLE)
        else:
            assert command == "pip install ."
            continue
        assert done.returncode == 0, done.stdout + done.stderr
        assert_printed(output, done.stdout)


def _install(folder: Path) -> None:
    """Lay the example into a folder as pip would, with the entry points of its pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (folder / "my_site.py").write_text((EXAMPLE / "my_site.py").read_text())
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    name, version = project["name"], project["version"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{entry} = {module}" for entry, module in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    folder = tmp_path / "installed"
    folder.mkdir()
    _install(folder)
    return folder


def test_installed_it_is_loaded_without_being_named(installed: Path, tmp_path: Path) -> None:
    environ = {"PYTHONPATH": str(installed), "SEGMENT_API_WRITE_KEY": "key"}
    done = run_streamer("check --offline", tmp_path, **environ)
    assert done.returncode == 0, done.stderr
    assert "plug-ins: my_site (installed)\n" in done.stdout
    for handler in ("choose_source", "add_ip", "leave_out_internal_users", "count_failures"):
        assert f": my_site.{handler}\n" in done.stdout
    assert "1 group map registered" in done.stdout


def test_one_that_fails_to_import_ends_the_start(installed: Path, tmp_path: Path) -> None:
    """With the traceback, for it is site code that has to be mended, and which it is."""
    with (installed / "my_site.py").open("a") as file:
        file.write("\nhooks.filter('altis.analytics.segment.maping')\n")
    environ = {"PYTHONPATH": str(installed), "SEGMENT_API_WRITE_KEY": "key"}
    done = run_streamer("check --offline", tmp_path, **environ)
    assert done.returncode == 2
    assert "streamer: the plug-in my_site (my_site) can't be imported:" in done.stderr
    assert re.search(r'File ".*my_site\.py", line \d+, in <module>', done.stderr)
    assert "did you mean 'altis.analytics.segment.mapping'?" in done.stderr
