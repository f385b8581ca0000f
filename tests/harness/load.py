"""The load of the harnesses: jobs of every kind, each of them described before it is enqueued."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tests.daemon.rig import Daemon, command_params
from tests.harness.work import command_of

ROOT = Path(__file__).resolve().parents[2]
MODULE = "tests.harness.work"
Kind = Literal["command", "witness", "witness_async", "witness_alone", "witness_quick", "witness_waits"]


class Planned(NamedTuple):
    """A job as it will be enqueued. `once`: it may be started once at most. `flags`: what its body does besides.

    `also` is an end that is as good as DONE.
    """

    name: str
    kind: Kind
    once: bool = False
    subject: str | None = None
    on_duplicate: str | None = None
    seconds: float = 0.02
    flags: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    also: str | None = None

    @property
    def fails(self) -> bool:
        return "fail" in self.flags


def planned(number: int) -> Planned:
    """Job `number` of an endless mixed load: commands, sync and async tasks, with retries, subjects, leftovers."""
    turn = number % 10
    kind: Kind = "command" if turn < 4 else "witness" if turn < 7 else "witness_async"
    once = number // 10 % 3 == 0
    subject: str | None = None
    on_duplicate: str | None = None
    if number // 30 % 4 < 2:
        subject = f"subject-{kind}-{number // 30 % 4}-{number % 3}"
        on_duplicate = "after" if number // 30 % 4 == 0 else "supersede"
    flags = ""
    if turn in {1, 4}:
        flags = "leave"
    elif turn in {2, 5, 7} and not once:
        flags = "fail"
    seconds = 0.3 if number % 4 == 0 else 0.01 * (1 + number % 6)
    return Planned(f"job-{number}", kind, once, subject, on_duplicate, seconds, flags)


def enqueue(daemon: Daemon, folder: Path, job: Planned) -> str:
    """Enqueue it under its name as key: a repeated call is answered with the same job."""
    return str(daemon.rpc("dev.enqueue.v1", **params(folder, job))["job_id"])


def params(folder: Path, job: Planned) -> dict[str, Any]:
    options: dict[str, Any] = {
        "idempotency_key": job.name,
        "queue": "lanes" if job.subject else job.kind,
        "on_interrupt": "fail" if job.once else "requeue",
        "retry_on_crash": not job.once,
        "max_attempts": 1 if job.once else 3,
        "retry_base_delay_ms": 20,
        "grace_ms": 300,
        **job.options,
    }
    if job.subject is not None:
        options |= {"subject_key": job.subject, "on_duplicate": job.on_duplicate}
    if job.kind == "command":
        return command_params(*command_of(str(folder), job.name, job.subject, job.seconds, job.flags), **options)
    payload = {
        "folder": str(folder),
        "name": job.name,
        "subject": job.subject,
        "seconds": job.seconds,
        "flags": job.flags,
    }
    return {"job_type": f"{MODULE}:{job.kind}", "execution_mode": "IN_PROCESS", "payload": payload, **options}


def write_apps(home: Path, module: str = MODULE) -> None:
    """Have the daemon of this home run the tasks of a module, else those of the harnesses."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    app = {"module": f"{module}:app", "directory": str(ROOT), "python": sys.executable}
    path = home / "apps.json"
    path.write_text(json.dumps({"apps": {"harness": app}}))
    path.chmod(0o600)
