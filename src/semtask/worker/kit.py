"""What both kinds of worker need."""

from __future__ import annotations

from dataclasses import dataclass

from semtask.protocol.frames import Setup
from semtask.tasks.registry import Registry
from semtask.worker.audit import Audit
from semtask.worker.capture import Capture
from semtask.worker.channel import Channel
from semtask.worker.hygiene import Hygiene
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
