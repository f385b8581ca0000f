"""Why a job is not running."""

from __future__ import annotations

from typing import cast

from semtask.engine.apps import Apps
from semtask.engine.dispatcher import Dispatcher
from semtask.engine.slots import Slots
from semtask.engine.waits import Waits
from semtask.model.job import ExecutionMode, Job
from semtask.model.state import State
from semtask.protocol.jobs import Waiting, WaitingReason


class Explain:
    def __init__(self, dispatcher: Dispatcher, slots: Slots, apps: Apps, waits: Waits) -> None:
        self._dispatcher = dispatcher
        self._slots = slots
        self._apps = apps
        self._waits = waits

    def waiting(self, job: Job) -> Waiting | None:
        """Why a waiting job does not run, or what a running one waits for; None for others."""
        if job.state is State.RUNNING:
            return self._for_others(job)
        if job.state is State.SCHEDULED:
            return _not_due(job)
        if job.state is not State.QUEUED:
            return None
        return self._closed_to(job) or self._busy_for(job)

    def _for_others(self, job: Job) -> Waiting | None:
        why = self._waits.why(job.job_id)
        return Waiting(reason="deadlock" if why[0] else "other_job", text=why[1]) if why else None

    def _closed_to(self, job: Job) -> Waiting | None:
        """Why jobs like this are not claimed at all now."""
        if job.execution_mode is ExecutionMode.IN_PROCESS and (why := self._apps.why_not(job.job_type)):
            reason, text = why
            return Waiting(reason=cast("WaitingReason", reason), text=text)
        held = self._dispatcher.holds.why(job)
        return Waiting(reason=held[0], text=held[1]) if held else None

    def _busy_for(self, job: Job) -> Waiting:
        """Which slot is taken that it needs."""
        queue, slots, dispatcher = job.queue, self._slots, self._dispatcher
        if other := slots.holder_of_subject(job):
            text = f"job {other} of the same subject {job.subject_key!r} runs"
            if circle := self._waits.circle(job.job_id):
                return Waiting(reason="deadlock", text=f"{text}; {circle}")
            return Waiting(reason="subject_busy", text=text)
        if slots.busy(queue) >= dispatcher.limit(queue):
            text = f"queue {queue!r} runs {slots.busy(queue)} of {dispatcher.limit(queue)} jobs"
            return Waiting(reason="queue_full", text=text)
        task = self._apps.task(job.job_type) if job.execution_mode is ExecutionMode.IN_PROCESS else None
        if task is not None and task.concurrency and slots.running_of(task.name) >= task.concurrency:
            text = f"{slots.running_of(task.name)} of at most {task.concurrency} jobs of the task {task.name!r} run"
            return Waiting(reason="task_full", text=text)
        if slots.processes >= dispatcher.max_processes and not (task and task.is_async):
            text = f"{slots.processes} of max_processes={dispatcher.max_processes} commands and sync tasks run"
            return Waiting(reason="machine_full", text=text)
        if task is not None and not dispatcher.has_worker_for(task.name):
            return Waiting(reason="no_worker", text="all workers of its app are busy; another one is being started")
        return Waiting(reason="behind_others", text="its turn comes next, or others go before it")


def _not_due(job: Job) -> Waiting:
    if not job.attempts:
        return Waiting(reason="scheduled", text=f"waits for its time, run_at={job.run_at}")
    number = f"attempt {job.attempts + 1} of {max(job.max_attempts, job.attempts + 1)}"
    if job.error is None:
        return Waiting(reason="scheduled", text=f"it asked to run again at run_at={job.run_at}")
    return Waiting(reason="retry", text=f"{number} follows at run_at={job.run_at}; the last one: {job.error}")
