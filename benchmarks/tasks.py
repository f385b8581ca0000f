"""Python tasks from end to end with the defaults, beside the peers and this machine's limits in the same run.

python -m benchmarks.tasks [--rounds 3] [--no-peers] [--only drain,sustained,start,enqueue,naps,crash,import]

Figures move from machine to machine and from hour to hour: the ratios count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.daemon import commit_seconds, echo_seconds
from benchmarks.peers import probe
from benchmarks.peers.__main__ import measure_all
from benchmarks.peers.measure import Figures, drain_once, percentile
from benchmarks.running import cpu_seconds, daemon, helpers_of, pss_kb
from semtask import Client
from semtask.model.app import App

ROOT = Path(__file__).resolve().parents[1]
DRAINED = 20_000
SUSTAINED = 20_000
SINGLES = 1000
STARTS = 500
NAPS = 1000
RIVALS = 2  # so many of the fastest peers are measured by turns with us
ASYNC_SLOTS = 100  # an async job holds a slot of its own; a sync worker holds one with all its work ahead
CRASHES = 20
SPARE_S = 1.0  # how long a task runs before it crashes, so that the spare is warm
IMPORT_S = 0.2
LIMIT_S = 120.0

_APP_MODULE = """
import os, sys, time
sys.path.insert(0, {root!r})
os.environ[{variable!r}] = {marks!r}
time.sleep({import_s})
from benchmarks.task_app import app
"""


@dataclass(frozen=True)
class Row:
    """A line of the table. `reached` is None where nothing was to be reached."""

    what: str
    measured: str
    limit: str = ""
    reached: bool | None = None


class Engine:
    """A daemon of our own with the app of the benchmarks, and what its tasks left."""

    def __init__(self, client: Client, home: Path, pid: int, marks: Path) -> None:
        self.client, self.pid, self.marks = client, pid, marks
        self._home = home

    def produce(self, kind: str, count: int) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.task_producer", kind, str(count)]
        env = {**os.environ, "SEMANTICA_HOME": str(self._home), "SEMANTICA_AUTOSTART": "off"}
        env[probe.FOLDER] = str(self.marks)
        output = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True, timeout=LIMIT_S).stdout
        figures: dict[str, float] = json.loads(output)
        return figures

    def wait_ticks(self, count: int) -> probe.Ticks:
        """Until so many jobs have run in all. It asks nobody."""
        _until(lambda: probe.read_ticks(self.marks).count >= count, f"{count} jobs have run")
        return probe.read_ticks(self.marks)

    def wait_done(self, count: int) -> float:
        """When the daemon said that so many jobs are DONE, and stored."""
        _until(lambda: self.client.stats().done_jobs >= count, f"{count} jobs are DONE")
        return time.monotonic()

    def warm_up(self) -> None:
        self.client.enqueue("benchmarks.task_app:noop", {})
        self.wait_done(1)
        time.sleep(1.0)

    def starts_ms(self) -> list[float]:
        return [(now - sent) * 1000 for sent, now in probe.read_marks(self.marks, "starts")]


@contextmanager
def engine(import_s: float = 0.0) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="semtask-bench-") as name:
        folder = Path(name)
        marks = folder / "marks"
        marks.mkdir()
        module = _APP_MODULE.format(root=str(ROOT), variable=probe.FOLDER, marks=str(marks), import_s=import_s)
        (folder / "measured.py").write_text(module)
        app = App(name="measured", module="measured:app", directory=str(folder), python=sys.executable)
        with daemon([app]) as (client, home, pid):
            client.pause_queue("unused")  # where producers connect
            yield Engine(client, home, pid, marks)


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {LIMIT_S:.0f} s: {what}")
        time.sleep(0.01)


# --- what is measured ---


def drain(rounds: int, peers: list[Figures]) -> list[Row]:
    """Everything is queued before the queue is resumed. From the first line of the first job to the last one DONE."""
    fastest = sorted(peers, key=lambda row: row.drain, reverse=True)[:RIVALS]
    ours: list[_Drained] = []
    theirs: dict[str, list[float]] = {row.name: [] for row in fastest}
    for _ in range(rounds):  # by turns, as the machine is not the same from minute to minute
        ours.append(_drain("batches", None))
        for name, rates in theirs.items():
            rates.append(drain_once(name))
    rate = statistics.median(one.rate for one in ours)
    rows = [Row(_drain_name("sync", ours), _drain_figures(ours), "10000/s", rate >= 10_000)]
    for name, rates in theirs.items():
        ratio = rate / statistics.median(rates)
        rows.append(
            Row(f"  against {name}", f"{ratio:.2f} times {statistics.median(rates):.0f}/s", "2.0 times", ratio >= 2)
        )
    if not theirs:
        rows.append(Row("  against the fastest peer", "no peer was measured", "2.0 times"))
    by_loop = [_drain("async_batches", ASYNC_SLOTS) for _ in range(rounds)]
    return [*rows, Row(_drain_name("async", by_loop), _drain_figures(by_loop))]


@dataclass(frozen=True)
class _Drained:
    """Jobs per second, the slots of the queue, and the CPU that the daemon took for a job."""

    rate: float
    slots: int
    cpu_us: float


def _drain(kind: str, slots: int | None) -> _Drained:
    with engine() as run:
        if slots is not None:
            run.client.configure_queue("default", concurrency=slots)
        queue = run.client.pause_queue("default")
        run.produce(kind, DRAINED)
        cpu = cpu_seconds(run.pid)
        run.client.resume_queue("default")
        first = run.wait_ticks(DRAINED).first
        rate = DRAINED / (run.wait_done(DRAINED) - first)
        return _Drained(rate, queue.concurrency, (cpu_seconds(run.pid) - cpu) / DRAINED * 1e6)


def _drain_name(kind: str, rounds: list[_Drained]) -> str:
    return f"drain of {DRAINED} {kind} no-ops, queue of {rounds[0].slots}"


def _drain_figures(rounds: list[_Drained]) -> str:
    rates = [one.rate for one in rounds]
    cpu = statistics.median(one.cpu_us for one in rounds)
    return f"{statistics.median(rates):.0f}/s ({_span(rates)}; daemon {cpu:.0f} us of CPU a job)"


def sustained(rounds: int, _peers: list[Figures]) -> list[Row]:
    """One producer process while the workers run. From its first call to the last job DONE."""
    rows = []
    for kind, count, what, goal in (
        ("batches", SUSTAINED, "batches of 100", 6000),
        ("gathered", SUSTAINED // 4, "aenqueue, 50 at once", None),
        ("singles", SUSTAINED // 10, "one by one", None),
    ):
        rates = []
        for _ in range(rounds):
            with engine() as run:
                run.warm_up()
                began = run.produce(kind, count)["began"]
                rates.append(count / (run.wait_done(1 + count) - began))
        rate = statistics.median(rates)
        rows.append(
            Row(
                f"one producer and workers, {what}",
                f"{rate:.0f}/s ({_span(rates)})",
                f"{goal}/s" if goal else "",
                rate >= goal if goal else None,
            )
        )
    return rows


def start(rounds: int, _peers: list[Figures]) -> list[Row]:
    """On an idle machine, with fsync: from the call of enqueue to the first line of the function."""
    starts = []
    for _ in range(rounds):
        with engine() as run:
            run.warm_up()
            run.produce("stamps", STARTS)
            starts += run.starts_ms()
    p50, p99 = statistics.median(starts), percentile(starts, 0.99)
    return [
        Row("enqueue to start, p50", f"{p50:.2f} ms ({len(starts)} starts)", "2 ms", p50 < 2),
        Row("enqueue to start, p99", f"{p99:.2f} ms (worst {max(starts):.2f} ms)", "8 ms", p99 < 8),
    ]


def enqueue(rounds: int, _peers: list[Figures]) -> list[Row]:
    """One synchronous client, nothing runs. Against a bare echo plus one FULL commit of one row, by turns."""
    ratios, ours = [], []
    for _ in range(rounds):
        with engine() as run:
            run.client.pause_queue("default")
            ours.append(run.produce("singles", SINGLES)["call_s"])
        ratios.append((echo_seconds() + commit_seconds()) / ours[-1])
    ratio = statistics.median(ratios)
    measured = f"{ratio:.2f} ({1 / statistics.median(ours):.0f}/s, {_span(ratios, 2)})"
    return [Row("task.enqueue, share of echo + commit", measured, "0.45", ratio >= 0.45)]


def naps(_rounds: int, _peers: list[Figures]) -> list[Row]:
    """Async tasks that sleep: all of them have begun before the first one ends."""
    with engine() as run:
        run.client.configure_queue("default", concurrency=NAPS)
        run.warm_up()
        before = _memory_mb(run.pid)
        began = run.produce("naps", NAPS)["began"]
        _until(lambda: len(probe.read_marks(run.marks, "naps.began")) >= NAPS, "all naps have begun")
        more = _memory_mb(run.pid) - before
        workers = sum(worker.kind == "async" for worker in run.client.list_workers())
        run.wait_done(1 + NAPS)
        last_began = max(now for (now,) in probe.read_marks(run.marks, "naps.began"))
        first_ended = min(now for (now,) in probe.read_marks(run.marks, "naps.ended"))
    at_once = last_began < first_ended
    measured = f"{'all' if at_once else 'NOT all'} at once after {last_began - began:.2f} s in {workers} workers"
    return [Row(f"{NAPS} sleeping async tasks", f"{measured}, {more:.0f} MB more", "at once", at_once)]


def crash(_rounds: int, _peers: list[Figures]) -> list[Row]:
    """A queue of one: from the death of a worker to the first line of the job behind it."""
    with engine() as run:
        run.client.configure_queue("crash", concurrency=1)
        run.warm_up()
        for number in range(CRASHES):
            jobs = [("crash", {"seconds": SPARE_S}), ("after_crash", {})]
            run.client.enqueue_many(
                [{"job_type": f"benchmarks.task_app:{task}", "queue": "crash", "payload": data} for task, data in jobs]
            )
            run.wait_done(2 + number)
        died, replaced = (probe.read_marks(run.marks, name) for name in ("crashed", "replaced"))
    gaps = [(next_one - dead) * 1000 for (dead,), (next_one,) in zip(died, replaced, strict=True)]
    measured = f"{statistics.median(gaps):.0f} ms (worst of {len(gaps)}: {max(gaps):.0f} ms)"
    return [Row("crash to the next job, with a spare", measured, "150 ms", max(gaps) < 150)]


def imports(_rounds: int, _peers: list[Figures]) -> list[Row]:
    """An app that takes 200 ms to import: which jobs wait for it, from the start of the daemon on."""
    with engine(import_s=IMPORT_S) as run:
        run.produce("stamps", STARTS)
        starts = run.starts_ms()
    waited = sum(each > IMPORT_S * 500 for each in starts)
    measured = f"{waited} of {len(starts)} jobs waited; first {starts[0]:.0f} ms, worst other {max(starts[1:]):.1f} ms"
    return [Row("an import of 200 ms is paid", measured, "at most once", waited <= 1)]


def _memory_mb(pid: int) -> float:
    return sum(map(pss_kb, [pid, *helpers_of(pid)])) / 1024


def _span(values: list[float], digits: int = 0) -> str:
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


PARTS: dict[str, Callable[[int, list[Figures]], list[Row]]] = {
    "drain": drain,
    "sustained": sustained,
    "start": start,
    "enqueue": enqueue,
    "naps": naps,
    "crash": crash,
    "import": imports,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="do not install and measure the peers")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (default: all)")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"there is no part {' or '.join(unknown)}; there are {', '.join(PARTS)}")
    peers = [] if options.no_peers or "drain" not in parts else measure_all([], 1, 1.0)
    rows = []
    for name in parts:
        rows += PARTS[name](options.rounds, peers)
        print(f"  measured: {name}", file=sys.stderr)
    for row in rows:
        verdict = {True: "reached", False: "MISSED", None: ""}[row.reached]
        print(f"{row.what:48} {row.measured:62} {row.limit:13} {verdict}")


if __name__ == "__main__":
    main()
