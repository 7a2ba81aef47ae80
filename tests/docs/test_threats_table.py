"""THREATS.md names a test for every attack, and each of them exists."""

from __future__ import annotations

import re

from tests.jobs import ROOT


def _rows() -> list[list[str]]:
    text = (ROOT / "THREATS.md").read_text().partition("## Attacks and the tests that show them")[2]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_attack_has_a_test_that_exists() -> None:
    rows = _rows()
    assert len(rows) > 20
    for attack, outcome, tests in rows:
        named = re.findall(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", tests)
        assert named, f"no test for: {attack}"
        assert outcome, f"no outcome of: {attack}"
        missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
        assert not missing, missing


def test_every_test_of_attacks_stands_in_the_table() -> None:
    named = " ".join(cells[2] for cells in _rows())
    for path in sorted((ROOT / "tests" / "attacks").glob("test_*.py")):
        for name in re.findall(r"^def (test_[a-z0-9_]+)\(", path.read_text(), flags=re.MULTILINE):
            assert f"{path.relative_to(ROOT)}::{name}" in named or "sound" in name, name
