"""The types of the SDK, under two type checkers: what is right passes, each line that is marked is an error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"  # type: ignore\[[a-z-]+\]")


@pytest.fixture(scope="module")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """typed.py without its marks, and the numbers of the lines that had one."""
    lines = Path(__file__).with_name("typed.py").read_text().splitlines()
    path = tmp_path_factory.mktemp("typing") / "typed.py"
    path.write_text("\n".join(MARK.sub("", line) for line in lines) + "\n")
    marked = {number for number, line in enumerate(lines, 1) if MARK.search(line)}
    assert len(marked) > 20
    return path, marked


def test_mypy(stripped: tuple[Path, set[int]]) -> None:
    path, marked = stripped
    cache = str(path.parent / "cache")
    said = _run(["mypy", "--config-file", "pyproject.toml", "--no-pretty", "--cache-dir", cache, str(path)], ROOT)
    found = {int(m[1]): m[0] for m in re.finditer(rf"(?m)^{re.escape(str(path))}:(\d+): error: .*$", said)}
    assert set(found) == marked, f"{_differences(found, marked)}\n{said}"


def test_basedpyright(stripped: tuple[Path, set[int]]) -> None:
    path, marked = stripped
    settings = path.with_name("pyrightconfig.json")
    settings.write_text(json.dumps({"include": [path.name], "typeCheckingMode": "standard", "pythonVersion": "3.11"}))
    command = ["basedpyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(settings)]
    said = json.loads(_run(command, path.parent))["generalDiagnostics"]
    errors = [diagnostic for diagnostic in said if diagnostic["severity"] == "error"]
    assert {error["file"] for error in errors} <= {str(path)}, errors
    found = {error["range"]["start"]["line"] + 1: error["message"] for error in errors}
    assert set(found) == marked, _differences(found, marked)


def _run(module: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, "-m", *module], check=False, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # 1: errors were found, as there must be
    return done.stdout


def _differences(found: dict[int, str], marked: set[int]) -> str:
    unexpected = {line: text for line, text in found.items() if line not in marked}
    return f"unexpected errors: {unexpected}; lines that should be errors: {sorted(marked - set(found))}"
