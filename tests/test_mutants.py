"""The table of `mutants.py` fits the code, and running it tells a mutant that is found from one that isn't."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from mutants import MUTANTS, Mutant

TESTS = Path(__file__).parent


@functools.cache
def functions(path: str) -> dict[str, set[str]]:
    """The test functions of a file and the arguments of each."""
    return {
        node.name: {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
        for node in ast.parse((TESTS / path).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_mutant_applies_and_its_test_is_there_and_needs_no_kafka(mutant: Mutant) -> None:
    compile(mutant.applied((TESTS.parent / "streamer" / mutant.file).read_text()), "mutant", "exec")
    path, _, name = mutant.test.partition("::")
    assert name in functions(path)
    assert not functions(path)[name] & {"kafka", "broker", "require"}


def test_no_two_mutants_share_a_name() -> None:
    names = [one.name for one in MUTANTS]
    assert len(set(names)) == len(names) >= 20


def try_one(right: str, wrong: str) -> tuple[int, str]:
    """Have a mutant of `Budget` tried, and give the status and what was said."""
    test = "core/test_budget.py::test_one_share_spends_the_budget_for_all"
    mutant = Mutant("made up", "core/budget.py", right, wrong, test)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, mutants\nfrom mutants import Mutant\nsys.exit(mutants.run([{mutant!r}]))"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_mutant_that_its_test_sees_is_found() -> None:
    status, said = try_one("self.used >= self.limit", "False")
    assert (status, said.count("ok ")) == (0, 2), said
    assert "test_one_share_spends_the_budget_for_all: AssertionError" in said


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("self.used >= self.limit", "self.limit <= self.used", "made up: all green"),
        ("self.used >= self.limit", "self.used >= limit", "for_all: NameError"),
        ("def share(self) -> Share:", "def share(self: ", "made up: pytest's exit status"),
        ("self.used = self.limit", "False", "its text occurs 0 times in streamer/core/budget.py"),
        ("self.used", "used", "and must be there once"),
    ],
)  # fmt: skip
def test_a_mutant_that_survives_is_broken_or_does_not_apply_is_an_error(
    right: str, wrong: str, says: str
) -> None:
    status, said = try_one(right, wrong)
    assert status == 1, said
    assert says in said
