"""The reference is what the code says now, and explains all of it."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import click
import pytest

import semtask
from semtask import testing
from semtask.cli import main, session
from semtask.config.settings import documented
from semtask.model.state import TRANSITIONS
from semtask.protocol.enqueue import EnqueueParams
from semtask.protocol.jobs import JobView
from semtask.protocol.meanings import MEANINGS
from semtask.protocol.methods import METHODS
from semtask.protocol.openrpc import document
from semtask.telemetry.events import Levels
from semtask.telemetry.metrics import Metrics
from tests.docs.pages import DOCS


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of docs/generator, fresh."""
    monkeypatch.syspath_prepend(str(DOCS))
    names = ["markdown", "glossary", "api", "sdk", "settings", "command_line", "states", "failures", "metrics"]
    before = set(sys.modules)
    yield {name: importlib.import_module(f"generator.{name}") for name in names}
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "generator":
            del sys.modules[name]


def test_the_generated_parts_are_up_to_date_and_nothing_is_unexplained() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run `make docs`, and explain what is new:\n{done.stdout}{done.stderr}"


def test_a_parameter_and_a_result_without_a_word_are_noticed(
    generator: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = generator["markdown"].gaps
    monkeypatch.delitem(MEANINGS[EnqueueParams], "ttl_ms")
    monkeypatch.delitem(MEANINGS[JobView], "end_cause")
    monkeypatch.setitem(MEANINGS[JobView], "colour", "of the job")
    generator["api"].methods()
    generator["api"].shapes()
    assert {gap.partition(": ")[2] for gap in gaps} == {
        "nothing explains EnqueueParams.ttl_ms",
        "nothing explains JobView.end_cause",
        "there is no JobView.colour",
    }


def test_other_words_that_nothing_explains_are_noticed(
    generator: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = generator["markdown"].gaps
    glossary = generator["glossary"]
    for table in (
        glossary.STATES,
        glossary.EVENTS,
        glossary.STOP_REASONS,
        glossary.END_CAUSES,
        glossary.WAITING,
        glossary.FAILURES,
        glossary.WHAT_TO_DO,
        glossary.HTTP_STATUSES,
        glossary.EXIT_CODES,
        glossary.ENVIRONMENT,
        glossary.DEFAULTS,
        glossary.SDK,
    ):
        del table[next(iter(table))]
    monkeypatch.setattr(generator["settings"], "documented", lambda: [("home", None, "")])
    option = next(iter(session.common_options()))
    option.help = None
    monkeypatch.setattr(generator["command_line"].session, "common_options", lambda: [option])
    command = main.cli.get_command(generator["command_line"].click.Context(main.cli), "ls")
    assert command is not None
    monkeypatch.setattr(command, "help", "")
    for build in (
        *(getattr(generator["states"], n) for n in ("states", "events", "stop_reasons", "end_causes")),
        *(getattr(generator["states"], n) for n in ("waiting_reasons", "failure_classes")),
        generator["failures"].rpc_errors,
        generator["failures"].http_statuses,
        generator["command_line"].exit_codes,
        generator["command_line"].common_options,
        generator["command_line"].commands,
        generator["settings"].variables,
        generator["settings"].settings,
        generator["sdk"].names,
    ):
        before = len(gaps)
        build()
        assert len(gaps) > before, build


def test_nothing_is_left_out() -> None:
    """What the generator could forget as a whole, looked for in the text."""
    api = (DOCS / "reference" / "api.md").read_text()
    methods = document("0")["methods"]
    assert {method["name"] for method in methods} == set(METHODS)
    for method in methods:
        section = section_of(api, f"`{method['name']}`")
        for parameter in method["params"]:
            assert f"| `{parameter['name']}` |" in section, (method["name"], parameter["name"])

    settings = (DOCS / "reference" / "settings.md").read_text()
    for name, variable, _ in documented():
        assert f"| `{name}` | {f'`{variable}`' if variable else ''} |" in settings

    commands = (DOCS / "reference" / "command-line.md").read_text()
    common = {option.opts[-1] for option in session.common_options()}
    for path, command in every_command("semtask", main.cli):
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden and option.opts[-1] not in common:
                assert option.opts[-1] in section_of(commands, path), (path, option.opts)

    sdk = (DOCS / "reference" / "sdk.md").read_text()
    for module, name in [*((semtask, n) for n in semtask.__all__), *((testing, n) for n in testing.__all__)]:
        value = getattr(module, name)
        if callable(value):
            section = with_bases(sdk, name)
            for member in members_of(value):
                assert re.search(rf"^(- `{member}`: |{member}\()", section, re.MULTILINE), (name, member)

    states = (DOCS / "reference" / "states.md").read_text()
    for (before, event), after in TRANSITIONS.items():
        assert f"| `{before}` | `{event}` | `{after}` |" in states
        assert re.search(rf"^    {before} --> {after}: .*\b{event}\b", states, re.MULTILINE)

    metrics = (DOCS / "reference" / "metrics.md").read_text()
    exporter = Metrics(version="", sqlite="")
    levels = Levels(jobs={}, oldest_ready_s={}, counters={}, db_size_bytes=0, db_wal_bytes=0)
    for name, kind in re.findall(r"^# TYPE (semantica_\w+) (\w+)", exporter.render(levels).decode(), re.MULTILINE):
        assert f"| `{name}` | {kind} |" in metrics


def test_rpc_discover_says_what_every_field_means() -> None:
    schemas = document("0")["components"]["schemas"]
    silent = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, kind in schema.get("properties", {}).items()
        if not kind.get("description")
    ]
    assert not silent


def section_of(text: str, heading: str) -> str:
    found = text.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    assert found, heading
    return found


def with_bases(sdk: str, name: str) -> str:
    """The section of a public class, and of those that it says it is like."""
    section = section_of(sdk, name)
    others = re.findall(r"^(?:A|All else is as with) \[`(\w+)`\]", section, re.MULTILINE)
    return "".join([section, *(with_bases(sdk, other) for other in others)])


def members_of(value: object) -> list[str]:
    """What help() shows of a public class, but for what only semtask itself calls."""
    if not inspect.isclass(value):
        return []
    ours = {name for kind in value.__mro__ if kind.__module__.startswith("semtask.") for name in vars(kind)}
    return sorted(name for name in ours - {"definition", "blocked", "end", "send", "asend"} if not name.startswith("_"))


def every_command(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield f"{path} {name}", inner
            yield from every_command(f"{path} {name}", inner)
