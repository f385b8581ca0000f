"""What attempts leave on disk: folders, logs and artifacts, found and removed without asking the database."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.evidence import crash_exception, end_of_log
from semtask.executors.output import STREAMS, LogFiles

log = logging.getLogger("semtask.files")

Key = tuple[str, int]  # job_id, claim_no

_JOB = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ATTEMPT = re.compile(rf"({_JOB.pattern})\.([1-9][0-9]{{0,9}})")
_LOG = re.compile(_ATTEMPT.pattern + r"\.(?:log|err)")


class AttemptFiles:
    """All methods block for as long as the file system takes. What bears no name of ours is left alone."""

    def __init__(self, attempts: AttemptsDir, logs: LogFiles, artifacts_dir: str) -> None:
        self._attempts = attempts
        self._logs = logs
        self._artifacts_dir = artifacts_dir

    def folders(self) -> set[Key]:
        """The attempts that have a folder."""
        return _keys(_ATTEMPT, self._attempts.path)

    def remove_folder(self, job_id: str, claim_no: int) -> bool:
        """Remove the folder of a finished attempt; False if a process still holds it."""
        return self._attempts.attempt(job_id, claim_no).remove_unlocked()

    def remove_empty_logs(self, job_id: str, claim_no: int) -> None:
        """Remove the logs of an ended attempt that wrote nothing: a log that is not there reads as empty."""
        for stream in STREAMS:
            path = self._logs.name(job_id, claim_no, stream)
            with suppress(FileNotFoundError):
                if os.stat(path, follow_symlinks=False).st_size == 0:
                    os.unlink(path)

    def evidence(self, job_id: str, claim_no: int, error: str) -> str | None:
        """JSON text for the exception of a job that goes to quarantine; None if nothing is known.

        To be asked for before `remove_folder`: the record of a command says how much memory it had.
        """
        parts = [end_of_log(self._logs.name(job_id, claim_no, "stdout"))]
        record = self._attempts.attempt(job_id, claim_no).record()
        if record is not None and record.max_rss_kib:
            parts.append(f"Most memory of the command: {record.max_rss_kib / 1024:.0f} MiB")
        known = "\n\n".join(filter(None, parts))
        return crash_exception(error, known, kind="Quarantined") if known else None

    def remove_logs(self, jobs: Iterable[Key]) -> None:
        """Remove all logs of these jobs, given with their last claim_no. What cannot be removed is logged."""
        for job_id, last in jobs:
            for claim_no in range(1, last + 1):
                try:
                    self._logs.remove(job_id, claim_no)
                except OSError as error:
                    log.warning("a log of a deleted job stays: %s", error, extra={"job_id": job_id})

    def remove_artifacts(self, job_ids: Iterable[str]) -> int:
        """Remove all files that these jobs kept; how many there were. What cannot be removed is logged."""
        removed = 0
        for job_id in job_ids:
            folder = os.path.join(self._artifacts_dir, job_id)
            try:
                names = os.listdir(folder)
                shutil.rmtree(folder)
                removed += len(names)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("artifacts of a deleted job stay: %s", error, extra={"job_id": job_id})
        return removed

    def with_artifacts(self) -> list[str]:
        """The ids of the jobs that have a folder of artifacts."""
        with suppress(FileNotFoundError):
            return [name for name in os.listdir(self._artifacts_dir) if _JOB.fullmatch(name)]
        return []

    def log_folders(self) -> list[str]:
        """The paths of the folders that logs are spread over."""
        with suppress(FileNotFoundError), os.scandir(self._logs.folder) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        return []

    def logs_in(self, folder: str) -> set[Key]:
        """The attempts that have a log in one of the `log_folders`."""
        return _keys(_LOG, folder)


def _keys(pattern: re.Pattern[str], folder: str) -> set[Key]:
    names = map(pattern.fullmatch, os.listdir(folder))
    return {(name[1], int(name[2])) for name in names if name}
