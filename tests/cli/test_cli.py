"""Behaviour of the command line's frame."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from streamer import __version__, cli

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = ("aiohttp", "aiokafka", "pydantic", "prometheus_client", "structlog")


def streamer(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does."""
    return subprocess.run(
        [sys.executable, "-c", "from streamer.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"PATH": "", "COLUMNS": "200"},
    )


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version(option: str) -> None:
    """Both spellings print the version and nothing else."""
    answer = streamer(option)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, f"streamer {__version__}\n", "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_command(option: str) -> None:
    """Help names each command with what it does."""
    answer = streamer(option)
    assert answer.returncode == 0
    for name, summary in cli.SUMMARIES.items():
        assert name in answer.stdout
        assert summary in answer.stdout


def test_help_loads_no_command() -> None:
    """What only a command needs isn't imported to print the help, so that it shows at once."""
    program = (
        "import sys\n"
        "from streamer.cli import main\n"
        "sys.argv = ['streamer', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.endswith("heavy: []\n")


@pytest.mark.parametrize("name", list(cli.SUMMARIES))
def test_every_command_has_help(name: str) -> None:
    """Each command that is listed exists, and describes itself."""
    answer = streamer(name, "--help")
    assert answer.returncode == 0, answer.stderr
    assert f"Usage: streamer {name}" in answer.stdout


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("tune", "[default: 250ms, 500ms, 1s, 2s, 5s, 10s, 30s, 1m]"),
        ("tune", "[default: 5m, or 20,000 events]"),
        ("preview", "[default: 1,000; with --record 10,000]"),
    ],
)
def test_a_default_that_help_says_in_words_is_there(command: str, default: str) -> None:
    """What stands in brackets is no style of rich's."""
    assert default in streamer(command, "--help").stdout


def test_a_misspelt_command_names_the_nearest() -> None:
    """A command that doesn't exist is exit status 2 and the name that was probably meant."""
    answer = streamer("chek")
    assert answer.returncode == 2
    assert "Did you mean 'check'?" in answer.stderr


def test_a_mistake_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    """What a person can mend is said on standard error, behind the program's name, and ends in status 2."""
    (tmp_path / "streamer.toml").write_text('[flush]\ninterval = "soon"\nmax_calls = 0\n')
    answer = streamer("check", "--offline", "--config", "streamer.toml", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    first, second = answer.stderr.splitlines()
    assert first.startswith('streamer: streamer.toml: flush.interval = "soon": must be a duration')
    assert second.startswith("streamer: streamer.toml: flush.max_calls = 0: must be a whole number")


def test_a_bug_shows_a_traceback_without_variables(tmp_path: Path) -> None:
    """An error that nobody foresaw shows where it is, and never the values of local variables: they may be secrets."""
    (tmp_path / "sitecustomize.py").write_text(
        "import streamer.cli as cli\n"
        "def check():\n"
        "    key = 'wk_' + 'secret'\n"
        "    raise RuntimeError('a bug')\n"
        "import sys, types\n"
        "sys.modules['streamer.cli.check'] = types.SimpleNamespace(check=check)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", "from streamer.cli import main; main()", "check"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert answer.returncode == 1
    assert "RuntimeError: a bug" in answer.stderr
    assert "wk_secret" not in answer.stderr
