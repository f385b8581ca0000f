"""Sync tasks: one after the other, in the main thread."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, NoReturn

from semtask.protocol.frames import Blocked, Call, Ended, Progress, ProgressInfo, Recalled, Run, Stop, ToWorker
from semtask.tasks import context
from semtask.tasks.codec import BadPayload
from semtask.tasks.context import JobContext
from semtask.tasks.registry import TaskDefinition
from semtask.worker import mark
from semtask.worker.audit import PROCESS_STARTS
from semtask.worker.channel import DaemonGone
from semtask.worker.exceptions import stack_of
from semtask.worker.kit import Kit
from semtask.worker.results import RefusedPayload
from semtask.worker.soft_stop import SoftStop, interruption

Key = tuple[str, int]  # job_id, claim_no


class SyncRunner:
    """Runs what the daemon sends until the socket ends. It is the channel of the contexts of its jobs."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._pid = os.getpid()
        self._pending: deque[tuple[bytes, Call]] = deque()
        self._received = 0
        self._stops: dict[Key, str] = {}  # of pending jobs
        self._job: JobContext | None = None  # the one that runs
        self._has_token = False
        self._soft_stop = SoftStop(self._stop_the_running)
        kit.capture.shield = self._soft_stop
        kit.audit.on(PROCESS_STARTS, kit.capture.redirect)
        kit.hygiene.settle()
        context.answer_elsewhere(self._job_of_other_thread)

    def run(self, messages: Iterable[ToWorker]) -> None:
        """Raises DaemonGone at the end of the socket."""
        self._take(messages)
        while True:
            self._run_next()

    def _run_next(self) -> None:
        channel = self._kit.channel
        if not self._pending:
            self._take(channel.receive())
            return
        if not self._has_token and not channel.take_token():
            channel.wait()  # what is pending was recalled, as a frame will say
            self._take(channel.receive_now())
            return
        self._has_token = True
        self._soft_stop.forget()
        if channel.has_input():
            # Among them may be the recall of the next job; then the token is that of a later one.
            self._take(channel.receive_now())
        if self._pending:
            self._has_token = False
            ended = self._run_one(*self._pending.popleft())
            channel.send(ended)
            if ended.leftovers or ended.recycle is not None:
                self._rest()

    def _rest(self) -> NoReturn:
        """Begin nothing more, and wait to be ended."""
        while True:
            self._kit.channel.receive()

    # --- frames -----------------------------------------------------------------------------------------------------

    def _take(self, messages: Iterable[ToWorker]) -> None:
        for message in messages:
            match message:
                case Run(calls=calls):
                    for call in calls:
                        self._received += 1
                        self._pending.append((mark.label(self._received), call))
                case Stop(job_id=job_id, claim_no=claim_no, reason=reason):
                    self._note_stop((job_id, claim_no), reason)
                case Recalled(jobs=jobs):
                    gone = set(jobs)
                    self._pending = deque(item for item in self._pending if _key(item[1]) not in gone)

    def _note_stop(self, key: Key, reason: str) -> None:
        job = self._job
        if job is not None and (job.job_id, job.claim_no) == key:
            job.stop_reason = reason
        elif any(_key(call) == key for _, call in self._pending):
            self._stops[key] = reason

    def _stop_the_running(self, frame: FrameType | None) -> BaseException | None:
        self._look()
        job = self._job
        if job is None or job.stop_reason is None:
            return None
        text = f"the job is being stopped ({job.stop_reason})"
        where = stack_of(frame)
        log = self._kit.capture.log_of(job)
        try:
            log.write("WARNING", f"{text}; its code is here:\n{where}" if where else f"{text}; its code has just begun")
        except OSError:  # a full disk
            traceback.print_stack(frame, file=self._kit.capture.stderr)
        return interruption(job.stop_reason)

    def _look(self) -> None:
        try:
            self._take(self._kit.channel.receive_now())
        except DaemonGone:  # noticed again before the next job; this one is left to the shim
            return

    # --- one job ----------------------------------------------------------------------------------------------------

    def _run_one(self, label: bytes, call: Call) -> Ended:
        kit = self._kit
        job = JobContext(call, self, kit.setup.artifacts_dir, artifact_limits=kit.artifact_limits)
        if self._stops and (reason := self._stops.pop(_key(call), None)) is not None:
            job.stop_reason = reason
            return kit.results.stopped_before(job)
        definition = kit.registry.get(call.task)
        if definition is None:
            return kit.results.unknown_task(job)
        if definition.is_async:
            return kit.results.wrong_kind(job, "sync")
        if definition.is_foreign(call.source):
            return kit.results.foreign(job, call, str(definition.source))
        log_size = kit.capture.begin()
        self._job = job
        kit.mark.begin(label, log_size)
        started = time.perf_counter_ns()
        ended = self._outcome(job, definition, call.payload)
        ran_ns = time.perf_counter_ns() - started
        kit.mark.set(mark.NOBODY)
        change = kit.hygiene.change(ran_ns)
        if change is not None:
            kit.warn(job, f"{change}: its process is replaced")
        self._job = None
        job.end()
        kit.capture.restore_streams()
        ended.log_bytes = kit.capture.close(job, alone=True)
        ended.ran_us = ran_ns // 1000
        kit.hygiene.count()
        ended.leftovers = kit.hygiene.leftovers()
        ended.recycle = ended.recycle or change or kit.hygiene.wear(ran_ns)
        return ended

    def _outcome(self, job: JobContext, definition: TaskDefinition, payload: str) -> Ended:
        try:
            value = context.context_of(job).run(self._perform, definition, payload)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: no task ends the worker
            return self._kit.results.of_error(job, error)
        return self._kit.results.of_value(job, definition, value)

    def _perform(self, definition: TaskDefinition, payload: str) -> Any:
        try:
            args, kwargs = definition.signature.decode_arguments(payload)
        except BadPayload as error:
            raise RefusedPayload from error
        try:
            self._soft_stop.arm()
            value = definition.function(*args, **kwargs)
        except BaseException as error:
            if os.getpid() != self._pid:
                leave_child(error)
            raise
        finally:
            self._soft_stop.disarm()
            self._kit.hygiene.untrace()
        if os.getpid() != self._pid:
            leave_child(None)
        return value

    def _job_of_other_thread(self) -> JobContext | None:
        """Threads know no context; those that were not there before the first job are the job's."""
        if self._job is None or self._kit.hygiene.knows_thread(threading.current_thread()):
            return None
        return self._job

    # --- the channel of contexts ------------------------------------------------------------------------------------

    def progress(self, job: JobContext, progress: ProgressInfo) -> None:
        with self._soft_stop:
            self._kit.channel.send(Progress(job_id=job.job_id, claim_no=job.claim_no, progress=progress))

    def blocked(self, job: JobContext, on: Sequence[str]) -> None:
        if self._kit.channel.is_closed:
            return  # a forked child waits: the job itself does not
        with self._soft_stop:
            self._kit.channel.send(Blocked(job_id=job.job_id, claim_no=job.claim_no, on=list(on)))

    def look_for_stop(self, job: JobContext) -> None:  # noqa: ARG002 - there is only one
        if self._soft_stop.in_task:  # another thread is told by who reads in the main one
            with self._soft_stop:
                self._look()


def _key(call: Call) -> Key:
    return call.job_id, call.claim_no


def leave_child(error: BaseException | None) -> NoReturn:
    """A child that the task forked has come out of the task's function: it ends here, as a program would."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)
