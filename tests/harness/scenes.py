"""Small loads that lead a test build past its kill points: by name, as points.py has them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import apsw

from tests.daemon.rig import RpcFailed
from tests.harness.ground import KEPT, Ground, shims_of
from tests.harness.load import Planned

LONG = 600.0


def command(ground: Ground, prefix: str) -> None:
    ground.enqueue(
        Planned(f"{prefix}-c", "command", seconds=0.06, flags="leave"),
        Planned(f"{prefix}-c-once", "command", once=True, seconds=0.06),
    )


def task(ground: Ground, prefix: str) -> None:
    ground.enqueue(
        Planned(f"{prefix}-s", "witness", flags="fail"),
        Planned(f"{prefix}-s-once", "witness", once=True),
        Planned(f"{prefix}-s-leave", "witness", flags="leave"),
        Planned(f"{prefix}-a", "witness_async"),
        Planned(f"{prefix}-a-once", "witness_async", once=True),
    )


def both(ground: Ground, prefix: str) -> None:
    command(ground, prefix)
    ground.enqueue(Planned(f"{prefix}-s-leave", "witness", flags="leave"), Planned(f"{prefix}-s", "witness"))


def tasks(ground: Ground, prefix: str) -> None:
    """With jobs that wait for others, that are taken ahead and recalled, and that are stopped."""
    task(ground, prefix)
    quick = [Planned(f"{prefix}-learn{n}", "witness_quick", seconds=0.0) for n in range(8)]
    ground.enqueue(*quick)
    ground.await_start(*quick)
    ahead = [Planned(f"{prefix}-q{n}", "witness_quick", seconds=0.0 if n != 3 else 0.25) for n in range(24)]
    ground.enqueue(*ahead)
    ground.enqueue(Planned(f"{prefix}-waits", "witness_waits"))
    _cancel_running(ground, Planned(f"{prefix}-s-stop", "witness", seconds=LONG, also="CANCELLED"))


def stop(ground: Ground, prefix: str) -> None:
    ground.enqueue(Planned(f"{prefix}-s-leave", "witness", flags="leave"))
    _cancel_running(ground, Planned(f"{prefix}-c-stop", "command", seconds=LONG, flags="leave", also="CANCELLED"))
    _cancel_running(ground, Planned(f"{prefix}-s-stop", "witness", seconds=LONG, also="CANCELLED"))


def restart(ground: Ground, prefix: str) -> None:
    """The daemon dies under running jobs."""
    jobs = _running(prefix)
    ground.enqueue(*jobs)
    ground.await_start(*jobs)
    ground.restart()


def lost(ground: Ground, prefix: str) -> None:
    """It dies, and the next one loses a shim of a command, and one of a worker."""
    restart(ground, prefix)
    task = Planned(f"{prefix}-lost-s", "witness", seconds=1.0)
    ground.enqueue(task)
    ground.await_start(task)
    command = Planned(f"{prefix}-lost-c", "command", seconds=0.7, flags="leave")
    [job_id] = ground.enqueue(command)
    ground.await_start(command)
    for shim in [*shims_of(ground, f"{job_id}.*"), *shims_of(ground, "worker-*")]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(shim, signal.SIGKILL)


def waiting(ground: Ground, prefix: str) -> None:
    """Jobs that wait: for their time, for a queue that is paused until theirs is over, for others of their task."""
    ground.call("queues.pause.v1", queue=f"{prefix}-paused")
    ground.enqueue(
        Planned(
            f"{prefix}-ttl",
            "command",
            options={"queue": f"{prefix}-paused", "ttl_ms": 30},
            also="SKIPPED_TTL",
        ),
        Planned(f"{prefix}-later", "command", options={"schedule": {"type": "AFTER", "delay_ms": 30}}),
        *(Planned(f"{prefix}-alone{n}", "witness_alone") for n in range(3)),
    )


def stubborn(ground: Ground, prefix: str) -> None:
    """A command that takes longer to end than the next daemon is patient."""
    job = Planned(f"{prefix}-stubborn", "command", seconds=LONG, flags="stubborn", options={"grace_ms": 1500})
    job = job._replace(once=True)
    [job_id] = ground.enqueue(job)
    ground.await_start(job)
    # Its grace begins when the next daemon continues its shim, however long that takes to start.
    for shim in shims_of(ground, f"{job_id}.*"):
        os.kill(shim, signal.SIGSTOP)
    ground.restart()


def damaged(ground: Ground, prefix: str) -> None:
    """A row of a running job is damaged from outside while no daemon runs."""
    job = Planned(f"{prefix}-damaged", "witness", seconds=0.3, also="FAILED")
    [job_id] = ground.enqueue(job)
    ground.await_start(job)
    ground.daemon.kill()
    db = apsw.Connection(str(ground.home / "meta.db"))
    db.execute(
        "UPDATE jobs SET tag = CAST(x'ff41' AS TEXT) WHERE job_id = ?", (bytes.fromhex(job_id.replace("-", "")),)
    )
    db.close()
    ground.revive()


def upkeep(ground: Ground, prefix: str) -> None:
    """More jobs have ended than are kept."""
    many = [Planned(f"{prefix}-{n}", "witness_quick", seconds=0.0) for n in range(KEPT)]
    ground.enqueue(*many, Planned(f"{prefix}-subject", "witness", subject=prefix, on_duplicate="after"))
    ground.settle()
    ground.clear()
    command(ground, prefix)
    ground.settle()
    ground.call("admin.maintenance.v1", force_vacuum=True)


SCENES: dict[str, Callable[[Ground, str], None]] = {
    scene.__name__: scene
    for scene in (command, task, both, tasks, stop, restart, lost, waiting, stubborn, damaged, upkeep)
}


def _running(prefix: str) -> list[Planned]:
    return [
        Planned(f"{prefix}-c", "command", seconds=0.3, flags="leave"),
        Planned(f"{prefix}-c-once", "command", once=True, seconds=0.3),
        Planned(f"{prefix}-s", "witness", seconds=0.3),
        Planned(f"{prefix}-s-once", "witness", once=True, seconds=0.3),
        Planned(f"{prefix}-a", "witness_async", seconds=0.3),
    ]


def _cancel_running(ground: Ground, job: Planned) -> None:
    [job_id] = ground.enqueue(job)
    ground.await_start(job)
    with contextlib.suppress(RpcFailed):  # a second call, because the first one had no answer, may find it ended
        ground.call("dev.cancel.v1", job_id=job_id)
