"""The persistent counters: kept in the database, so they go on over restarts. One name, in the API and everywhere."""

from __future__ import annotations

from typing import Final

ORPHANED_JOBS: Final = "recovery.orphaned_jobs"  # found running that a former daemon left
ZOMBIES_CLEANED: Final = "recovery.zombies_cleaned"  # processes killed that a dead process had left behind
RETRY_COUNT: Final = "worker.retry_count"  # attempts that were followed by a retry
LOOP_STALLS: Final = "daemon.loop_stalls"  # times the event loop did not turn for a second
CPU_THROTTLE_EVENTS: Final = "system.cpu_throttle_events"  # how often background work was paused

NAMES: Final = (ORPHANED_JOBS, ZOMBIES_CLEANED, RETRY_COUNT, LOOP_STALLS, CPU_THROTTLE_EVENTS)
