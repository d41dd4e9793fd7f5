"""The jars of Apache Kafka: fetched once by Maven, kept in a cache outside the tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")

FETCH_TIMEOUT_SECONDS = 600


class JarsError(RuntimeError):
    """Maven could not fetch the jars; the text ends with what Maven said."""


def cache_folder() -> Path:
    """Where the jars are, or will be; named after the pom, so that versions never mix."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = hashlib.sha256(POM.read_bytes()).hexdigest()[:16]
    return cache / "altis-streamer" / f"kafka-{version}"


def fetch() -> Path:
    """Fetches the jars (about 43 MB) unless the cache has them.

    Returns:
        The folder that holds them: whole or not there, also when two runs fetch at once.

    Raises:
        JarsError: Maven failed.
    """
    folder = cache_folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    fetching = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _copy_dependencies(fetching)
        try:
            fetching.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster, and its jars are as good
                raise
    finally:
        shutil.rmtree(fetching, ignore_errors=True)
    return folder


def _copy_dependencies(folder: Path) -> None:
    command = [
        "mvn",
        "--quiet",
        "--batch-mode",
        "--strict-checksums",
        f"--file={POM}",
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
        f"-DoutputDirectory={folder}",
    ]
    try:
        maven = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=FETCH_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise JarsError(f"mvn fetched no jars within {FETCH_TIMEOUT_SECONDS} s") from error
    if maven.returncode != 0:
        raise JarsError(
            f"mvn could not fetch Kafka's jars:\n{(maven.stdout + maven.stderr)[-4000:]}"
        )
