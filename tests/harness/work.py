"""What the jobs of the harnesses do: they bear witness to their own starts and ends, in files that no daemon knows of.

Each job takes a lock of its own, and that of its subject if it has one; a second run at the same time finds it taken
and says so. What a job leaves running inherits the locks. The shell body and the tasks do the same.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from semtask import Semantica, current_job
from tests.harness.points import ENV_PLAN, Plan, install

app = Semantica(autostart=False)

# $1 folder, $2 name, $3 subject or -, $4 seconds, $5 flags. What it leaves behind has left the session, too.
BODY = """
cd "$1" || exit 9
exec 9> "lock.$2"
flock -n 9 || { echo "overlap $2" >> history; exit 1; }
if [ "$3" != - ]; then
    exec 8> "lock.$3"
    flock -n 8 || { echo "overlap $3" >> history; exit 1; }
fi
echo "start $2" >> history
case $5 in
*leave*) setsid sleep 600 & ;;
*stubborn*) trap '' TERM ;;
*chatty*) seq 2000 ;;
esac
sleep "$4"
case $5 in *fail*)
    if [ ! -e "failed.$2" ]; then
        : > "failed.$2"
        exit 1
    fi ;;
esac
echo "end $2" >> history
"""


def command_of(folder: str, name: str, subject: str | None, seconds: float, flags: str) -> list[str]:
    return ["sh", "-c", BODY, "sh", folder, name, subject or "-", f"{seconds:.3f}", flags]


@app.task
def witness(folder: str, name: str, subject: str | None, seconds: float, flags: str) -> str:
    with _witnessed(folder, name, subject, flags):
        current_job().progress(1, 2)
        time.sleep(seconds)
    return name


@app.task
async def witness_async(folder: str, name: str, subject: str | None, seconds: float, flags: str) -> str:
    with _witnessed(folder, name, subject, flags):
        await asyncio.sleep(seconds)
    return name


@app.task(concurrency=1)
def witness_alone(folder: str, name: str, subject: str | None, seconds: float, flags: str) -> str:
    with _witnessed(folder, name, subject, flags):
        time.sleep(seconds)
    return name


@app.task
def witness_quick(folder: str, name: str, subject: str | None, seconds: float, flags: str) -> str:
    """So quick that its jobs are taken ahead, but for one that takes its time."""
    with _witnessed(folder, name, subject, flags):
        if seconds:
            time.sleep(seconds)
    return name


@app.task
def witness_waits(folder: str, name: str, subject: str | None, seconds: float, flags: str) -> str:
    """Waits for a job of its own."""
    with _witnessed(folder, name, subject, flags):
        child = witness.using(idempotency_key=f"{name}-child", retry_on_crash=True, retry=3)
        return child.enqueue(folder, f"{name}-child", None, seconds, "").result(30)


@contextmanager
def _witnessed(folder: str, name: str, subject: str | None, flags: str) -> Iterator[None]:
    locks: list[int] = []
    try:
        for what in (name, subject) if subject else (name,):
            lock = os.open(f"{folder}/lock.{what}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            locks.append(lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _note(folder, f"overlap {what}")
                raise
        _note(folder, f"start {name}")
        if "leave" in flags:
            subprocess.Popen(["sleep", "600"], start_new_session=True, pass_fds=locks)
        if "chatty" in flags:
            print("\n".join(map(str, range(2000))))
            current_job().artifact("lines", name * 1000)
        yield
        if "fail" in flags and not os.path.exists(f"{folder}/failed.{name}"):
            os.close(os.open(f"{folder}/failed.{name}", os.O_CREAT | os.O_WRONLY, 0o600))
            raise OSError("this failure is planned")
        _note(folder, f"end {name}")
    finally:
        for lock in locks:
            os.close(lock)


def _note(folder: str, line: str) -> None:
    """One short append is atomic, so that the histories of all jobs fit into one file."""
    file = os.open(f"{folder}/history", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)


if ENV_PLAN in os.environ:  # a worker of a test build
    plan = Plan(os.environ[ENV_PLAN])
    plan.reach("worker.import.before")
    install("worker", plan)
