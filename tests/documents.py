"""What tests ask of the documents: their fenced blocks, and whether what a command prints is what they show."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]
}
COMMAND = Path(sys.executable).with_name("streamer")


def fenced(language: str) -> list[tuple[str, str]]:
    """Every fenced block of a language, with the name of its document."""
    return [
        (name, block)
        for name, text in DOCUMENTS.items()
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def transcripts(document: str) -> dict[str, str]:
    """Each command of a document's consoles, and what is shown below it."""
    shown = {}
    for name, block in fenced("console"):
        if name == document:
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                shown[command] = output
    return shown


def assert_printed(shown: str, printed: str, *, figures: bool = True) -> None:
    """What is shown was printed, in that order; `…` stands for what is left out.

    Args:
        shown: as a document has it.
        printed: by the command.
        figures: whether numbers must be the same, and with them the widths of columns.
    """
    position = 0
    for line in shown.splitlines():
        if line == "…":
            continue
        pattern = ".*".join(re.escape(part.rstrip()) for part in line.split("…"))
        if not figures:
            pattern = re.sub(r"\d(?:[\d,]|\\\.(?=\d))*", r"[\\d,.]+", pattern)
            pattern = re.sub(r"(?:\\ )+", " +", pattern)
            pattern = re.sub(r"([─━])\1*", r"\1+", pattern)
        found = re.compile(rf"^{pattern} *$", re.MULTILINE).search(printed, position)
        assert found, f"not printed, or not in this place: {line}"
        position = found.end()


def run_streamer(
    arguments: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, with nothing of this environment's own settings."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("STREAMER_", "SEGMENT_"))}
    return subprocess.run(
        [COMMAND, *shlex.split(arguments)],
        cwd=folder,
        env={**clean, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
