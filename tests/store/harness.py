"""What every test of a store needs: opening one, and making jobs, claims and reports."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semtask.model.identifiers import JobIds
from semtask.model.job import ClaimFacts, ExecutionMode, Job, NewJob, OnInterrupt
from semtask.model.outcome import Outcome, success
from semtask.model.state import State, StopReason
from semtask.store.base import Change, Store
from semtask.store.requests import ClaimRequest, Finish, Finished, Stopped, StopRequest, StopSelector
from semtask.store.sqlite import open_store

STORES = ["sqlite"]
SUBPROCESS, IN_PROCESS = ExecutionMode.SUBPROCESS, ExecutionMode.IN_PROCESS
NOW = 1_700_000_000_000

_IDS = JobIds(lambda: int(time.time() * 1000), os.urandom)


@dataclass
class Opened:
    """An open store, the commits it told of (a list of changes each), and the errors it called fatal."""

    store: Store
    commits: list[list[Change]]
    fatal: list[BaseException]

    @property
    def changes(self) -> list[Change]:
        return [change for commit in self.commits for change in commit]

    async def insert(self, *jobs: NewJob) -> None:
        await self.store.insert(jobs, durable=True)

    async def claim(
        self,
        queues: Mapping[str, int] | Sequence[str] = ("default",),
        *,
        limit: int = 100,
        mode: ExecutionMode = SUBPROCESS,
        now: int = NOW,
    ) -> list[Job]:
        free = queues if isinstance(queues, Mapping) else dict.fromkeys(queues, 100)
        return await self.store.claim(
            ClaimRequest(mode=mode, queues=free, limit=limit, now=now, node_id="node", facts=facts)
        )

    async def finish(
        self,
        job: Job,
        outcome: Outcome | None = None,
        *,
        claim_no: int | None = None,
        now: int = NOW,
        jitter: float = 1.0,
    ) -> Finished:
        return await self.store.finish(
            Finish(
                job_id=job.job_id,
                claim_no=claim_no or job.claim_no,
                outcome=outcome or success(exit_code=0),
                now=now,
                jitter=jitter,
            )
        )

    async def cancel(self, *, grace_ms: int | None = None, now: int = NOW, **selector: str) -> Stopped:
        return await self.stop(StopReason.CANCEL, grace_ms=grace_ms, now=now, **selector)

    async def stop(
        self, reason: StopReason, *, grace_ms: int | None = None, now: int = NOW, **selector: str
    ) -> Stopped:
        return await self.store.stop(
            StopRequest(selector=StopSelector(**selector), reason=reason, now=now, grace_ms=grace_ms)
        )

    async def job(self, job_id: str) -> Job:
        found = await self.store.get(job_id)
        assert found is not None
        return found

    async def counts(self, queue: str = "default") -> dict[str, int]:
        """The counts of a queue that are not zero."""
        [found] = [row for row in await self.store.queues() if row.name == queue]
        return {state.value: count for state, count in found.counts.items() if count}


class Harness:
    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.path = folder / "meta.db"

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[Opened]:
        """The same database again each time."""
        commits: list[list[Change]] = []
        fatal: list[BaseException] = []
        store = await open_store(
            self.path,
            **{
                "on_commit": lambda changes: commits.append(list(changes)),
                "now": lambda: NOW,
                "fatal": fatal.append,
                **options,
            },
        )
        try:
            yield Opened(store, commits, fatal)
        finally:
            await store.close()


def facts(job_id: str, claim_no: int) -> ClaimFacts:
    return ClaimFacts(daemon_epoch=1, boot_id="boot", attempts_id="attempts", nonce=f"{job_id}.{claim_no}")


def new_id() -> str:
    return _IDS.new()


def new_job(**fields: Any) -> NewJob:
    """A command in the queue `default`, unless said otherwise."""
    defaults: dict[str, Any] = {
        "job_id": new_id(),
        "queue": "default",
        "job_type": "command",
        "execution_mode": SUBPROCESS,
        "payload": '{"command": "true"}',
        "created_at": NOW,
        "on_interrupt": OnInterrupt.FAIL,
        "content_hash": b"content",
    }
    return NewJob(**{**defaults, **fields})


def seen(changes: Sequence[Change]) -> list[tuple[str, State | None, State]]:
    return [(change.job_id, change.before, change.after) for change in changes]
