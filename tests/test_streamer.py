"""The package itself: what site code finds in it, and that this costs nobody anything who doesn't ask for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import streamer
from streamer import hooks

NAMES = ("register_segment_group_field", "register_segment_group_map")


@pytest.mark.parametrize("program", ["import streamer", "import streamer.cli"])
def test_importing_it_imports_nothing_that_takes_time(program: str) -> None:
    """What the names need, and the reading of the version, waits until somebody asks for it."""
    slow = ("importlib.metadata", "orjson", "streamer.core.model", "streamer.hooks")
    program += f"\nimport sys\nprint([name for name in {slow!r} if name in sys.modules])"
    # -S: what the environment's own start imports doesn't count, so the paths are handed over.
    answer = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "[]\n"


def test_site_code_finds_the_hooks_and_the_groups() -> None:
    """In a process that imported nothing else; `import streamer` is enough."""
    program = (
        "import streamer\n"
        "streamer.register_segment_group_field('a.b')\n"
        "streamer.register_segment_group_map({'field': 'c'})\n"
        "print(streamer.hooks.registered.groups)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[{'field': 'a.b'}, {'field': 'c'}]\n"
    assert streamer.hooks is hooks
    for name in NAMES:
        assert getattr(streamer, name) == getattr(hooks, name)


def test_all_that_it_names_is_there_and_nothing_else() -> None:
    assert set(streamer.__all__) == {"__version__", "hooks", *NAMES}
    for name in streamer.__all__:
        assert getattr(streamer, name) is not None
    assert streamer.__version__ == version("altis-streamer")
    with pytest.raises(AttributeError, match="has no attribute 'hook'"):
        getattr(streamer, "hook")  # noqa: B009 - mypy knows that it isn't there
