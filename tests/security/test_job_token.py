"""The token of a running job: what it opens, for how long, and that nobody gets more by it than they had."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from semtask.model.scope import ALL_SCOPES, Scope, held
from semtask.protocol.methods import METHODS
from tests.daemon.rig import Daemon, Json, RpcFailed, environ_of, eventually, running_daemon
from tests.security.test_tokens import COMMAND, TASK, add, ask, post, semtask

TOKEN = "SEMANTICA_TOKEN"
# Stubborn: it goes on after SIGTERM until its grace is over.
WAITS = "trap '' TERM; until [ -e {go} ]; do sleep 0.02; done"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    settings = {"SEMANTICA_TCP": "on", "SEMANTICA_RPC_PORT": "0", "SEMANTICA_MAX_PROCESSES": "16"}
    with running_daemon(tmp_path_factory.mktemp("job-tokens") / "home", **settings) as running:
        running.rpc("queues.configure.v1", queue="default", concurrency=16)
        yield running


def params(script: str, *access: str, **options: Any) -> Json:
    payload = {"command": "sh", "args": ["-c", script], "env": {"PATH": os.environ["PATH"]}}
    given = {"access": list(access)} if access else {}
    return {"job_type": "t", "execution_mode": "SUBPROCESS", "payload": {**payload, **given}, **options}


class Running:
    """A job that runs until it is let go, and its token, as the kernel shows it."""

    def __init__(self, daemon: Daemon, tmp_path: Path, *access: str, **options: Any) -> None:
        self.daemon = daemon
        self.go = tmp_path / "go"
        request = params(WAITS.format(go=self.go), *access, **options)
        self.job_id = str(daemon.rpc("dev.enqueue.v1", **request)["job_id"])
        self.pid = int(eventually(lambda: daemon.job(self.job_id)["pid"]))
        self.env = eventually(self._environ, what="the command was executed")
        self.token = self.env.get(TOKEN, "")

    def _environ(self) -> Any:
        try:
            env = environ_of(self.pid)
        except OSError:
            return None
        return env if "SEMANTICA_ATTEMPT" in env else None

    def end(self) -> Json:
        self.go.touch()
        return self.daemon.wait(self.job_id)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


@pytest.mark.parametrize("scope", list(Scope))
def test_a_token_opens_the_methods_of_its_scopes_and_no_other(daemon: Daemon, tmp_path: Path, scope: Scope) -> None:
    with Running(daemon, tmp_path, scope) as job:
        for method in METHODS.values():
            status, code = ask(daemon, job.token, method.name, {"no such": 1})
            assert (status, code) == (200, 4000 if method.scope in held([scope]) else 4004), method.name


def test_a_token_is_good_while_its_job_runs_also_on_open_connections(daemon: Daemon, tmp_path: Path) -> None:
    job = Running(daemon, tmp_path, "read")
    assert job.token.startswith("smt_")
    assert len(job.token) >= 47
    connection = daemon.connection()

    def status() -> int:
        headers = {"content-type": "application/json", "authorization": f"Bearer {job.token}"}
        connection.request("POST", "/rpc", b'{"jsonrpc":"2.0","id":1,"method":"queues.list.v1"}', headers)
        response = connection.getresponse()
        response.read()
        return response.status

    assert status() == 200
    assert job.end()["state"] == "DONE"
    assert status() == 401
    assert ask(daemon, job.token, "queues.list.v1")[0] == 401
    connection.close()


def test_a_token_is_void_as_soon_as_its_job_is_told_to_stop(daemon: Daemon, tmp_path: Path) -> None:
    job = Running(daemon, tmp_path, "read", grace_ms=60_000)
    daemon.rpc("dev.cancel.v1", job_id=job.job_id)
    assert ask(daemon, job.token, "queues.list.v1")[0] == 401
    assert daemon.job(job.job_id)["state"] == "RUNNING"
    assert job.end()["state"] == "CANCELLED"


def test_each_attempt_has_a_token_of_its_own(daemon: Daemon, tmp_path: Path) -> None:
    script = f"echo ${TOKEN} > {tmp_path}/$SEMANTICA_ATTEMPT; until [ -e {tmp_path}/go ]; do sleep 0.02; done; exit 1"
    request = params(script, "read", max_attempts=2, retry_base_delay_ms=10)
    job_id = daemon.rpc("dev.enqueue.v1", **request)["job_id"]

    def token_of(claim_no: int) -> str:
        def found() -> str:
            [*names] = tmp_path.glob(f"{job_id}.{claim_no}.*")
            return names[0].read_text().strip() if names else ""

        return str(eventually(found))

    first = token_of(1)
    assert ask(daemon, first, "queues.list.v1") == (200, 0)
    (tmp_path / "go").touch()
    second = token_of(2)
    assert second != first
    assert ask(daemon, first, "queues.list.v1")[0] == 401
    daemon.wait(job_id)
    assert ask(daemon, second, "queues.list.v1")[0] == 401


def test_a_request_that_comes_in_slowly_finds_the_token_void(daemon: Daemon, tmp_path: Path) -> None:
    """Its head came while the job ran, and its end after the job."""
    job = Running(daemon, tmp_path, "command")
    before = daemon.stats()["total_jobs"]
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "dev.enqueue.v1", "params": COMMAND}).encode()
    connection = daemon.connection()
    connection.putrequest("POST", "/rpc")
    for name, value in (("content-type", "application/json"), ("content-length", str(len(body)))):
        connection.putheader(name, value)
    connection.putheader("authorization", f"Bearer {job.token}")
    connection.endheaders()
    connection.send(body[:-1])
    daemon.stats()  # another request was served: the head of the first one is read
    job.end()
    connection.send(body[-1:])
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["error"]["code"] == 4004
    assert daemon.stats()["total_jobs"] == before


def test_without_access_a_job_has_no_token(daemon: Daemon, tmp_path: Path) -> None:
    with Running(daemon, tmp_path) as job:
        assert not {name for name in job.env if name.startswith("SEMANTICA_")} - {
            "SEMANTICA_JOB_ID",
            "SEMANTICA_ATTEMPT",
            "SEMANTICA_HOME",
            "SEMANTICA_JOB_HOME",
        }


def test_no_daemon_after_this_one_knows_a_token(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        job = Running(daemon, tmp_path, "admin", grace_ms=0)
        assert ask(daemon, job.token, "queues.list.v1") == (200, 0)
        daemon.kill()
        daemon.start()
        assert ask(daemon, job.token, "queues.list.v1")[0] == 401
        job.end()


# --- nobody gets more than they had ---------------------------------------------------------------------------------


def test_nobody_gives_more_than_they_have(daemon: Daemon) -> None:
    commands, reader = add(daemon, "commands", "command"), add(daemon, "both", "command", "read")
    before = daemon.stats()["total_jobs"]

    def enqueue(token: str | None, *access: str, **changed: Any) -> tuple[int, int]:
        return ask(daemon, token, "dev.enqueue.v1", {**params("true", *access), **changed})

    for wanted in (["read"], ["admin"], ["enqueue", "read"], ["command", "admin"]):
        assert enqueue(commands, *wanted) == (200, 4004), wanted
        # The payload decides what it is, and what it decides gives no more.
        undecided = {name: value for name, value in params("true", *wanted).items() if name != "execution_mode"}
        assert ask(daemon, commands, "dev.enqueue.v1", undecided) == (200, 4004)
        many = {"jobs": [params("true"), params("true", *wanted)]}
        assert ask(daemon, commands, "dev.enqueue_many.v1", many) == (200, 4004)
    assert daemon.stats()["total_jobs"] == before
    assert enqueue(reader, "admin") == (200, 4004)
    assert enqueue(commands, "command", "enqueue") == (200, 0)
    assert enqueue(reader, "read") == (200, 0)
    assert enqueue(None, *ALL_SCOPES) == (200, 0)


def test_a_refusal_names_the_scope(daemon: Daemon) -> None:
    token = add(daemon, "named", "command")
    error = post(daemon, token, "dev.enqueue.v1", params("true", "admin"))[1]["error"]
    assert "`admin`" in error["message"]
    assert error["data"]["details"] == {"scope": "admin", "token": "named"}


def test_a_job_gives_its_jobs_no_more_than_it_has(daemon: Daemon, tmp_path: Path) -> None:
    with Running(daemon, tmp_path, "command", "read") as job:
        assert ask(daemon, job.token, "dev.enqueue.v1", params("true", "admin")) == (200, 4004)
        assert ask(daemon, job.token, "dev.enqueue.v1", params("true", "read", "command")) == (200, 0)
        error = post(daemon, job.token, "queues.pause.v1", {"queue": "default"})[1]["error"]
        assert error["data"]["details"] == {"scope": "admin", "token": f"job:{job.job_id}"}
    (tmp_path / "go").unlink()
    with Running(daemon, tmp_path, "enqueue") as narrow:
        assert ask(daemon, narrow.token, "dev.enqueue.v1", TASK) == (200, 0)
        assert ask(daemon, narrow.token, "dev.enqueue.v1", COMMAND) == (200, 4004)


def test_once_more_takes_what_the_first_time_took(daemon: Daemon) -> None:
    commands = add(daemon, "again", "command")
    given = daemon.rpc("dev.enqueue.v1", **params("exit 1", "admin", tag="given"))["job_id"]
    plain = daemon.rpc("dev.enqueue.v1", **params("exit 1", tag="plain"))["job_id"]
    daemon.wait(given, plain)
    before = daemon.stats()["total_jobs"]
    status, answer = post(daemon, commands, "dev.retry.v1", {"job_id": given})
    assert (status, answer["error"]["code"]) == (200, 4004)
    assert "admin" in answer["error"]["message"]
    assert ask(daemon, commands, "dev.retry.v1", {"tag": "given"}) == (200, 4004)
    assert daemon.stats()["total_jobs"] == before
    assert ask(daemon, commands, "dev.retry.v1", {"tag": "plain"}) == (200, 0)
    assert ask(daemon, None, "dev.retry.v1", {"job_id": given}) == (200, 0)


@pytest.mark.parametrize("access", [["root"], ["READ"], "read", [1], {"read": True}, None])
def test_what_is_no_scope_is_refused(daemon: Daemon, access: Any) -> None:
    wrong = params("true")
    wrong["payload"]["access"] = access
    with pytest.raises(RpcFailed) as refused:
        daemon.rpc("dev.enqueue.v1", **wrong)
    assert refused.value.code == 4000
    assert "access" in refused.value.message


def test_tasks_get_no_token(daemon: Daemon) -> None:
    """Their worker is shared by many jobs."""
    with pytest.raises(RpcFailed, match="access") as refused:
        daemon.rpc("dev.enqueue.v1", **TASK, access=["read"])
    assert refused.value.code == 4000
    said = semtask(daemon, "enqueue", "nobody:offers", "--access", "read")
    assert said.returncode == 2
    assert "--access" in said.stderr


# --- in the job -----------------------------------------------------------------------------------------------------


def test_the_client_in_a_job_has_the_rights_of_the_job(daemon: Daemon) -> None:
    """At the socket, where it would be the owner without a token."""
    semtask_ = f"{sys.executable} -m semtask"
    sdk = "from semtask import Semantica; print(len(Semantica().run('true').id))"
    script = f"""
        {semtask_} ls -q | grep -c $SEMANTICA_JOB_ID
        {semtask_} pause default; echo $?
        {sys.executable} -c "{sdk}"
        SEMANTICA_RPC_URL=http://127.0.0.1:{port_of(daemon)} {semtask_} pause default; echo $?
    """
    job_id = daemon.rpc("dev.enqueue.v1", **params(script, "read", "command"))["job_id"]
    ended = daemon.wait(job_id, timeout_ms=60_000)[0]
    lines = daemon.log(job_id).splitlines()
    assert ended["state"] == "DONE", lines
    assert [line for line in lines if line.isdigit()] == ["1", "6", "36", "6"]
    assert sum("`admin`" in line and job_id in line for line in lines) == 2


def test_the_command_line_gives_access(daemon: Daemon) -> None:
    said = semtask(daemon, "run", "--access", "read,enqueue", "--", sys.executable, "-m", "semtask", "queues", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout.splitlines()[0])["name"] == "default"
    wrong = semtask(daemon, "run", "--access", "read,root", "--", "true")
    assert wrong.returncode == 2
    assert "'root'" in wrong.stderr


def test_a_broken_token_in_the_environment_is_told_and_not_sent(daemon: Daemon) -> None:
    for bad in ("a\nhost: evil", "ü", "  "):
        said = semtask(daemon, "ls", SEMANTICA_TOKEN=bad)
        assert said.returncode == 6
        assert TOKEN in said.stderr
    assert semtask(daemon, "ls", SEMANTICA_TOKEN="smt_unknown").returncode == 6


def test_a_token_at_the_port(daemon: Daemon, tmp_path: Path) -> None:
    with Running(daemon, tmp_path, "read") as job:
        for token, status in ((job.token, 200), (job.token[:-1], 401), ("", 401)):
            connection = http.client.HTTPConnection("127.0.0.1", port_of(daemon), timeout=20)
            connection.request("GET", "/metrics", headers={"authorization": f"Bearer {token}"})
            assert connection.getresponse().status == status
            connection.close()


def port_of(daemon: Daemon) -> int:
    import psutil

    [port] = [c.laddr.port for c in psutil.Process(daemon.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return int(port)


# --- where it is not ------------------------------------------------------------------------------------------------


def test_a_token_is_nowhere_but_in_the_environment_of_its_job(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_daemon(home) as daemon:
        job = Running(daemon, tmp_path, "admin")
        token = job.token
        said = [json.dumps(post(daemon, token, method, {"job_id": job.job_id})[1]) for method in ("dev.get_job.v1",)]
        said += [json.dumps(daemon.job(job.job_id, *include)) for include in (("payload", "attempts"), ("secrets",))]
        said += [json.dumps(daemon.stats()), daemon.get("/metrics")[1].decode()]
        said += [semtask(daemon, *argv).stdout for argv in (["show", "--secrets", job.job_id], ["status", "--json"])]
        post(daemon, token, "queues.pause.v1", {"queue": 1})
        post(daemon, f"{token}x", "queues.list.v1")
        assert not any(token in text for text in said)
        assert token not in files_of(home)
        assert token not in arguments_of_all()
        assert job.end()["state"] == "DONE"
        assert daemon.terminate() == 0
        assert token not in files_of(home)
        assert token not in daemon.stderr()


def files_of(home: Path) -> str:
    """All of them: database, write-ahead log, logs, attempts."""
    return "".join(path.read_bytes().decode("latin-1") for path in home.rglob("*") if path.is_file())


def arguments_of_all() -> str:
    found = ""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += Path(f"/proc/{entry}/cmdline").read_bytes().decode("latin-1")
        except OSError:
            continue
    return found
