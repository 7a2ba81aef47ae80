"""What is promised about data is shown by tests that exist."""

from __future__ import annotations

import re

from tests.jobs import ROOT


def test_every_promise_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 30
    for row in rows:
        named = re.findall(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", row)
        assert named, f"no test shows: {row}"
        missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
        assert not missing


def test_the_page_is_found_from_the_chapter_on_data() -> None:
    assert "(data.md)" in (ROOT / "docs" / "training.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / "data.md").read_text()):
        assert (ROOT / "docs" / target).exists(), target
