"""What goes wrong in a test with the inline engine."""

from __future__ import annotations

from semtask.errors import SemtaskError
from semtask.model.job import ExecutionMode
from semtask.model.state import State
from semtask.protocol.jobs import JobView


class JobNotEnded(SemtaskError):
    """A test waited for a job that nothing would end: all that was due has run, and only the test moves the clock."""

    def __init__(self, job: JobView, now_ms: int) -> None:
        super().__init__(f"job {job.job_id} ({job.job_type}) would be waited for in vain: {_why(job, now_ms)}")
        self.job = job


def _why(job: JobView, now_ms: int) -> str:
    if job.execution_mode is ExecutionMode.SUBPROCESS:
        return "it is a command, and commands are not run inline; the fixture semantica_daemon runs them"
    if job.state is State.SCHEDULED and job.run_at is not None:
        seconds = (job.run_at - now_ms) / 1000
        last = f" after {job.error}" if job.error else ""
        return f"it runs in {seconds:g} s{last}, and the clock does not move by itself: semantica.advance({seconds:g})"
    return f"it is {job.state}{f', {job.waiting.text}' if job.waiting else ''}"
