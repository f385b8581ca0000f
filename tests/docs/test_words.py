"""Plain English: no banned word in what people read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS, README, ROOT
from tests.docs.words import banned

SRC = ROOT / "src" / "semtask"
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
MODULES = sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_have_no_banned_words(page: Path) -> None:
    assert list(banned(page)) == []


def test_modules_have_no_banned_words() -> None:
    assert len(MODULES) > 300
    assert [line for module in MODULES for line in banned(module)] == []


def test_a_banned_word_is_found_in_strings_docstrings_and_comments(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""Mended."""\nx = f"{1} at\\nonce"\n# this cannot\n# be had\n')
    assert [line.split(": ")[1].partition(";")[0] for line in banned(module)] == [
        "'Mended'",
        "'at once'",
        "'cannot be had'",
    ]
    page = tmp_path / "page.md"
    page.write_text("Fine. `at once`\n\n```sh\nat once\n```\n\nIt stands.\n")
    assert list(banned(page)) == [f"{page}:7: 'stands'; write: is, runs, is blocked"]
