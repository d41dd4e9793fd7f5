"""Segment's own node packages, installed once for each lock file, outside of the tree."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="session")
def node_modules(require: Callable[..., None]) -> Path:
    """The folder in which `npm ci` has installed what node/package-lock.json names."""
    require("node", "npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    lock = hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()[:16]
    installed = cache / "altis-streamer" / "node" / lock
    if not (installed / "node_modules").is_dir():
        installed.parent.mkdir(parents=True, exist_ok=True)
        # Installed elsewhere and moved when it is complete: an interrupted run leaves nothing half done.
        with tempfile.TemporaryDirectory(dir=installed.parent) as temporary:
            folder = Path(temporary) / "complete"
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(NODE / name, folder)
            npm = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if npm.returncode != 0:
                pytest.fail(f"npm ci failed for {NODE}:\n{npm.stderr}", pytrace=False)
            with contextlib.suppress(OSError):  # another run was faster; its packages are the same
                folder.rename(installed)
    return installed / "node_modules"
