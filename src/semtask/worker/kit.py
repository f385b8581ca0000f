"""What both kinds of worker need."""

from __future__ import annotations

from dataclasses import dataclass

from semtask.protocol.frames import Setup
from semtask.tasks.artifacts import ArtifactLimits
from semtask.tasks.context import JobContext
from semtask.tasks.registry import Registry
from semtask.worker.audit import Audit
from semtask.worker.capture import Capture
from semtask.worker.channel import Channel
from semtask.worker.exceptions import clean
from semtask.worker.hygiene import Hygiene
from semtask.worker.job_log import stamped, write_all
from semtask.worker.mark import Mark
from semtask.worker.results import Results


@dataclass(frozen=True)
class Kit:
    setup: Setup
    registry: Registry
    channel: Channel
    capture: Capture
    audit: Audit
    mark: Mark
    hygiene: Hygiene
    results: Results

    @property
    def artifact_limits(self) -> ArtifactLimits:
        setup = self.setup
        return ArtifactLimits(setup.max_artifact_bytes, setup.max_job_artifact_bytes, setup.max_job_artifacts)

    def warn(self, job: JobContext, text: str) -> None:
        """Write a warning to the log of a job, or to that of the worker where that cannot be written."""
        try:
            log = self.capture.log_of(job)
            log.flush()
            log.write("WARNING", clean(text))
        except OSError:  # a full disk, or another user
            write_all(self.capture.own_fd, stamped("WARNING", text))
