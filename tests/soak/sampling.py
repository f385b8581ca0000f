"""What a home and its processes hold, looked at from outside, again and again."""

from __future__ import annotations

import csv
import http.client
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.daemon.rig import Daemon
from tests.harness.processes import by_kind

KINDS = ("daemon", "launcher", "shim", "worker")
METRICS = ("descriptors", "threads", "rss_kb", "pss_kb")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGESIZE") // 1024


class ProcessSample(NamedTuple):
    kind: str
    pid: int
    started: int  # in clock ticks since the boot: pids are used again
    descriptors: int
    threads: int
    rss_kb: int
    pss_kb: int
    cpu_s: float


class HomeSample(NamedTuple):
    """Sums over the processes by kind (`shim_pss_kb`), and what the home holds. None where no daemon answered."""

    seconds: float
    values: dict[str, float | None]


class Sampler(threading.Thread):
    """Looks every `interval_s`, and writes what it sees to two files of comma-separated values in `folder`."""

    def __init__(self, daemon: Daemon, folder: Path, clock: Callable[[], float], interval_s: float) -> None:
        super().__init__(name="sampler", daemon=True)
        self.processes: list[tuple[float, ProcessSample]] = []
        self.homes: list[HomeSample] = []
        self.failure: BaseException | None = None
        self._daemon = daemon
        self._folder = folder
        self._clock = clock
        self._interval_s = interval_s
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:  # told by `finish`
            self.failure = error

    def finish(self) -> None:
        self._ended.set()
        self.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        names = home_metrics()
        with (self._folder / "processes.csv").open("w") as each, (self._folder / "home.csv").open("w") as home:
            rows, sums = csv.writer(each), csv.writer(home)
            rows.writerow(("seconds", *ProcessSample._fields))
            sums.writerow(("seconds", *names))
            while not self._ended.wait(self._interval_s):
                now = self._clock()
                found = list(self._look_at_processes())
                self.processes += [(now, one) for one in found]
                rows.writerows((f"{now:.2f}", *one) for one in found)
                values = {**_sums(found), **_held(self._daemon.home), **self._told()}
                self.homes.append(HomeSample(now, values))
                sums.writerow((f"{now:.2f}", *(values[name] for name in names)))
                each.flush()
                home.flush()

    def _look_at_processes(self) -> Iterator[ProcessSample]:
        for kind, pids in by_kind(self._daemon.home).items():
            for pid in pids if kind in KINDS else ():
                with suppress(OSError):  # it is gone
                    yield look_at(kind, pid)

    def _told(self) -> dict[str, float | None]:
        """Without waiting for a daemon that has other troubles: the next look is due."""
        connection = self._daemon.connection(timeout=_ANSWER_S)
        try:
            connection.request("POST", "/rpc", _STATS, {"content-type": "application/json"})
            answer: dict[str, Any] = json.loads(connection.getresponse().read()).get("result", {})
        except (OSError, http.client.HTTPException, ValueError):
            return dict.fromkeys(_TOLD)
        finally:
            connection.close()
        return {name: answer.get(field) for name, field in _TOLD.items()}


_TOLD = {"rows": "total_jobs", "queued": "queued_jobs", "running": "running_jobs"}
_STATS = b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1"}'
_ANSWER_S = 0.5
_HELD = ("wal_bytes", "database_bytes", "disk_bytes", "attempt_folders")


def home_metrics() -> list[str]:
    sums = [f"{kind}_{metric}" for kind in KINDS for metric in ("processes", *METRICS, "cpu_s")]
    return [*sums, *_HELD, *_TOLD]


def look_at(kind: str, pid: int) -> ProcessSample:
    """Raises OSError for a process that is gone."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pss = 0
    with Path(f"/proc/{pid}/smaps_rollup").open() as lines:
        for line in lines:
            if line.startswith("Pss:"):
                pss = int(line.split()[1])
    return ProcessSample(
        kind=kind,
        pid=pid,
        started=int(stat[19]),
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(stat[17]),
        rss_kb=int(stat[21]) * _PAGE_KB,
        pss_kb=pss,
        cpu_s=(int(stat[11]) + int(stat[12])) / _TICKS,
    )


def _sums(found: list[ProcessSample]) -> dict[str, float | None]:
    sums: dict[str, float | None] = {}
    for kind in KINDS:
        some = [one for one in found if one.kind == kind]
        sums[f"{kind}_processes"] = len(some)
        for metric in (*METRICS, "cpu_s"):
            sums[f"{kind}_{metric}"] = round(sum(getattr(one, metric) for one in some), 2)
    return sums


def _held(home: Path) -> dict[str, float | None]:
    blocks = 0
    for folder, _, files in os.walk(home):
        for name in files:
            with suppress(FileNotFoundError):
                blocks += os.lstat(os.path.join(folder, name)).st_blocks
    return {
        "wal_bytes": _size(home / "meta.db-wal"),
        "database_bytes": _size(home / "meta.db"),
        "disk_bytes": blocks * 512,
        "attempt_folders": sum(not name.startswith((".", "worker-")) for name in os.listdir(home / "attempts")),
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
