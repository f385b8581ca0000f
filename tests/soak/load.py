"""The steady load of a soak: jobs at an even pace, some of them cancelled, and visitors who look at everything."""

from __future__ import annotations

import http.client
import math
import random
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tests.daemon.rig import Daemon, Json, RpcFailed
from tests.harness.ground import NOT_FOUND, Ground
from tests.harness.load import Planned, enqueue, planned
from tests.harness.verdict import FINAL

UNANSWERED = (OSError, http.client.HTTPException, ValueError)
LONG_S = 600.0
AT_ONCE = 200
SPECIAL = 8  # one job of so many is one of those that are stopped, expire, wait, or write


def job(number: int) -> Planned:
    """Job `number` of the load: that of the chaos, and timeouts, cancels, expiry, waits, output, artifacts."""
    usual = planned(number)
    if number % SPECIAL:
        return usual._replace(flags=usual.flags or "chatty") if number % 3 == 0 else usual
    name, kind = f"job-{number}", usual.kind
    once = {"max_attempts": 1}
    specials = (
        Planned(name, kind, seconds=LONG_S, options={**once, "timeout_ms": 200, "tag": "timeout"}, also="FAILED"),
        Planned(name, kind, seconds=LONG_S, options={**once, "tag": "cancel"}, also="CANCELLED"),
        Planned(name, kind, seconds=0.05, options={"ttl_ms": 20, "priority": -50}, also="SKIPPED_TTL"),
        Planned(name, kind, options={"schedule": {"type": "AFTER", "delay_ms": 1500}, "priority": 50}),
        Planned(name, "witness_alone", flags="chatty"),
        Planned(name, "witness_quick", seconds=0.0),
        Planned(name, "witness_waits"),
    )
    return specials[number // SPECIAL % len(specials)]


class Producer(threading.Thread):
    """Enqueues `rate` jobs a second whatever becomes of them; what got no answer is repeated with its key."""

    def __init__(self, ground: Ground, rate: float, first: int, dice: random.Random) -> None:
        super().__init__(name="producer", daemon=True)
        self.repeats = 0
        self._ground = ground
        self._rate = rate
        self._first = first
        self._dice = dice
        self._to_cancel: deque[tuple[float, str]] = deque()
        self._ended = threading.Event()

    def run(self) -> None:
        number = self._first
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            if self._try(self._enqueue, job(number)):
                number += 1
                due += 1 / self._rate
            self._cancel(time.monotonic())

    def finish(self) -> None:
        self._ended.set()
        self.join()

    def cancel_all(self) -> None:
        """What was to be cancelled and has not been yet; to be called after the end, with a daemon that runs."""
        self._cancel(math.inf)

    def _enqueue(self, planned: Planned) -> None:
        job_id = enqueue(self._ground.daemon, self._ground.folder, planned)
        self._ground.jobs[planned.name] = planned, job_id
        if planned.also == "CANCELLED":
            self._to_cancel.append((time.monotonic() + self._dice.uniform(0, 0.6), job_id))

    def _cancel(self, now: float) -> None:
        while self._to_cancel and self._to_cancel[0][0] < now:
            job_id = self._to_cancel[0][1]
            if not self._try(self._ground.daemon.rpc, "dev.cancel.v1", job_id=job_id):
                return
            self._to_cancel.popleft()

    def _try(self, call: Callable[..., Any], *args: Any, **given: Any) -> bool:
        """Whether there was an answer, though it may be that the job has ended."""
        try:
            call(*args, **given)
        except RpcFailed as error:
            return error.data.get("kind") not in {"THROTTLED", "SYSTEM_ERROR", "DB_ERROR"}
        except UNANSWERED:
            self.repeats += 1
            time.sleep(0.02)
            return False
        return True


class Recorder(threading.Thread):
    """Writes down how each job ended while its row is there; looks now and then whether a final row has changed."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(name="recorder", daemon=True)
        self.ended: dict[str, Json] = {}
        self.changed: list[str] = []
        self.unknown: list[str] = []
        self._ground = ground
        self._recent: deque[tuple[str, Json]] = deque(maxlen=AT_ONCE)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.5):
            self.record()

    def finish(self) -> None:
        self._done.set()
        self.join()

    @property
    def open(self) -> list[str]:
        return [name for name in list(self._ground.jobs) if name not in self.ended and name not in self.unknown]

    def record(self) -> None:
        names = self.open
        with suppress(*UNANSWERED, RpcFailed):
            for start in range(0, len(names), AT_ONCE):
                self._look(names[start : start + AT_ONCE])
            self._look_again()

    def _look(self, names: list[str]) -> None:
        ids = [self._ground.jobs[name][1] for name in names]
        try:
            jobs = self._ground.daemon.rpc("dev.wait.v1", job_ids=ids, mode="any", timeout_ms=1)["jobs"]
        except RpcFailed as error:
            if error.code != NOT_FOUND:
                raise
            if len(names) == 1:
                self.unknown += names
            for half in (names[: len(names) // 2], names[len(names) // 2 :]) if len(names) > 1 else ():
                self._look(half)
            return
        for name, row in zip(names, jobs, strict=True):
            if row["state"] in FINAL:
                self.ended[name] = _end_of(row)
                self._recent.append((row["job_id"], self.ended[name]))

    def _look_again(self) -> None:
        if self._recent:
            job_id, end = self._recent.popleft()
            try:
                if _end_of(self._ground.daemon.job(job_id)) != end:
                    self.changed.append(job_id)
            except RpcFailed as error:
                if error.code != NOT_FOUND:  # its time is over
                    raise


_END = ("state", "end_cause", "claim_no", "attempts", "crashes", "interruptions", "finished_at", "exit_code", "error")


def _end_of(row: Json) -> Json:
    return {name: row.get(name) for name in _END}


class Visitor(threading.Thread):
    """Looks at something else each time, mostly over a new connection, and sometimes hangs up in the middle."""

    def __init__(self, ground: Ground, per_s: float, dice: random.Random) -> None:
        super().__init__(name="visitor", daemon=True)
        self.visits: Counter[str] = Counter()
        self._ground = ground
        self._pause_s = 1 / per_s
        self._dice = dice
        self._ended = threading.Event()

    def run(self) -> None:
        daemon = self._ground.daemon
        looks: dict[str, Callable[[], Any]] = {
            "get": lambda: daemon.job(self._some_job(), "attempts"),
            "explain": lambda: daemon.rpc("dev.explain.v1", job_id=self._some_job()),
            "wait": lambda: daemon.rpc("dev.wait.v1", job_ids=[self._some_job()], timeout_ms=300),
            "query": self._pages,
            "log": lambda: daemon.rpc("logs.tail.v1", job_id=self._some_job(), lines=50),
            "follow": lambda: daemon.rpc("logs.tail.v1", job_id=self._some_job(), offset=0, wait_ms=300),
            "metrics": lambda: daemon.get("/metrics"),
            "health": lambda: daemon.get("/healthz"),
            "queues": lambda: daemon.rpc("queues.list.v1"),
            "workers": lambda: daemon.rpc("workers.list.v1"),
            "hang up": self._hang_up,
            "stay": self._stay,
        }
        while not self._ended.wait(self._pause_s):
            name = self._dice.choice(list(looks))
            with suppress(*UNANSWERED, RpcFailed):  # it may be down, and the job may be gone
                looks[name]()
                self.visits[name] += 1

    def finish(self) -> None:
        self._ended.set()
        self.join()

    def _some_job(self) -> str:
        """One of the last."""
        jobs = list(self._ground.jobs.values())[-AT_ONCE:]
        return self._dice.choice(jobs)[1]

    def _pages(self) -> None:
        cursor: str | None = None
        for _ in range(3):
            given = {"cursor": cursor} if cursor else {"filter": {"state": ["DONE", "FAILED"]}}
            cursor = self._ground.daemon.rpc("dev.query_jobs.v1", limit=50, **given)["next_cursor"]
            if cursor is None:
                return

    def _hang_up(self) -> None:
        with closing(self._ground.daemon.connection(timeout=5)) as connection:
            connection.connect()
            connection.sock.sendall(b"POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")

    def _stay(self) -> None:
        """Several requests over one connection."""
        with closing(self._ground.daemon.connection(timeout=5)) as connection:
            for _ in range(5):
                connection.request("GET", "/healthz")
                connection.getresponse().read()


class Housekeeper(threading.Thread):
    """Backs the database up, and gives free pages back, by turns."""

    def __init__(self, ground: Ground, every_s: float, copy: Path, on_work: Callable[[str], None]) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self.failures: list[str] = []
        self.backups = 0
        self._ground = ground
        self._every_s = every_s
        self._copy = copy
        self._on_work = on_work
        self._ended = threading.Event()

    def run(self) -> None:
        turn = 0
        while not self._ended.wait(self._every_s):
            turn += 1
            if turn % 2:
                self._on_work("backup")
                self._backup(self._ground.daemon)
            else:
                self._on_work("maintenance")
                with suppress(*UNANSWERED, RpcFailed):
                    self._ground.daemon.rpc("admin.maintenance.v1", force_vacuum=True)

    def finish(self) -> None:
        self._ended.set()
        self.join()

    def _backup(self, daemon: Daemon) -> None:
        command = [sys.executable, "-m", "semtask", "db", "backup", "--force", str(self._copy)]
        done = subprocess.run(command, env=daemon.env, capture_output=True, text=True, check=False)
        self.backups += 1
        if done.returncode:
            self.failures.append(f"backup: exit {done.returncode}: {done.stderr}")
