"""Named tokens at a real daemon: what each scope opens, and how soon it is closed again."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semtask.errors import ConfigError
from semtask.host.tokens import add_token, path_of, read_tokens
from semtask.model.scope import ALL_SCOPES, Scope, held
from semtask.protocol.methods import METHODS
from tests.daemon.rig import Daemon, running_daemon

COMMAND = {"job_type": "c", "execution_mode": "SUBPROCESS", "payload": {"command": "true"}}
TASK = {"job_type": "nobody:offers", "execution_mode": "IN_PROCESS", "payload": {}}
NO_JOB = "018f0000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    settings = {"SEMANTICA_TCP": "on", "SEMANTICA_RPC_PORT": "0"}
    with running_daemon(tmp_path_factory.mktemp("tokens") / "home", **settings) as running:
        yield running


def semtask(daemon: Daemon, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semtask", *argv],
        env={**daemon.env, **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def add(daemon: Daemon, name: str, *scopes: str, expires: str | None = None) -> str:
    words = [word for scope in scopes for word in ("--scope", scope)]
    said = semtask(daemon, "token", "add", name, *words, *(["--expires", expires] if expires else []))
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def ask(daemon: Daemon, token: str | None, method: str, params: Any = None) -> tuple[int, int]:
    """The status of HTTP, and the code of the error: 0 for none."""
    status, body = post(daemon, token, method, params)
    return status, body.get("error", {"code": 0})["code"]


def post(daemon: Daemon, token: str | None, method: str, params: Any = None) -> tuple[int, Any]:
    connection = daemon.connection()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    try:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
        connection.request("POST", "/rpc", json.dumps(request).encode(), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_every_method_needs_a_scope() -> None:
    assert {method.scope for method in METHODS.values()} == set(Scope)
    reads = {name for name, method in METHODS.items() if method.scope is Scope.READ}
    assert {name for name in METHODS if ".list." in name or ".get_" in name or ".query_" in name} <= reads
    assert not {name for name in reads if METHODS[name].new_work}


def test_what_the_scopes_hold() -> None:
    assert held([Scope.ADMIN]) == ALL_SCOPES
    assert held([Scope.COMMAND]) == {Scope.COMMAND, Scope.ENQUEUE}
    assert held([Scope.READ, Scope.ENQUEUE]) == {Scope.READ, Scope.ENQUEUE}


@pytest.mark.parametrize("scope", list(Scope))
def test_a_token_opens_the_methods_of_its_scopes_and_no_other(daemon: Daemon, scope: Scope) -> None:
    token = add(daemon, f"all-{scope}", scope)
    for method in METHODS.values():
        # With a parameter that there is not: what is allowed goes wrong later, and changes nothing.
        status, code = ask(daemon, token, method.name, {"no such": 1})
        assert (status, code) == (200, 4000 if method.scope in held([scope]) else 4004), method.name


def test_a_refusal_names_the_scope_that_is_missing(daemon: Daemon) -> None:
    token = add(daemon, "reader", "read")
    status, body = post(daemon, token, "queues.pause.v1", {"queue": "default"})
    assert status == 200
    assert "`admin`" in body["error"]["message"]
    assert "'reader'" in body["error"]["message"]
    assert body["error"]["data"]["details"] == {"scope": "admin", "token": "reader"}
    assert daemon.rpc("queues.list.v1")["queues"] == [] or not daemon.rpc("queues.list.v1")["queues"][0]["paused"]


def test_commands_take_a_scope_of_their_own(daemon: Daemon) -> None:
    tasks, commands = add(daemon, "tasks", "enqueue"), add(daemon, "commands", "command")
    undecided = {name: value for name, value in COMMAND.items() if name != "execution_mode"}
    before = daemon.stats()["total_jobs"]
    for params in (COMMAND, undecided):
        assert ask(daemon, tasks, "dev.enqueue.v1", params) == (200, 4004)
    assert ask(daemon, tasks, "dev.enqueue_many.v1", {"jobs": [TASK, COMMAND]}) == (200, 4004)
    assert daemon.stats()["total_jobs"] == before
    assert ask(daemon, tasks, "dev.enqueue.v1", TASK) == (200, 0)
    assert ask(daemon, commands, "dev.enqueue_many.v1", {"jobs": [TASK, COMMAND, undecided]}) == (200, 0)
    # Once more is to run it, too.
    job_id = daemon.command("true")
    daemon.wait(job_id)
    assert ask(daemon, tasks, "dev.retry.v1", {"job_id": job_id}) == (200, 4004)
    assert ask(daemon, commands, "dev.retry.v1", {"job_id": job_id}) == (200, 0)


def test_secrets_take_the_scope_admin(daemon: Daemon) -> None:
    reader, admin = add(daemon, "curious", "read"), add(daemon, "boss", "admin")
    job_id = daemon.command("true", env={"API_KEY": "k3y", "PATH": os.environ["PATH"]})
    asked = {"job_id": job_id, "include": ["secrets"]}
    assert ask(daemon, reader, "dev.get_job.v1", asked) == (200, 4004)
    assert (
        post(daemon, reader, "dev.get_job.v1", {**asked, "include": ["payload"]})[1]["result"]["payload"]["env"][
            "API_KEY"
        ]
        == "***"
    )
    assert post(daemon, admin, "dev.get_job.v1", asked)[1]["result"]["payload"]["env"]["API_KEY"] == "k3y"


def test_each_member_of_a_batch_is_judged_by_itself(daemon: Daemon) -> None:
    token = add(daemon, "batch", "read")
    connection = daemon.connection()
    members = [
        {"jsonrpc": "2.0", "id": n, "method": m} for n, m in enumerate(["admin.stats.v1", "admin.maintenance.v1"])
    ]
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    connection.request("POST", "/rpc", json.dumps(members).encode(), headers)
    answers = json.loads(connection.getresponse().read())
    connection.close()
    assert "result" in answers[0]
    assert answers[1]["error"]["code"] == 4004


def test_rotation_and_removal_count_at_once_also_on_open_connections(daemon: Daemon) -> None:
    first = add(daemon, "turning", "read")
    connection = daemon.connection()

    def status(token: str) -> int:
        body = b'{"jsonrpc":"2.0","id":1,"method":"queues.list.v1"}'
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
        connection.request("POST", "/rpc", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status

    assert status(first) == 200
    second = semtask(daemon, "token", "rotate", "turning").stdout.strip()
    assert second != first
    assert (status(first), status(second)) == (401, 200)
    assert semtask(daemon, "token", "rm", "turning").returncode == 0
    assert status(second) == 401
    assert semtask(daemon, "token", "rm", "turning").returncode == 4
    connection.close()


def test_a_token_expires(daemon: Daemon) -> None:
    token = add(daemon, "short", "read", expires="1s")
    assert ask(daemon, token, "queues.list.v1") == (200, 0)
    expires_at = read_tokens(daemon.home)["short"].expires_at
    assert expires_at is not None
    time.sleep(max(0.0, expires_at / 1000 - time.time()) + 0.01)
    assert ask(daemon, token, "queues.list.v1")[0] == 401
    assert "expired" in semtask(daemon, "token", "ls").stdout
    renewed = semtask(daemon, "token", "rotate", "short", "--expires", "1h").stdout.strip()
    assert ask(daemon, renewed, "queues.list.v1") == (200, 0)
    stored = read_tokens(daemon.home)["short"]
    assert stored.scopes == ["read"]
    assert abs((stored.expires_at or 0) - time.time() * 1000 - 3_600_000) < 60_000
    semtask(daemon, "token", "rotate", "short")
    assert read_tokens(daemon.home)["short"].expires_at is None


def test_tokens_at_the_port(daemon: Daemon) -> None:
    """The client of the command line, by TCP and at the socket, with no right but those of the token."""
    said = semtask(daemon, "doctor", "--json")
    port = next(port for port in ports_of(daemon.pid))
    file = daemon.home.parent / "token"
    file.write_text(add(daemon, "remote", "read") + "\n")
    for place in ({"SEMANTICA_RPC_URL": f"http://127.0.0.1:{port}"}, {}):
        env = {**place, "SEMANTICA_TOKEN_FILE": str(file)}
        assert semtask(daemon, "ls", **env).returncode == 0, said.stdout
        refused = semtask(daemon, "run", "-d", "--", "true", **env)
        assert refused.returncode == 6
        assert "`command`" in refused.stderr or "`enqueue`" in refused.stderr
    missing = semtask(daemon, "ls", SEMANTICA_TOKEN_FILE="/nowhere/token")
    assert missing.returncode == 6
    assert "/nowhere/token" in missing.stderr
    assert scrape(port, file.read_text().strip()) == 200
    assert scrape(port, add(daemon, "writer", "enqueue")) == 403
    assert scrape(port, None) == 401


def scrape(port: int, token: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics", headers={"authorization": f"Bearer {token}"} if token else {})
    status = connection.getresponse().status
    connection.close()
    return status


def ports_of(pid: int) -> Iterator[int]:
    import psutil

    for connection in psutil.Process(pid).net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            yield connection.laddr.port


def test_what_is_stored_tells_no_token(daemon: Daemon) -> None:
    token = add(daemon, "stored", "read")
    path = path_of(daemon.home)
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert token not in semtask(daemon, "token", "ls", "--json").stdout
    assert ask(daemon, token, "queues.pause.v1", {"queue": "default"}) == (200, 4004)
    assert ask(daemon, f"{token}x", "queues.list.v1")[0] == 401
    told = [(daemon.home / "logs" / "daemon.log").read_text(), daemon.stderr(), json.dumps(daemon.stats())]
    assert not any(token in text for text in (*told, daemon.get("/metrics")[1].decode()))
    again = semtask(daemon, "token", "add", "stored", "--scope", "admin")
    assert again.returncode == 5
    assert token.startswith("smt_")
    assert len(token) >= 47


@pytest.mark.parametrize("harm", ["readable", "link", "nonsense"])
def test_a_file_of_tokens_that_cannot_be_trusted_opens_nothing(daemon: Daemon, harm: str) -> None:
    token = add(daemon, f"harmed-{harm}", "read")
    path = path_of(daemon.home)
    good = path.read_text()
    away = path.with_name("away.json")
    if harm == "readable":
        path.chmod(0o644)
    elif harm == "link":
        path.rename(away)
        path.symlink_to(away)
    else:
        path.write_text("{}")
    try:
        assert ask(daemon, token, "queues.list.v1")[0] == 401
        assert ask(daemon, None, "queues.list.v1") == (200, 0)
        with pytest.raises(ConfigError):
            read_tokens(daemon.home)
        doctor = semtask(daemon, "doctor", "--json")
        [found] = [check for check in json.loads(doctor.stdout)["checks"] if check["name"] == "tokens"]
        assert (doctor.returncode, found["verdict"]) == (1, "fail")
        assert str(path) in found["text"]
    finally:
        path.unlink()
        path.touch(0o600)
        path.write_text(good)
    assert ask(daemon, token, "queues.list.v1") == (200, 0)
    assert "no named token is accepted" in (daemon.home / "logs" / "daemon.log").read_text()


def test_tokens_are_drawn_from_256_bits(tmp_path: Path) -> None:
    asked: list[int] = []

    def draw(count: int) -> bytes:
        asked.append(count)
        return b"\0" * count

    add_token(tmp_path / "home", "a", [Scope.READ], now_ms=1, random_bytes=draw)
    assert asked == [32]
