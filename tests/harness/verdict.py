"""The judgement over a run: what the jobs themselves have written down against what the daemon says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.harness.load import Planned

FINAL = {"DONE", "FAILED", "CANCELLED", "SUPERSEDED", "SKIPPED_TTL", "SKIPPED_DEADLINE"}
BROUGHT_DOWN = {"interrupted", "worker_crash", "quarantined"}


class Evidence:
    """The history that the jobs have written."""

    def __init__(self, folder: Path) -> None:
        path = folder / "history"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        self.overlaps = [name for mark, name in lines if mark == "overlap"]
        self.starts = Counter(name for mark, name in lines if mark == "start")
        self.ends = Counter(name for mark, name in lines if mark == "end")


class Verdict:
    """What is wrong, by kind; each list is empty if the promises hold."""

    def __init__(self, evidence: Evidence, jobs: Iterable[tuple[Planned, Mapping[str, Any] | None]]) -> None:
        self.evidence = evidence
        self.overlaps = evidence.overlaps
        self.lost: list[str] = []
        self.twice: list[str] = []
        self.brought_down = 0
        self.superseded = 0
        for planned, job in jobs:
            self._judge(planned, job)

    @property
    def findings(self) -> list[str]:
        return [
            *(f"lost: {text}" for text in self.lost),
            *(f"overlap: {name}" for name in self.overlaps),
            *(f"started twice: {name}" for name in self.twice),
        ]

    def _judge(self, planned: Planned, job: Mapping[str, Any] | None) -> None:
        name = planned.name
        if planned.once and self.evidence.starts[name] > 1:
            self.twice.append(name)
        if job is None:
            self.lost.append(f"{name} was accepted and is unknown")
        elif job["state"] not in FINAL:
            self.lost.append(f"{name} is {job['state']}")
        elif job["state"] == "DONE":
            if not self.evidence.ends[name]:
                self.lost.append(f"{name} is DONE and has never ended")
        elif job["state"] == planned.also:
            return
        elif job["state"] == "SUPERSEDED" and planned.on_duplicate == "supersede":
            self.superseded += 1
        elif job["state"] == "FAILED" and job["end_cause"] in BROUGHT_DOWN and self._may_fail(planned, job):
            self.brought_down += 1
        else:
            self.lost.append(f"{name} is {job['state']}/{job['end_cause']}: {job.get('error')}")

    @staticmethod
    def _may_fail(planned: Planned, job: Mapping[str, Any]) -> bool:
        """A job that may be started again is given up only when its budget of crashes or interruptions is spent."""
        return planned.once or (
            job["end_cause"] == "quarantined" and (job["crashes"] >= 3 or job["interruptions"] > 20)
        )
