"""A real RpcServer on a loop in a thread, with engine operations that only take notes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from semtask.api.http import RpcServer
from semtask.api.limits import HttpLimits
from semtask.api.routes import Route
from semtask.config.loading import load
from semtask.config.settings import Settings
from semtask.engine.waits import Waiter
from semtask.model.job import ExecutionMode, OnInterrupt, QueueClass
from semtask.model.scope import Scope
from semtask.model.state import State
from semtask.protocol.admin import (
    Maintained,
    MaintenanceParams,
    StartDaemonParams,
    StartedDaemon,
    Stats,
    SystemView,
    ThrottleView,
)
from semtask.protocol.apps import Apps, ReloadAppsParams, Tasks, Workers
from semtask.protocol.enqueue import Enqueued, EnqueuedMany, EnqueueManyParams, EnqueueParams
from semtask.protocol.fields import NoParams
from semtask.protocol.jobs import (
    Cancelled,
    CancelParams,
    GetJobParams,
    JobView,
    QueriedJobs,
    QueryJobsParams,
    Retried,
    RetryParams,
    Waited,
    WaitParams,
)
from semtask.protocol.logs import TailedChunk, TailedLines, TailParams
from semtask.protocol.queues import ConfigureQueueParams, QueueParams, Queues, QueueView
from semtask.telemetry.events import Events

T = TypeVar("T")

JOB_ID = "018f0000-0000-7000-8000-000000000001"
QUEUE = QueueView(
    name="default",
    class_=QueueClass.NORMAL,
    paused=False,
    concurrency=2,
    scheduled=0,
    queued=0,
    running=0,
    done=0,
    failed=0,
    cancelled=0,
    superseded=0,
    skipped=0,
)
JOB = JobView(
    job_id=JOB_ID,
    queue="default",
    job_type="shell",
    execution_mode=ExecutionMode.SUBPROCESS,
    state=State.QUEUED,
    priority=0,
    created_at=1,
    on_interrupt=OnInterrupt.FAIL,
)


class NotingOperations:
    """Notes every call. `hold` makes wait and enqueue stand still until `release`; `fail` makes enqueue raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.entered = threading.Event()
        self.hold: asyncio.Event | None = None
        self.cancelled: list[str] = []
        self.fail: BaseException | None = None

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    async def _note(self, name: str, params: Any, result: T) -> T:
        self.calls.append((name, params))
        self.entered.set()
        if self.fail is not None:
            raise self.fail
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise
        return result

    async def enqueue(self, params: EnqueueParams) -> Enqueued:
        return await self._note("enqueue", params, self._enqueued())

    async def enqueue_many(self, params: EnqueueManyParams) -> EnqueuedMany:
        jobs = [self._enqueued() for _ in params.jobs]
        return await self._note("enqueue_many", params, EnqueuedMany(jobs=jobs))

    async def get_job(self, params: GetJobParams) -> JobView:
        return await self._note("get_job", params, JOB)

    async def query_jobs(self, params: QueryJobsParams) -> QueriedJobs:
        return await self._note("query_jobs", params, QueriedJobs(items=[JOB]))

    async def wait(self, params: WaitParams, waiter: Waiter) -> Waited:
        return await self._note("wait", params, Waited(jobs=[JOB], timed_out=False))

    async def cancel(self, params: CancelParams) -> Cancelled:
        return await self._note("cancel", params, Cancelled(cancelled=True, cancelled_count=1))

    async def retry(self, params: RetryParams, scopes: frozenset[Scope]) -> Retried:
        return await self._note("retry", params, Retried(retried_count=0, more=False, jobs=[]))

    async def list_apps(self, params: NoParams) -> Apps:
        return await self._note("list_apps", params, Apps(apps=[]))

    async def reload_apps(self, params: ReloadAppsParams) -> Apps:
        return await self._note("reload_apps", params, Apps(apps=[]))

    async def list_tasks(self, params: NoParams) -> Tasks:
        return await self._note("list_tasks", params, Tasks(tasks=[]))

    async def list_workers(self, params: NoParams) -> Workers:
        return await self._note("list_workers", params, Workers(workers=[]))

    async def maintenance(self, params: MaintenanceParams) -> Maintained:
        maintained = Maintained(
            vacuum_run=False, jobs_deleted=0, artifacts_deleted=0, db_size_before=0, db_size_after=0
        )
        return await self._note("maintenance", params, maintained)

    async def start_daemon(self, params: StartDaemonParams) -> StartedDaemon:
        return await self._note("start_daemon", params, StartedDaemon(pid=1, ready=True))

    async def tail(self, params: TailParams, waiter: Waiter) -> TailedLines | TailedChunk:
        lines = TailedLines(job_id=params.job_id, log_path=None, lines=["out"])
        return await self._note("tail", params, lines)

    async def list_queues(self, params: NoParams) -> Queues:
        return await self._note("list_queues", params, Queues(queues=[QUEUE]))

    async def pause_queue(self, params: QueueParams) -> QueueView:
        return await self._note("pause_queue", params, QUEUE)

    async def resume_queue(self, params: QueueParams) -> QueueView:
        return await self._note("resume_queue", params, QUEUE)

    async def configure_queue(self, params: ConfigureQueueParams) -> QueueView:
        return await self._note("configure_queue", params, QUEUE)

    async def stats(self, params: NoParams) -> Stats:
        system = SystemView(cpu_count=2, max_processes=4, running_processes=0)
        stats = Stats(
            version="1",
            pid=1,
            total_jobs=0,
            scheduled_jobs=0,
            queued_jobs=0,
            running_jobs=0,
            done_jobs=0,
            failed_jobs=0,
            db_size_bytes=0,
            uptime_seconds=0.5,
            accepting=True,
            queues=[QUEUE],
            system=system,
            counters={},
            throttle=ThrottleView(active=False),
        )
        return await self._note("stats", params, stats)

    @staticmethod
    def _enqueued() -> Enqueued:
        return Enqueued(job_id=JOB_ID, state=State.QUEUED, queue="default")


class Running:
    """The server, its operations, and ways to talk to it."""

    def __init__(self, settings: Settings, limits: HttpLimits | None, routes: Sequence[Route] = ()) -> None:
        self.settings = settings
        self.operations = NotingOperations()
        self.events = Events()
        self.ready_error: BaseException | None = None
        self.loop = asyncio.new_event_loop()
        self.server = RpcServer(
            settings,
            self.operations,
            ready=self._ready,
            metrics=self._metrics,
            events=self.events,
            version="1.2.3",
            limits=limits,
            routes=routes,
        )

    async def _ready(self) -> None:
        if self.ready_error is not None:
            raise self.ready_error

    async def _metrics(self) -> bytes:
        if self.ready_error is not None:
            raise self.ready_error
        return b"semantica_test 1\n"

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def call(self, function: Callable[[], T]) -> T:
        async def on_loop() -> T:
            return function()

        return self.run(on_loop())

    def hold(self) -> None:
        self.operations.hold = self.call(asyncio.Event)

    def release(self) -> None:
        hold = self.operations.hold
        assert hold is not None
        self.operations.hold = None
        self.call(hold.set)

    @property
    def port(self) -> int:
        assert self.server.tcp_port is not None
        return self.server.tcp_port

    @property
    def token(self) -> str:
        return self.settings.token_file.read_text().strip()

    def unix(self) -> Peer:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        try:
            sock.connect(str(self.settings.socket))
        except OSError:
            sock.close()
            raise
        return Peer(sock)

    def tcp(self) -> Peer:
        return Peer(socket.create_connection(("127.0.0.1", self.port), timeout=20))


class Reply(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Peer:
    """A raw client socket that reads whole HTTP answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def post(self, body: bytes, *, path: str = "/rpc", headers: tuple[str, ...] = ()) -> Reply:
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
        lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + body)
        return self.reply()

    def rpc(self, method: str, params: Any = None, request_id: Any = 1) -> Reply:
        request = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": {} if params is None else params}
        return self.post(msgspec.json.encode(request))

    def reply(self) -> Reply:
        """The next answer. Raises EOFError if the connection ends before it."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Reply(int(status.split()[1]), headers, body)

    def closed(self) -> bool:
        """Waits for the end of the connection; False if there is another answer instead."""
        try:
            self.reply()
        except (EOFError, ConnectionError):
            return True
        return False

    def _more(self) -> None:
        data = self.sock.recv(1 << 20)
        if not data:
            raise EOFError
        self._rest += data


@contextmanager
def running(
    home: Path, *, limits: HttpLimits | None = None, routes: Sequence[Route] = (), **settings: Any
) -> Iterator[Running]:
    """A server with its home in `home`, until the block ends."""
    home.mkdir(mode=0o700, exist_ok=True)
    server = Running(load({}, {"home": str(home), **settings}, cwd="/"), limits, routes)
    thread = threading.Thread(target=server.loop.run_forever, name="loop")
    thread.start()
    try:
        server.run(server.server.start())
        yield server
    finally:
        server.run(server.server.close())
        server.loop.call_soon_threadsafe(server.loop.stop)
        thread.join(20)
        server.loop.close()
