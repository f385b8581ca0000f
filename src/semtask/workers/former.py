"""What became of the workers of a former daemon, and so of the tasks that they had."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.former_attempts import PATIENCE_S
from semtask.executors.leftovers import end_leftovers
from semtask.executors.shim_end import unlocked
from semtask.host import identity, procfs
from semtask.launch.folder import AttemptFolder
from semtask.model import outcome
from semtask.model.job import ClaimFacts, Job, ProcessIdentity
from semtask.model.outcome import Outcome
from semtask.telemetry.counters import ZOMBIES_CLEANED
from semtask.workers.process import CLAIM_NO, WORKER_PREFIX

log = logging.getLogger("semtask.recovery")

_SUFFIX = f".{CLAIM_NO}"


class FormerWorkers:
    """Judges RUNNING tasks that another daemon claimed. Each worker is examined one time, however many of them it had.

    Those that are there when this object is made are former ones. `count` and `patience_s` are as in FormerAttempts.
    """

    def __init__(
        self, attempts: AttemptsDir, count: Callable[[str, int], None], *, patience_s: float = PATIENCE_S
    ) -> None:
        self._attempts = attempts
        self._count = count
        self._patience_s = patience_s
        names = os.listdir(attempts.path)
        self._abandoned = {name for name in names if name.startswith(WORKER_PREFIX) and name.endswith(_SUFFIX)}
        self._gone: set[str] = set()
        self._under_way: dict[tuple[str, str], asyncio.Task[bool]] = {}

    async def judge(self, job: Job) -> Outcome | None:
        """How the attempt ended; None while its worker, or a process that it left, is there.

        Never never_ran: a worker does not write down which jobs it has begun.
        """
        if job.claim is not None and not await self._is_gone(job.claim):
            return None
        return outcome.interrupted("the daemon stopped while the task ran")

    async def wait_unlocked(self, job: Job) -> None:
        """Wait until no shim holds the worker any more."""
        if job.claim is not None and job.claim.worker is not None:
            await self._once(self._unlocked, job.claim.worker)

    async def remove_abandoned(self) -> None:
        """Remove the folders of all former workers, each when nothing of its worker is left. It may take as long as
        one of them survives SIGKILL.
        """
        await asyncio.gather(*(self._remove(name) for name in self._abandoned))

    async def _remove(self, name: str) -> None:
        while True:
            try:
                await self._once(self._unlocked, name)
                if await self._once(self._end, name):
                    return
            except OSError as error:  # no descriptor to look with, or no room on the disk
                log.warning("the former worker %s cannot be settled now, trying again: %s", name, error)
            await asyncio.sleep(1)

    async def _is_gone(self, claim: ClaimFacts) -> bool:
        if claim.boot_id != procfs.boot_id() or self._attempts.is_foreign(claim.attempts_id):
            return True
        if claim.worker is None or claim.attempts_id != self._attempts.attempts_id:
            return await self._once(self._end_processes, claim.nonce)
        return await self._once(self._end, claim.worker)

    async def _once(self, work: Callable[[str], Coroutine[None, None, bool]], name: str) -> bool:
        """Join the same work for the same worker, if it is under way."""
        key = (work.__name__, name)
        if key not in self._under_way:
            task = asyncio.get_running_loop().create_task(work(name), name=f"{work.__name__} {name}")
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(self._under_way[key])

    async def _end(self, name: str) -> bool:
        """Give the worker up, end what it left and remove its folder. False while it, or something of it, is there."""
        if name in self._gone:
            return True
        folder = self._folder(name)
        with folder.locked() as free:
            if not free:
                return False
            started = folder.started()
            # In the lock: a shim that comes after this finds the poison, one that came before would hold the lock.
            folder.poison()
        if not await self._end_processes(name, None if started is None else identity.from_mark(started.command)):
            return False
        self._gone.add(name)
        if folder.exists():
            folder.remove()
        return True

    async def _end_processes(self, nonce: str, worker: ProcessIdentity | None = None) -> bool:
        killed: set[int] = set()
        try:
            async with asyncio.timeout(self._patience_s):
                await end_leftovers(nonce, worker, killed)
        except TimeoutError:
            log.warning("processes of the former worker %s survive SIGKILL; its jobs stay RUNNING", nonce)
            return False
        finally:
            if killed:
                self._count(ZOMBIES_CLEANED, len(killed))
        return True

    async def _unlocked(self, name: str) -> bool:
        await unlocked(self._folder(name))
        return True

    def _folder(self, name: str) -> AttemptFolder:
        return self._attempts.attempt(name.removesuffix(_SUFFIX), CLAIM_NO)
