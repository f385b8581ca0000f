"""Links lead somewhere, examples work, and what a page names is there."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

import click
import pytest

from semtask.cli.main import cli
from tests.cli.rig import eventually
from tests.docs.pages import DOCS, README, ROOT, Block, blocks, matches, pages
from tests.docs.reader import Reader

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_OPERATORS = set(";|&()<>")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("r"))  # short: curl takes no path of a socket above 107 characters
    try:
        yield reader
    finally:
        reader.type("semtask down --now")
        eventually(lambda: not reader.processes(), what=f"{reader.processes()} are gone")


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages(), ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCED.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue
        path, _, fragment = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if fragment:
            assert fragment in headings(found), target


def headings(page: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    found = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_page_can_be_reached_from_the_first_one() -> None:
    seen: set[Path] = set()
    waiting = [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = [target.partition("#")[0] for target in _LINK.findall(page.read_text()) if ":" not in target]
        waiting += [(page.parent / target).resolve() for target in targets if target]
    assert {p for p in DOCS.rglob("*.md") if p.parent.name != "adr"} <= seen


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages(), ids=name)
def test_python_compiles_and_every_command_is_one_that_semtask_accepts(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text, f"{name(page)}:{block.line}")
        elif block.language in {"console", "sh"}:
            for words in calls(block):
                require_accepted(words, f"{name(page)}:{block.line}: {shlex.join(words)}")


def calls(block: Block) -> Iterator[list[str]]:
    """The calls of semtask in a block, as lists of words."""
    lines = [line.partition("  # ")[0] for line in block.text.replace("\\\n", " ").splitlines()]
    lines = [line[2:] for line in lines if line.startswith(("$ ", "> "))] if block.language == "console" else lines
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= _OPERATORS:
                words.append(word)
                continue
            if "semtask" in words[:3] and "install" not in words:
                yield words[words.index("semtask") + 1 :]
            words = []


def require_accepted(words: list[str], place: str) -> None:
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(click.Context(command), words[0])
        assert inner is not None, place
        command, words = inner, words[1:]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            command.make_context("semtask", list(words))
    except click.exceptions.Exit:
        pass  # --help
    except click.UsageError as error:
        raise AssertionError(f"{place}: {error.format_message()}") from None


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "page", [*sorted(DOCS.glob("tutorial*.md")), *sorted((DOCS / "how-to").glob("*.md"))], ids=name
)
def test_every_command_does_what_the_page_says(page: Path, reader: Reader) -> None:
    """In order, at a terminal. A command that fails is followed by one that shows its exit code."""
    if "$ curl" in page.read_text() and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    follow(reader, blocks(page))


@pytest.mark.timeout(240)
def test_the_example_of_the_readme_does_what_it_says(reader: Reader) -> None:
    first = [block for block in blocks(README) if block.section == "semtask"]
    assert [block.language for block in first] == ["python", "console"]
    follow(reader, first)


_REQUESTS = """
import asyncio
from tests.contrib.asgi import Server
from web import web

async def main():
    async with Server(web).running() as server:
        job = (await server.get("/index", "path=jobs.py"))["job"]
        print(await server.get("/result", f"job={job}"), await server.get("/health"))

asyncio.run(main())
"""


def test_the_web_application_of_the_page_answers(reader: Reader) -> None:
    files = {block.file: block for block in blocks(DOCS / "how-to" / "starlette-and-fastapi.md") if block.file}
    for block in files.values():
        reader.follow(block)
    code, shown = reader.type("semtask up -q --app jobs")
    assert code == 0, shown
    (reader.folder / "requests.py").write_text(_REQUESTS)
    code, shown = reader.type(f"PYTHONPATH={ROOT} python requests.py")
    lines = len(files["jobs.py"].text.splitlines())
    assert shown == [f"{{'lines': {lines}}} {{'accepting': True}}"]


def follow(reader: Reader, wanted: Iterable[Block]) -> None:
    for block in wanted:
        done = reader.follow(block)
        for (command, code, shown), after in zip_longest(done, done[1:]):
            place = f"{name(block.page)}:{command.line}: {command.text}\n" + "\n".join(shown)
            assert code == 0 or (after is not None and after[0].text == "echo $?"), place
            assert matches(command.output, shown), place


def python_examples() -> Iterator[tuple[Block, str | None]]:
    """Each with the `text` block behind it, which is its output."""
    found = list(blocks(DOCS / "how-to" / "python.md"))
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language == "python":
            yield block, after.text if after is not None and after.language == "text" else None


@pytest.mark.parametrize(
    ("block", "output"), [pytest.param(*pair, id=f"{pair[0].page.name}:{pair[0].line}") for pair in python_examples()]
)
def test_python_examples_run(block: Block, output: str | None, reader: Reader) -> None:
    project = reader.home / "project"
    project.mkdir()
    (project / "Makefile").write_text("all:\n\t@echo built\n")
    code = block.text.replace("/path/to/project", str(project))
    done = subprocess.run(
        [sys.executable, "-c", code], env=reader.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout
    assert output is None or matches(output.splitlines(), done.stdout.splitlines()), done.stdout


# --- what a page names -----------------------------------------------------------------------------------------------


def test_every_promise_names_tests_and_they_are_there() -> None:
    text = (DOCS / "explanation" / "promises.md").read_text()
    promises = text.split("\n## ")[1:]
    assert len(promises) >= 9
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise)
        assert named, promise.splitlines()[0]
        for file, function in named:
            path = ROOT / file
            assert path.is_file(), file
            assert not function or re.search(rf"^(async )?def {function}\(", path.read_text(), re.MULTILINE), function


def test_every_module_of_a_layer_is_named_by_the_architecture() -> None:
    text = (DOCS / "explanation" / "architecture.md").read_text()
    package = ROOT / "src" / "semtask"
    layers = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    table = text.partition("| layer |")[2].partition("\n\n")[0]
    assert {layer for layer in layers if not layer.startswith("__")} == set(re.findall(r"`(\w+)`", table))
