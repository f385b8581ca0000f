"""One attempt of a command, from its claim to its finish: the order of steps between store and executor."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec

from semtask.config.environment import ENV_TOKEN
from semtask.engine.background import Background
from semtask.engine.command_gate import CommandGate
from semtask.engine.command_spec import CommandDefaults, command_spec
from semtask.engine.floors import SandboxFloors, why_not_together
from semtask.engine.job_tokens import JobTokens
from semtask.engine.live import Key, LiveAttempts
from semtask.errors import DatabaseError
from semtask.executors.base import CommandSpec, Executor
from semtask.host.clocks import Clock
from semtask.model.job import Job, ProcessIdentity
from semtask.model.outcome import Outcome, bad_payload, never_ran, no_room, spawn_failed
from semtask.model.retry import JITTER_HIGH, JITTER_LOW, is_last_straw
from semtask.model.state import StopReason
from semtask.protocol.enqueue import command_of
from semtask.store.base import Store
from semtask.store.requests import Finish, Running
from semtask.telemetry.events import AttemptEnded, AttemptStarted, Committed, Events
from semtask.telemetry.logs import about

log = logging.getLogger("semtask.attempt")


def draw_jitter() -> float:
    """Drawn for each retry, so that jobs that failed together do not come back together."""
    return random.uniform(JITTER_LOW, JITTER_HIGH)  # noqa: S311 - no secret hangs on it


class Attempts:
    """The running commands of this daemon, each one an asyncio task.

    `gate` says which of them may be started, `floors` what sandbox they get at least. `tokens` has the tokens that they
    were given; one that is told to stop, or has ended, has none any more.

    `evidence(job_id, claim_no, error)` is what a job that goes to quarantine is to be judged by, as JSON text; it may
    block. `on_finishing` is called when everything of an attempt is gone and its end is about to be stored, `on_end`
    when that is committed.
    """

    def __init__(
        self,
        store: Store,
        executor: Executor,
        *,
        live: LiveAttempts,
        gate: CommandGate,
        floors: SandboxFloors,
        tokens: JobTokens,
        defaults: CommandDefaults,
        clock: Clock,
        jitter: Callable[[], float],
        events: Events,
        on_timeout: Callable[[Job], None],
        on_finishing: Callable[[Job, Outcome], None],
        on_end: Callable[[Job], None],
        evidence: Callable[[str, int, str], str | None],
    ) -> None:
        self._store = store
        self._executor = executor
        self._live = live
        self._gate = gate
        self._floors = floors
        self._tokens = tokens
        self._defaults = defaults
        self._clock = clock
        self._jitter = jitter
        self._events = events
        self._on_timeout = on_timeout
        self._on_finishing = on_finishing
        self._on_end = on_end
        self._evidence = evidence
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._stops: dict[Key, StopReason] = {}
        self._notes = Background()

    def start(self, job: Job) -> None:
        key = (job.job_id, job.claim_no)
        task = asyncio.get_running_loop().create_task(self._run(job), name=f"attempt {job.job_id}.{job.claim_no}")
        self._tasks[key] = task
        self._live.add(job)
        task.add_done_callback(lambda done: self._done(job, done))
        self._events.emit(AttemptStarted(job))

    def stop(self, running: Running) -> None:
        """Pass a committed stop reason on to the process. One that is not ours is left to its own watcher."""
        key = (running.job_id, running.claim_no)
        if key in self._tasks:
            self._stops[key] = running.reason
            self._tokens.revoke(key)
            self._executor.stop(running.job_id, running.claim_no, running.reason, running.grace_ms)

    async def _run(self, job: Job) -> None:
        key = (job.job_id, job.claim_no)
        spec: CommandSpec | Outcome
        try:
            spec = await self._prepare(job)
        except (OSError, MemoryError, RuntimeError) as error:  # as when no thread can be made; nothing was handed over
            log.exception("attempt %d could not be prepared", job.claim_no, extra=about(job))
            spec = no_room(f"the attempt could not be prepared: {error!r}")
        except Exception as error:  # given back it would come again and again, and hold up the others each time
            log.exception("attempt %d failed in the daemon", job.claim_no, extra=about(job))
            spec = spawn_failed(f"an error in the daemon, whose log has more of it: {error!r}")
        if isinstance(spec, Outcome):
            await self.settle(job, spec)
            return
        timer = self._start_timer(job)
        began = self._clock.monotonic()
        try:
            outcome = await self._executor.run(spec, lambda process: self._note_process(job, process))
        finally:
            self._tokens.revoke(key)
            self._live.ended(key)
            if timer is not None:
                timer.cancel()
        await self.settle(job, outcome, ran_s=self._clock.monotonic() - began if outcome.executed else None)

    async def _prepare(self, job: Job) -> CommandSpec | Outcome:
        """What to start, or how the attempt ends without a start."""
        try:
            payload = command_of(job.payload)
        except msgspec.MsgspecError as error:
            return bad_payload(f"the stored payload is no command: {error}")
        sandbox = self._floors.sandbox_for(job.queue, payload.sandbox)
        if sandbox is not None and (why := why_not_together(sandbox.level, payload.access)):
            return spawn_failed(why)
        wanted = msgspec.structs.replace(command_spec(job, payload, self._defaults), sandbox=sandbox)
        spec = await self._gate.admit(wanted)
        if (job.job_id, job.claim_no) in self._stops:
            return never_ran("stopped before it was started")
        if payload.access and isinstance(spec, CommandSpec):
            token = self._tokens.issue(job.job_id, job.claim_no, payload.access)
            return msgspec.structs.replace(spec, env={**spec.env, ENV_TOKEN: token})
        return spec

    def _start_timer(self, job: Job) -> asyncio.TimerHandle | None:
        """timeout_ms is a duration of the attempt: it runs on the monotonic clock, and suspend does not eat it."""
        if job.timeout_ms is None:
            return None
        return asyncio.get_running_loop().call_later(job.timeout_ms / 1000, self._on_timeout, job)

    async def settle(self, job: Job, outcome: Outcome, *, ran_s: float | None = None) -> None:
        """Write the end of an attempt; also used for the attempts of a former daemon, whose duration is not known."""
        if outcome.exception is None and is_last_straw(job, outcome):
            found = await asyncio.to_thread(self._evidence, job.job_id, job.claim_no, outcome.error or "")
            outcome = msgspec.structs.replace(outcome, exception=found)
        asked = self._clock.monotonic()
        finish = Finish(
            job_id=job.job_id,
            claim_no=job.claim_no,
            outcome=outcome,
            now=self._clock.now_ms(),
            jitter=self._jitter(),
        )
        # Before the commit: a claim that is submitted now comes behind this finish, so the slot is free by then.
        self._on_finishing(job, outcome)
        finished = await self._store.finish(finish)
        self._events.emit(Committed(self._clock.monotonic() - asked))
        if finished.decision is None:
            log.warning("a late report of attempt %d changed nothing", job.claim_no, extra=about(job))
        else:
            self._events.emit(AttemptEnded(job, finished.decision, ran_s))
        self._on_end(job)

    def _note_process(self, job: Job, process: ProcessIdentity) -> None:
        self._notes.spawn(
            self._store.record_process(job.job_id, job.claim_no, process),
            f"storing the pid of {job.job_id}",
            about=about(job),
        )

    def _done(self, job: Job, task: asyncio.Task[None]) -> None:
        key = (job.job_id, job.claim_no)
        del self._tasks[key]
        self._stops.pop(key, None)
        self._live.remove(key)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, DatabaseError):
            log.error("the end of attempt %d was not stored: %s", key[1], error, extra=about(job))
        elif error is not None:
            log.error("attempt %d failed in the daemon", key[1], exc_info=error, extra=about(job))
