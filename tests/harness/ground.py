"""A home with a test build in it: its daemon is revived when it has died, and asked again what it did not answer."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.daemon.rig import Daemon, Json, RpcFailed, eventually
from tests.harness.books import contradictions
from tests.harness.load import ROOT, Planned, params, write_apps
from tests.harness.points import ENV_PLAN, Plan
from tests.harness.processes import by_kind, kind_of_pid
from tests.harness.verdict import FINAL, Evidence, Verdict

_UNANSWERED = (OSError, http.client.HTTPException, ValueError)
_SETTLED_S = 30.0
_AT_ONCE = 200
_STARTS = 5  # more than a plan kills in a row
NOT_FOUND = 4001
KEPT = 80  # finished jobs; more than a scene has


class TestBuild(Daemon):
    __test__ = False
    entry = ("tests.harness.build", "daemon")

    def __init__(self, home: Path, plan: Plan, **env: str) -> None:
        super().__init__(home, **{ENV_PLAN: plan.folder, "PYTHONPATH": str(ROOT), **env})


class Ground:
    """`folder` is new; the jobs write their evidence there. `build` may be the daemon as it is shipped."""

    def __init__(self, folder: Path, mutations: Iterable[str] = (), build: type[Daemon] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.home = folder / "home"
        self.plan = Plan(str(folder / "plan"))
        self.plan.prepare()
        (folder / "plan" / "mutations").write_text(" ".join(mutations))
        write_apps(self.home)
        limits = {"SEMANTICA_MAX_PROCESSES": "12", "SEMANTICA_RECOVERY_WINDOW_MS": "200"}
        if build is not None:
            self.daemon = build(self.home, **limits)
        else:
            settings = self.home / ".config" / "semtask" / "config.toml"
            settings.parent.mkdir(parents=True)
            settings.write_text(f"max_finished_jobs = {KEPT}\n")
            self.daemon = TestBuild(self.home, self.plan, **limits)
        self.deaths = 0
        self.patience_s = 10.0  # for what an ended job may leave for a moment
        self.jobs: dict[str, tuple[Planned, str]] = {}  # by name

    # --- the daemon ---------------------------------------------------------------------------------------------------

    def revive(self) -> None:
        """Start the daemon if it does not run, again if it dies in its start. Raises if it never starts."""
        starts = 0
        while self.daemon.process is None or self.daemon.process.poll() is not None:
            if self.daemon.process is not None:
                self.deaths += 1
            starts += 1
            try:
                self.daemon.start()
            except AssertionError:
                if self.daemon.process is None or self.daemon.process.poll() is None or starts == _STARTS:
                    raise

    def restart(self) -> None:
        self.daemon.kill()
        self.revive()

    def call(self, method: str, **given: Any) -> Any:
        """Until there is an answer."""
        while True:
            self.revive()
            try:
                return self.daemon.rpc(method, **given)
            except RpcFailed:
                raise
            except _UNANSWERED:
                continue

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def enqueue(self, *jobs: Planned) -> list[str]:
        """In one transaction; their ids."""
        answer = self.call("dev.enqueue_many.v1", jobs=[params(self.folder, job) for job in jobs])
        ids = [one["job_id"] for one in answer["jobs"]]
        self.jobs |= {job.name: (job, job_id) for job, job_id in zip(jobs, ids, strict=True)}
        return ids

    def job(self, job_id: str) -> Json:
        return dict(self.call("dev.get_job.v1", job_id=job_id))

    def await_start(self, *jobs: Planned) -> None:
        """Until each of them has started, or ended: one that may start only once may end without."""
        names = [job.name for job in jobs]

        def begun() -> bool:
            starts = Evidence(self.folder).starts
            missing = [self.jobs[name][1] for name in names if not starts[name]]
            return not missing or all(self.job(job_id)["state"] in FINAL for job_id in missing)

        self.until(begun, f"{names} have started")

    def until(self, condition: Callable[[], Any], what: str, within: float = _SETTLED_S) -> None:
        """Wait for a condition while the daemon is revived."""

        def holds() -> Any:
            self.revive()
            try:
                return condition()
            except _UNANSWERED:
                return False

        eventually(holds, within=within, what=what)

    def settle(self, within: float = _SETTLED_S, enough: Callable[[], bool] = lambda: False) -> dict[str, Json]:
        """Wait until all jobs of this case have ended, or that is enough; the ended jobs by name."""
        wanted = dict(self.jobs)
        ended: dict[str, Json] = {}
        end = time.monotonic() + within
        while wanted and not enough() and time.monotonic() < end:
            self.revive()
            some = list(wanted)[:_AT_ONCE]
            try:
                ids = [wanted[name][1] for name in some]
                jobs = self.daemon.rpc("dev.wait.v1", job_ids=ids, timeout_ms=500)["jobs"]
            except RpcFailed as error:
                if error.code != NOT_FOUND:
                    raise
                wanted = {name: known for name, known in wanted.items() if name not in some or self._knows(known[1])}
                continue
            except _UNANSWERED:
                continue
            for name, job in zip(some, jobs, strict=True):
                if job["state"] in FINAL:
                    ended[name] = job
                    del wanted[name]
        return ended

    def _knows(self, job_id: str) -> bool:
        try:
            self.job(job_id)
        except RpcFailed as error:
            if error.code != NOT_FOUND:
                raise
            return False
        return True

    def clear(self) -> None:
        """The next case begins."""
        self.jobs.clear()

    # --- the judgement ------------------------------------------------------------------------------------------------

    def findings(self, ended: dict[str, Json]) -> list[str]:
        """What is wrong after all jobs of this case have ended."""
        found = self.verdict(ended).findings + contradictions(self.home / "meta.db")
        return found + [f"left: {what}" for what in self._left()]

    def verdict(self, ended: dict[str, Json]) -> Verdict:
        jobs = [(planned, ended.get(name)) for name, (planned, _) in self.jobs.items()]
        return Verdict(Evidence(self.folder), jobs)

    def _left(self) -> list[str]:
        """Processes and folders of ended jobs."""
        left: list[str] = []

        def nothing() -> bool:
            self.revive()
            left[:] = self._processes() + self._folders()
            return not left

        try:
            eventually(nothing, within=self.patience_s)
        except AssertionError:
            return left
        return []

    def _processes(self) -> list[str]:
        found = by_kind(self.home)
        left = [f"{kind} {pid}" for kind in ("other",) for pid in found[kind]]
        extra = len(found["shim"]) - len(found["worker"])
        return left + ([f"{extra} shims too many"] if extra > 0 else [])

    def _folders(self) -> list[str]:
        names = os.listdir(self.home / "attempts")
        return [name for name in names if not name.startswith((".", "worker-"))]


def shims_of(ground: Ground, name: str) -> list[int]:
    """The shims that hold a folder with such a name, a pattern, as they have written down themselves."""
    found = []
    for started in (ground.home / "attempts").glob(f"{name}/started"):
        with suppress(FileNotFoundError):
            who, *mark = started.read_text().split("\n")[0].split()
            if who == "shim" and kind_of_pid(pid := int(mark[2])) == "shim":
                found.append(pid)
    return found
