"""How soon a canceled tree is dead: from the request to the end of its last process, and to CANCELLED in the database.

python -m benchmarks.stopping [--count 50]

Trees that ignore SIGTERM get their grace, which is taken off. For trees that are known beforehand the end of the last
process is seen by pidfds; one that forks on all the time is known to be gone when no process has its job in its
environment any more. After each CANCELLED the process table is searched: nothing may be left.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.measure import percentile
from benchmarks.running import daemon
from semtask import Client

LIMIT_MS = 100.0
GRACE_MS = 300
READY_S = 20.0

# Forks, leaves its session and lets its parent die, again and again.
RACER = """
import os, subprocess, time
if os.fork() == 0:
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()
        time.sleep(0.002)
time.sleep(600)
"""


class Tree(NamedTuple):
    """`size`: its processes, None if they change all the time. `grace_ms`: what it takes before it is killed."""

    name: str
    argv: Sequence[str]
    size: int | None
    grace_ms: int = 0


TREES = (
    Tree("one process", ("sleep", "600"), 1),
    Tree("children", ("sh", "-c", "sleep 600 & sleep 600 & sleep 600 & wait"), 4),
    Tree("sessions of their own", ("sh", "-c", "setsid sleep 600 & setsid sh -c 'sleep 600 & wait' & wait"), 4),
    Tree("forked twice", ("sh", "-c", "(setsid sh -c 'sleep 600 & sleep 600 &' &) ; sleep 600; true"), 4),
    Tree("50 processes", ("sh", "-c", "for n in $(seq 49); do setsid sleep 600 & done; wait"), 50),
    Tree("ignores SIGTERM", ("sh", "-c", "trap '' TERM; sleep 600 & sleep 600 & wait"), 3, GRACE_MS),
    Tree("forks on and on", (sys.executable, "-I", "-S", "-c", RACER), None),
)


class Stopped(NamedTuple):
    """In ms after the request, without the grace: the end of the last process, the answer of wait; and what is left."""

    dead: float
    cancelled: float
    left: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=50, help="of each tree")
    given = parser.parse_args()
    kill = [_bare_kill_ms() for _ in range(given.count)]
    print(f"{'kill -9 of a bare sleep':24} dead {_told(kill)}")
    missed = 0
    with ExitStack() as stack:
        client, home, _ = stack.enter_context(daemon(SEMANTICA_CPU_THROTTLE_THRESHOLD="101"))
        waiter = stack.enter_context(ThreadPoolExecutor(1))
        other = stack.enter_context(Client(home, autostart=False))  # it waits meanwhile
        for tree in TREES:
            stops = [_stop(client, other, tree, waiter) for _ in range(given.count)]
            dead, cancelled = [one.dead for one in stops], [one.cancelled for one in stops]
            reached = max(cancelled) < LIMIT_MS
            missed += not reached
            print(
                f"{tree.name:24} dead {_told(dead)}   CANCELLED {_told(cancelled)}"
                f"   left {sum(one.left for one in stops)}   {'reached' if reached else 'MISSED'}"
            )
    print(f"ms after the request, p50 / p99 / most of {given.count}, less a grace of {GRACE_MS} ms where it is ignored")
    print(f"each of them verified dead within {LIMIT_MS:.0f} ms: {'MISSED' if missed else 'reached'}")


def _stop(client: Client, other: Client, tree: Tree, waiter: ThreadPoolExecutor) -> Stopped:
    payload = {"command": tree.argv[0], "args": list(tree.argv[1:])}
    job_id = client.enqueue("tree", payload, grace_ms=GRACE_MS).job_id
    pids = _complete(job_id, tree)
    with _pidfds(pids if tree.size is not None else []) as pidfds:
        ended = waiter.submit(_cancelled_at, other, job_id)
        began = time.perf_counter()
        client.cancel(job_id)
        dead = _all_ended_at(pidfds)
        cancelled = ended.result()
    left = len(_processes_of(job_id))
    if tree.size is None:
        dead = cancelled
    return Stopped((dead - began) * 1000 - tree.grace_ms, (cancelled - began) * 1000 - tree.grace_ms, left)


def _cancelled_at(client: Client, job_id: str) -> float:
    [job] = client.wait([job_id], timeout_ms=60_000).jobs
    at = time.perf_counter()
    if job.state != "CANCELLED":
        raise RuntimeError(f"{job_id} is {job.state}")
    return at


def _complete(job_id: str, tree: Tree) -> list[int]:
    """The processes of the tree, when all of them are there and do what they will go on to do."""
    end = time.monotonic() + READY_S
    while True:
        pids = _processes_of(job_id)
        sleeping = all(_sleeps(pid) for pid in pids)
        if (tree.size is None and len(pids) > 1) or (len(pids) == tree.size and sleeping):
            return pids
        if time.monotonic() > end:
            raise TimeoutError(f"{tree.name}: {len(pids)} processes")
        time.sleep(0.01)


def _sleeps(pid: int) -> bool:
    """Whether it has got to where it waits; one that was just forked may still be on its way to exec."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    except FileNotFoundError:
        return False


def _processes_of(job_id: str) -> list[int]:
    needle = f"SEMANTICA_JOB_ID={job_id}".encode()
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if needle in _environ(pid)]


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@contextmanager
def _pidfds(pids: Sequence[int]) -> Iterator[list[int]]:
    pidfds = [os.pidfd_open(pid) for pid in pids]
    try:
        yield pidfds
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def _all_ended_at(pidfds: Sequence[int]) -> float:
    for pidfd in pidfds:
        select.select([pidfd], [], [])
    return time.perf_counter()


def _bare_kill_ms() -> float:
    process = subprocess.Popen(["sleep", "600"])
    with _pidfds([process.pid]) as pidfds:
        began = time.perf_counter()
        process.send_signal(signal.SIGKILL)
        took = _all_ended_at(pidfds) - began
    process.wait()
    return took * 1000


def _told(values: Sequence[float]) -> str:
    return f"{statistics.median(values):5.1f} /{percentile(values, 0.99):6.1f} /{max(values):6.1f}"


if __name__ == "__main__":
    main()
