"""Secrets on their way through everything: each is seen only where somebody asked for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.daemon.rig import Daemon, RpcFailed, environ_of, eventually, running_daemon
from tests.daemon.test_isolation import write_apps

ENV = "canary-environment-5e1f"  # of a command, under a name that says so
URL = "canary-url-9c42"  # a password in a URL
ARGUMENT = "canary-argument-7d03"  # of a task, which logs it and raises it
PLACE = "canary-place-b6a8"  # where it is wrong: as a value that is refused
OWN = "canary-own-1f70"  # in the environment of the daemon itself
BEARER = "canary-bearer-4ea9"  # a token that is not accepted

COMMANDS = [
    ["ls", "--json"],
    ["ls"],
    ["status", "--json"],
    ["status"],
    ["doctor"],
    ["doctor", "--json"],
    ["config", "show", "--origin"],
    ["config", "show", "--json"],
    ["config", "validate"],
    ["queues", "--json"],
    ["workers", "--json"],
    ["tasks", "--json"],
    ["apps", "--json"],
    ["logs", "--daemon"],
]


class Seen(NamedTuple):
    """All that was said, by where."""

    outputs: dict[str, str]
    token: str
    job_token: str
    database: str  # while the job ran, and at the end

    def places_of(self, secret: str) -> set[str]:
        return {place for place, text in self.outputs.items() if secret in text}


@pytest.fixture(scope="module", params=["console", "json"])
def seen(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Seen:
    home = tmp_path_factory.mktemp("canaries") / "home"
    write_apps(home, "tests.security.leaky:app")
    settings = {"SEMANTICA_TCP": "on", "SEMANTICA_RPC_PORT": "0", "SEMANTICA_LOG_FORMAT": request.param}
    with running_daemon(home, MY_API_KEY=OWN, **settings) as daemon:
        outputs = dict(everything(daemon))
        job_token, database = outputs.pop("token of the command"), outputs.pop("database") + stored(home)
        token = (home / "run" / "token").read_text().strip()
    outputs["stderr of the daemon"] = daemon.stderr()
    outputs["daemon.log"] = (home / "logs" / "daemon.log").read_text()
    return Seen(outputs, token, job_token, database + stored(home))


def everything(daemon: Daemon) -> Iterator[tuple[str, str]]:
    command = daemon.command(
        "sh",
        "-c",
        'echo "$API_TOKEN"; until [ -e go ]; do sleep 0.02; done; exit 3',
        env={"API_TOKEN": ENV, "DATABASE": f"postgres://me:{URL}@db/x", "PATH": os.environ["PATH"]},
        working_dir=str(daemon.home),
        access=["read"],
        max_attempts=2,
        retry_base_delay_ms=10,
    )
    task = str(
        daemon.rpc(
            "dev.enqueue.v1",
            job_type="tests.security.leaky:leak",
            execution_mode="IN_PROCESS",
            payload={"secret": ARGUMENT},
            max_attempts=2,
            retry_base_delay_ms=10,
        )["job_id"]
    )
    eventually(lambda: daemon.job(command)["state"] == "RUNNING")
    eventually(lambda: ENV in daemon.log(command))
    pid = int(eventually(lambda: daemon.job(command)["pid"]))
    token = environ_of(pid)["SEMANTICA_TOKEN"]
    yield "token of the command", token
    yield "answers to the token", with_token(daemon, token)
    yield "database", stored(daemon.home)
    yield "running command", json.dumps(daemon.job(command, "payload", "attempts"))
    yield "running command with secrets", json.dumps(daemon.job(command, "secrets"))
    yield "ps", processes()
    (daemon.home / "go").touch()
    failed = {job["job_id"]: job for job in daemon.wait(command, task)}
    assert {job["state"] for job in failed.values()} == {"FAILED"}
    retried = [daemon.rpc("dev.retry.v1", job_id=job_id)["job_id"] for job_id in failed]
    daemon.wait(*retried)
    for name, job_id in (("command", command), ("task", task)):
        yield f"{name}", json.dumps(daemon.job(job_id, "attempts"))
        yield f"{name} with payload", json.dumps(daemon.job(job_id, "payload"))
        yield f"{name} with secrets", json.dumps(daemon.job(job_id, "secrets"))
        yield f"{name} with result", json.dumps(daemon.job(job_id, "result"))
        yield f"log of the {name}", daemon.log(job_id)
        yield f"show {name}", said(daemon, "show", job_id)
        yield f"show --payload {name}", said(daemon, "show", "--payload", job_id)
        yield f"show --secrets {name}", said(daemon, "show", "--secrets", job_id)
    yield "copies", json.dumps([daemon.job(job_id, "payload") for job_id in retried[:1]])
    for method in ("admin.stats.v1", "workers.list.v1", "tasks.list.v1", "apps.list.v1", "queues.list.v1"):
        yield method, json.dumps(daemon.rpc(method))
    yield "metrics", daemon.get("/metrics")[1].decode()
    yield "refusals", json.dumps(list(refusals(daemon)))
    yield "wrong tokens", wrong_tokens(daemon)
    for argv in COMMANDS:
        yield " ".join(argv), said(daemon, *argv)
    yield from files(daemon.home)


def processes() -> str:
    """What every user of the machine can see of every process."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace"))
    return "\n".join(found)


def said(daemon: Daemon, *argv: str) -> str:
    words = [sys.executable, "-m", "semtask", *argv]
    ended = subprocess.run(words, env=daemon.env, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    return ended.stdout + ended.stderr


def with_token(daemon: Daemon, token: str) -> str:
    """What is answered to it where it is good, where it is too little, and where it is none."""
    said = ""
    for given, method in ((token, "queues.list.v1"), (token, "queues.pause.v1"), (f"x{token}", "queues.list.v1")):
        connection = daemon.connection()
        headers = {"content-type": "application/json", "authorization": f"Bearer {given}"}
        connection.request("POST", "/rpc", json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}), headers)
        response = connection.getresponse()
        said += f"{response.headers} {response.read().decode()}"
        connection.close()
    return said


def stored(home: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in home.glob("meta.db*"))


def refusals(daemon: Daemon) -> Iterator[Any]:
    """Errors of requests in which a secret stands where it does not belong."""
    good = {"job_type": "x", "execution_mode": "SUBPROCESS", "payload": {"command": "true"}}
    wrong: list[dict[str, Any]] = [
        {"priority": PLACE},
        {"queue": f"{PLACE} "},
        {"tag": [PLACE]},
        {"subject_key": f"{PLACE}\0"},
        {"idempotency_key": {"key": PLACE}},
        {"payload": PLACE},
        {"payload": {"command": "true", "env": [PLACE]}},
        {"payload": {"command": "true", "env": {"A": [PLACE]}}},
        {"payload": {"command": "true", "env": {"A=": PLACE}}},
        {"payload": {"command": "true", "umask": PLACE}},
        {"payload": {"command": f"{PLACE}\0"}},
        {"execution_mode": PLACE},
        {"job_type": "tests.security.leaky:leak", "execution_mode": "IN_PROCESS", "payload": {"number": PLACE}},
        {"job_type": "tests.security.leaky:leak", "execution_mode": "IN_PROCESS", "payload": {"secret": [PLACE]}},
    ]
    for params in wrong:
        with pytest.raises(RpcFailed) as refused:
            daemon.rpc("dev.enqueue.v1", **{**good, **params})
        yield refused.value.message, refused.value.data


def wrong_tokens(daemon: Daemon) -> str:
    port = next(
        int(line.split()[1].split(":")[1], 16) for line in listening() if line.split()[9] in sockets_of(daemon.pid)
    )
    text = ""
    for value in (f"Bearer {BEARER}", BEARER, f"Basic {BEARER}"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/rpc", b"{}", {"content-type": "application/json", "authorization": value})
        response = connection.getresponse()
        assert response.status == 401
        text += f"{response.headers} {response.read().decode()}"
        connection.close()
    return text


def listening() -> list[str]:
    return [line for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]


def sockets_of(pid: int) -> set[str]:
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}


def files(home: Path) -> Iterator[tuple[str, str]]:
    """All files of the home but the database, which holds the jobs, the logs of the jobs, and the token itself."""
    for path in sorted(home.rglob("*")):
        own = (
            home / "logs" / "jobs" in path.parents or path.name.startswith("meta.db") or path == home / "run" / "token"
        )
        if path.is_file() and not own:
            yield f"file {path.relative_to(home)}", f"{path} {path.read_bytes().decode(errors='replace')}"


def test_an_environment_is_shown_to_who_asks_for_its_secrets(seen: Seen) -> None:
    own = {"log of the command"}  # which printed it
    asked = {"command with secrets", "running command with secrets", "show --secrets command"}
    assert seen.places_of(ENV) == own | asked
    assert seen.places_of(URL) == asked
    assert json.loads(seen.outputs["command with payload"])["payload"]["env"] == {
        "API_TOKEN": "***",
        "DATABASE": "***",
        "PATH": os.environ["PATH"],
    }


def test_an_argument_of_a_task_is_shown_with_its_job(seen: Seen) -> None:
    """In its payload, where it was logged, and in the error that the task made of it."""
    of_the_task = {place for place in seen.outputs if place.endswith("task") or place.startswith("task ")}
    assert seen.places_of(ARGUMENT) - {"ls --json"} <= of_the_task
    assert {"task with payload", "log of the task", "task with result"} <= seen.places_of(ARGUMENT)


@pytest.mark.parametrize("secret", [PLACE, OWN, BEARER], ids=["misplaced", "own", "bearer"])
def test_what_nobody_asked_for_is_nowhere(seen: Seen, secret: str) -> None:
    assert seen.places_of(secret) == set()


def test_the_token_is_nowhere_but_in_its_file(seen: Seen) -> None:
    assert len(seen.token) >= 32
    assert seen.places_of(seen.token) == set()


def test_the_token_of_a_job_is_nowhere_at_all(seen: Seen) -> None:
    assert seen.job_token.startswith("smt_")
    assert seen.places_of(seen.job_token) == set()
    assert ENV in seen.database
    assert seen.job_token not in seen.database


def test_something_was_looked_at(seen: Seen) -> None:
    silent = {place for place, text in seen.outputs.items() if len(text) < 20}
    assert silent <= {"stderr of the daemon", "log of the task", "log of the command"}
    assert "attempt ended" in seen.outputs["daemon.log"]
