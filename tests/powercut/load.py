"""A recorded daemon under load: everything that a client can be told of jobs, by several clients at once."""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.daemon.rig import Daemon, Json, RpcFailed, command_params, eventually, processes_of

ROOT = Path(__file__).resolve().parents[2]
SICK_S = 0.15
APP = """
from semtask import Semantica
app = Semantica()
@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b
"""


class RecordedDaemon(Daemon):
    entry = ("tests.powercut.entry",)
    may_refuse = False  # whether errors are to be expected

    def __init__(self, home: Path, **env: str) -> None:
        self.trace = home.parent / f"{home.name}.trace"
        self._ills = home.parent / f"{home.name}.ills"
        test = {"TEST_TRACE": str(self.trace), "TEST_ILLS": str(self._ills), "PYTHONPATH": str(ROOT)}
        super().__init__(home, **test, **env)
        self.may_refuse = "TEST_MUTATION" in env

    def suffer(self, *ills: str) -> None:
        """What fails from now on, and nothing else: see tests.faults.disk and tests.faults.launcher."""
        self.may_refuse = True
        new = self._ills.with_suffix(".new")
        new.write_text(" ".join(ills))
        new.rename(self._ills)


class _Client(threading.Thread):
    """Calls `turn` with a way to call the daemon, until it is told to stop. A daemon that is away is waited for."""

    def __init__(self, daemon: RecordedDaemon, stopped: threading.Event, turn: Callable[[_Client, int], None]) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon
        self._stopped = stopped
        self._turn = turn
        self._connection: http.client.HTTPConnection | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for number in itertools.count():
                if self._stopped.is_set():
                    break
                try:
                    self._turn(self, number)
                except (OSError, http.client.HTTPException, json.JSONDecodeError):
                    self._hang_up()
                    self._stopped.wait(0.02)
                except RpcFailed:
                    if not self._daemon.may_refuse:
                        raise
                    self._stopped.wait(0.02)
        except BaseException as error:  # told by `load`
            self.error = error
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, what: str, method: str, **params: Any) -> Json:
        """`what` becomes the id of the request: it tells those who read the answer in the trace what was asked."""
        if self._connection is None:
            self._connection = self._daemon.connection()
        body = json.dumps({"jsonrpc": "2.0", "id": what, "method": method, "params": params})
        self._connection.request("POST", "/rpc", body, {"content-type": "application/json"})
        answer = json.loads(self._connection.getresponse().read())
        if "error" in answer:
            raise RpcFailed(answer["error"])
        return dict(answer["result"])


def _stored(client: _Client, number: int) -> None:
    """Jobs that wait in a queue of which nothing is claimed, with and without fsync."""
    durability = "os" if number % 3 == 0 else "fsync"
    client.call(
        durability,
        "dev.enqueue.v1",
        job_type="note",
        execution_mode="IN_PROCESS",
        queue="shelf",
        payload={"text": "x" * (number * 37 % 3000)},
        durability=durability,
    )


def _commands(client: _Client, number: int) -> None:
    command = ("true", "false", "true")[number % 3]
    job = client.call("fsync", "dev.enqueue.v1", **command_params(command, queue=f"run{number % 2}"))
    client.call("wait", "dev.wait.v1", job_ids=[job["job_id"]], timeout_ms=5_000)
    if number % 3 == 1:
        client.call("fsync", "dev.retry.v1", job_id=job["job_id"])


def _tasks(client: _Client, number: int) -> None:
    jobs = [
        {"job_type": "add", "execution_mode": "IN_PROCESS", "payload": {"a": number, "b": n}, "durability": "os"}
        for n in range(8)
    ]
    enqueued = client.call("os", "dev.enqueue_many.v1", jobs=jobs)
    ids = [job["job_id"] for job in enqueued["jobs"]]
    client.call("wait", "dev.wait.v1", job_ids=ids, mode="all", timeout_ms=5_000)


def _changes(client: _Client, number: int) -> None:
    subject = {"job_type": "index", "subject_key": f"file{number % 5}", "payload": {"n": number}}
    job = client.call(
        "fsync", "dev.enqueue.v1", execution_mode="IN_PROCESS", queue="shelf", tag=f"t{number % 7}", **subject
    )
    client.call("configure", "queues.configure.v1", queue="shelf", concurrency=number + 1)
    if number % 2:
        client.call("cancel", "dev.cancel.v1", job_id=job["job_id"])
        client.call("get", "dev.get_job.v1", job_id=job["job_id"])
    if number % 40 == 39:
        client.call("upkeep", "admin.maintenance.v1", force_vacuum=True)


def load(daemon: RecordedDaemon, seconds: float, *, kill: bool, ills: Sequence[str]) -> None:
    """Drive the daemon, which runs before and after: `kill` -9s it half way and starts it again, and it suffers from
    each of the ills for a moment."""
    stop = threading.Event()
    clients = [_Client(daemon, stop, turn) for turn in (_stored, _commands, _commands, _tasks, _changes)]
    for client in clients:
        client.start()
    parts = len(ills) + kill + 1
    for ill in ills:
        time.sleep(seconds / parts)
        daemon.suffer(ill)
        time.sleep(SICK_S)
        daemon.suffer()
    if kill:
        time.sleep(seconds / parts)
        daemon.kill()
        daemon.start()
    time.sleep(seconds / parts)
    stop.set()
    for client in clients:
        client.join(20)
        assert not client.is_alive()
        if client.error is not None:
            raise client.error


def add_app(home: Path) -> None:
    """A new home, with an app that has the task `add`."""
    folder = home.parent / f"{home.name}.app"
    folder.mkdir()
    (folder / "tasks.py").write_text(APP)
    home.mkdir(mode=0o700)
    listed = {"work": {"module": "tasks:app", "directory": str(folder), "python": sys.executable}}
    (home / "apps.json").write_text(json.dumps({"apps": listed}))
    (home / "apps.json").chmod(0o600)


def record(home: Path, seconds: float, *, kill: bool = False, ills: Sequence[str] = (), **env: str) -> Path:
    """The trace of a daemon from its first start to kill -9."""
    add_app(home)
    daemon = RecordedDaemon(home, **env)
    try:
        daemon.start()
        daemon.rpc("queues.pause.v1", queue="shelf")
        load(daemon, seconds, kill=kill, ills=ills)
    finally:
        if daemon.process is not None:
            daemon.kill()
        eventually(lambda: not processes_of(home), what=f"processes left: {processes_of(home)}")
    return daemon.trace
