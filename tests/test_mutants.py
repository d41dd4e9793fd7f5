"""The table of `mutants.py` fits the code, and running it tells a mutant that is found from one that isn't."""

from __future__ import annotations

import ast
import functools
import re
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


def budget_mutant(name: str, right: str, wrong: str) -> Mutant:
    test = "core/test_budget.py::test_one_share_spends_the_budget_for_all"
    return Mutant(name, "core/budget.py", right, wrong, test)


def test_only_a_mutant_that_its_test_sees_is_found() -> None:
    spent = "self.used >= self.limit"
    mutants = [
        budget_mutant("found", spent, "False"),
        budget_mutant("survives", spent, "self.limit <= self.used"),
        budget_mutant("slips", spent, "self.used >= limit"),
        budget_mutant("breaks", "def share(self) -> Share:", "def share(self: "),
    ]
    program = (
        f"import mutants\nfrom mutants import Mutant\nraise SystemExit(mutants.run({mutants!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    said = {
        match[2]: (match[1], match[3])
        for match in re.finditer(r"^(ok |NOT) +[\d.]+ s  (.+?): (.+)$", done.stdout, re.MULTILINE)
    }
    name = "test_one_share_spends_the_budget_for_all"
    assert said == {
        "the code as it is": ("ok ", "all green"),
        "found": ("ok ", f"{name}: AssertionError"),
        "survives": ("NOT", "all green"),
        "slips": ("NOT", f"{name}: NameError"),
        "breaks": ("NOT", said["breaks"][1]),
    }
    assert "4 mutants in" in done.stdout
    assert "3 runs did not end as they must" in done.stdout


@pytest.mark.parametrize(("right", "times"), [("self.used = self.limit", 0), ("self.used", 9)])
def test_a_mutant_whose_text_is_not_there_once_is_named(right: str, times: int) -> None:
    text = (TESTS.parent / "streamer/core/budget.py").read_text()
    with pytest.raises(ValueError, match=rf"`mine` applies no longer: its text occurs {times} t"):
        budget_mutant("mine", right, "pass").applied(text)
