"""Tests that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_named_tests_exist() -> None:
    named = {
        (file, test)
        for page in sorted((REPOSITORY / "docs").glob("*.md"))
        if page.name != "adding-a-method.md"  # its example is not part of the repository
        for file, test in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    missing = []
    for file, test in sorted(named):
        text = (REPOSITORY / file).read_text(encoding="utf-8") if (REPOSITORY / file).is_file() else None
        if text is None or (test and f"def {test}(" not in text):
            missing.append(f"{file}::{test}")
    assert missing == []
