"""A real daemon in a home of its own, driven over its socket with nothing of ours but the wire format."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

READY_S = 20.0
Json = dict[str, Any]


class RpcFailed(Exception):
    """The daemon answered with an error."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.data: Json = error.get("data") or {}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


def eventually(condition: Callable[[], Any], *, within: float = 15.0, what: str = "") -> Any:
    """Poll until the condition holds and return its value; for facts of other processes that nothing announces."""
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {within} s: {what or condition}")
        time.sleep(0.02)


class Daemon:
    """One home. The daemon in it can be started, killed and started again."""

    # What `python -m` runs: harnesses put something in between.
    entry: Sequence[str] = ("semtask", "daemon")

    def __init__(self, home: Path, **env: str) -> None:
        self.home = home
        # HOME too: no file of the user is read, and every job can be told by its environment.
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SEMANTICA_")}
        # Tests run beside each other and keep the machine busy: nothing waits for it unless the test asks for that.
        calm = {"SEMANTICA_CPU_THROTTLE_THRESHOLD": "101"}
        self.env = {**clean, "HOME": str(home), "SEMANTICA_HOME": str(home), **calm, **env}
        self.process: subprocess.Popen[bytes] | None = None

    # --- the process ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        self.spawn()
        self.wait_ready()
        return self

    def spawn(self, **options: Any) -> subprocess.Popen[bytes]:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.entry],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                **options,
            )
        return self.process

    def wait_ready(self) -> None:
        assert self.process is not None

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended: {self.stderr()}"
            try:
                return self.get("/readyz")[0] == 200
            except OSError:
                return False

        eventually(ready, within=READY_S, what="the daemon is ready")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout: float = 30) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def _stderr(self) -> Path:
        return self.home.parent / f"{self.home.name}.stderr"

    # --- the wire ---------------------------------------------------------------------------------------------------

    def connection(self, timeout: float = 70) -> http.client.HTTPConnection:
        return _UnixConnection(self.home / "run" / "rpc.sock", timeout)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = self.connection()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def rpc(self, method: str, /, _id: Any = 1, **params: Any) -> Any:
        connection = self.connection()
        try:
            body = json.dumps({"jsonrpc": "2.0", "id": _id, "method": method, "params": params})
            connection.request("POST", "/rpc", body, {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise RpcFailed(answer["error"])
        return answer["result"]

    # --- words the tests use ------------------------------------------------------------------------------------------

    def command(self, *argv: str, **options: Any) -> str:
        """Enqueue a command; returns its job_id. `env`, `working_dir`, `umask`, `stderr` go into the payload."""
        return str(self.rpc("dev.enqueue.v1", **command_params(*argv, **options))["job_id"])

    def job(self, job_id: str, *include: str) -> Json:
        return dict(self.rpc("dev.get_job.v1", job_id=job_id, include=list(include)))

    def wait(self, *job_ids: str, timeout_ms: int = 30_000, mode: str = "all") -> list[Json]:
        answer = self.rpc("dev.wait.v1", job_ids=list(job_ids), timeout_ms=timeout_ms, mode=mode)
        assert not answer["timed_out"], [(j["job_id"], j["state"], j.get("waiting")) for j in answer["jobs"]]
        return list(answer["jobs"])

    def log(self, job_id: str) -> str:
        return str(self.rpc("logs.tail.v1", job_id=job_id, offset=0)["chunk"])

    def stats(self) -> Json:
        return dict(self.rpc("admin.stats.v1"))


def command_params(*argv: str, **options: Any) -> Json:
    payload: Json = {"command": argv[0], "args": list(argv[1:])}
    for name in ("env", "working_dir", "umask", "stderr", "access"):
        if name in options:
            payload[name] = options.pop(name)
    return {"job_type": "command", "execution_mode": "SUBPROCESS", "payload": payload, **options}


@contextmanager
def running_daemon(home: Path, **env: str) -> Iterator[Daemon]:
    """Ends with SIGTERM, and checks that nothing of the home is left in the process table."""
    daemon = Daemon(home, **env)
    try:
        yield daemon.start()
    finally:
        stop_for_certain(daemon)


def stop_for_certain(daemon: Daemon) -> None:
    """With SIGTERM and, as the second one means "now" and could be merged with the first, more of them."""
    end = time.monotonic() + 20
    while daemon.process is not None and daemon.process.poll() is None:
        if time.monotonic() > end:
            daemon.kill()
            raise AssertionError(f"the daemon does not stop: {daemon.stderr()[-2000:]}")
        daemon.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            daemon.process.wait(0.3)
    eventually(lambda: not processes_of(daemon.home), what=f"processes left: {processes_of(daemon.home)}")


def processes_of(home: Path) -> dict[int, str]:
    """Living processes whose environment or command line names this home: daemon, helpers and jobs."""
    needle = os.fsencode(home)
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes()
            cmdline = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        if needle in environ or needle in cmdline:
            found[int(entry)] = cmdline.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def environ_of(pid: int) -> Mapping[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(p.decode().split("=", 1) for p in pairs if b"=" in p)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
