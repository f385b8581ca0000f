"""The page of faults is whole, and the tests that it names are there: what pytest collects, not what looks like one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT

PAGE = DOCS / "explanation" / "fault-matrix.md"
FAULTS = 92
_ROW = re.compile(r"^\| (\d+) \|([^|]+)\|([^|]*)\| (.+) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[tuple[int, str, str, str]]:
    return [(int(number), fault, follows, held) for number, fault, follows, held in _ROW.findall(PAGE.read_text())]


def test_every_fault_has_one_row_in_order() -> None:
    assert [number for number, *_ in rows()] == list(range(1, FAULTS + 1))


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0]))
def test_a_row_names_tests_or_says_why_there_is_none(row: tuple[int, str, str, str]) -> None:
    _, _, follows, held = row
    assert _TEST.search(held) or re.match(r"Not covered: \w+", held)
    assert follows.strip() or held.startswith("Not covered")
    assert "::" not in _TEST.sub("", held), "a test is named as `tests/file.py::test_name`"


def test_every_test_that_is_named_would_be_run() -> None:
    named = _TEST.findall(PAGE.read_text())
    assert len(named) > FAULTS
    assert not {f"{file}::{name}" for file, name in named if name not in collected(ROOT / file)}


def collected(path: Path) -> set[str]:
    """The functions that pytest takes for tests, and that nothing in the file skips in any case."""
    nodes = ast.parse(path.read_text()).body if path.is_file() else []
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name for node in functions if node.name.startswith("test_") and not set_aside(node)}


def set_aside(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    marks = {ast.unparse(mark).partition("(")[0] for mark in function.decorator_list}
    return bool(marks & {"pytest.mark.skip", "pytest.mark.xfail"})
