"""`streamer.plugins`, in processes of their own: what is imported stays imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

STREAMER = Path(sys.executable).with_name("streamer")
EVENT = b'{"event_type":"click","event_timestamp":1700000000000,"endpoint":{"Id":"ann"}}\n'
PLUGIN = """
from streamer import hooks

hooks.register_segment_group_field("endpoint.Id")

@hooks.filter("altis.analytics.segment.formatted_data")
def mark(data):
    for calls in data:
        calls[-1]["properties"] = {"marked": "by {name}"}
    return data

@hooks.action("altis.analytics.segment.request_success")
def nothing(response, batch):
    pass
"""


def streamer(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("STREAMER_", "SEGMENT_", "COVERAGE"))
    }
    return subprocess.run(
        [STREAMER, *arguments],
        input=EVENT, cwd=folder, env={**clean, **environ}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def write(folder: Path, name: str, text: str = PLUGIN) -> None:
    (folder / f"{name}.py").write_text(text.replace("{name}", name))


def install(folder: Path, name: str, module: str) -> None:
    """Make a folder on the path look as if a distribution with an entry point were installed in it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[streamer.plugins]\n{name} = {module}\n")


def test_a_module_in_the_folder_is_loaded_and_has_its_say(tmp_path: Path) -> None:
    write(tmp_path, "my_site")
    done = streamer(tmp_path, "transform", STREAMER_PLUGINS="my_site")
    assert done.returncode == 0, done.stderr
    calls = orjson.loads(done.stdout)
    assert [call["type"] for call in calls] == ["identify", "group", "track"]
    assert calls[-1]["properties"] == {"marked": "by my_site"}


def test_an_installed_plug_in_is_loaded_without_being_named_and_before_the_named(
    tmp_path: Path,
) -> None:
    installed, folder = tmp_path / "installed", tmp_path / "folder"
    installed.mkdir()
    folder.mkdir()
    write(installed, "their_site")
    write(folder, "my_site")
    install(installed, "theirs", "their_site")
    done = streamer(folder, "transform", PYTHONPATH=str(installed))
    assert orjson.loads(done.stdout)[-1]["properties"] == {"marked": "by their_site"}
    done = streamer(folder, "transform", PYTHONPATH=str(installed), STREAMER_PLUGINS="my_site")
    assert orjson.loads(done.stdout)[-1]["properties"] == {"marked": "by my_site"}


def test_check_says_what_is_loaded_and_what_it_registered(tmp_path: Path) -> None:
    write(tmp_path, "my_site")
    done = streamer(
        tmp_path, "check", "--offline", STREAMER_PLUGINS="my_site", SEGMENT_API_WRITE_KEY="key"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    start = lines.index("plug-ins: my_site")
    assert lines[start : start + 4] == [
        "plug-ins: my_site",
        "  altis.analytics.segment.formatted_data: my_site.mark",
        "  altis.analytics.segment.request_success: my_site.nothing",
        "  1 group map registered",
    ]


@pytest.mark.parametrize("command", [("run",), ("check", "--offline"), ("transform",)])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nowhere_at_all\n", ["nowhere_at_all", "There is no module"]),
        ("def f():\n    raise ArithmeticError('why')\nf()\n", ["ArithmeticError: why", "line 2, in f"]),
        ("def f(:\n", ["SyntaxError"]),
        (
            "from streamer import hooks\n@hooks.filter('altis.analytics.segment.maping')\ndef f(x): ...\n",
            ["did you mean 'altis.analytics.segment.mapping'?"],
        ),
        (
            "from streamer import hooks\n@hooks.filter('altis.analytics.segment.mapping')\ndef f(x): ...\n",
            ["is called with (mapping, type)"],
        ),
    ],
)  # fmt: skip
def test_a_plug_in_that_fails_to_import_ends_the_start_with_its_traceback(
    tmp_path: Path, command: tuple[str, ...], text: str, says: list[str]
) -> None:
    write(tmp_path, "my_site", text)
    done = streamer(tmp_path, *command, STREAMER_PLUGINS="my_site", SEGMENT_API_WRITE_KEY="key")
    error = done.stderr.decode()
    assert done.returncode == 2, error
    assert "plugins: my_site can't be imported" in error
    for sentence in says:
        assert sentence in error
    assert "streamer/plugins.py" not in error, "the traceback begins where site code does"


def test_a_filter_of_the_mapping_that_fails_ends_the_start(tmp_path: Path) -> None:
    text = (
        "from streamer import hooks\n@hooks.filter('altis.analytics.segment.mapping')\n"
        "def forgets(mapping, type):\n    mapping['x'] = 'y'\n"
    )
    write(tmp_path, "my_site", text)
    done = streamer(
        tmp_path, "check", "--offline", STREAMER_PLUGINS="my_site", SEGMENT_API_WRITE_KEY="key"
    )
    assert done.returncode == 2
    assert "my_site.forgets returned nothing; expected the dict" in done.stderr.decode()


def test_without_a_default_key_a_handler_may_have_them_all(tmp_path: Path) -> None:
    done = streamer(tmp_path, "check", "--offline")
    assert done.returncode == 2
    assert "no Segment write key" in done.stderr.decode()
    text = (
        "from streamer import hooks\n@hooks.filter('altis.analytics.segment.api_write_key')\n"
        "def key(key, event):\n    return 'mine'\n"
    )
    write(tmp_path, "my_site", text)
    done = streamer(tmp_path, "check", "--offline", STREAMER_PLUGINS="my_site")
    assert done.returncode == 0, done.stderr
    sites = {"STREAMER_SEGMENT__SITES__WRITE_KEYS": '{"2": "key-of-2"}'}
    done = streamer(tmp_path, "check", "--offline", **sites)
    assert done.returncode == 0, done.stderr
    assert "key-of-2" not in done.stdout.decode()
    assert 'set for "2", from STREAMER_SEGMENT__SITES__WRITE_KEYS' in done.stdout.decode()
