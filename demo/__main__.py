"""Index a source tree with hundreds of command jobs, kill the daemon with -9 in the middle, and prove that nothing
was lost and nothing ran twice at once.

usage: python -m demo [--dir FOLDER]        (make demo DIR=FOLDER)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

from msgspec import Raw

from semtask import Client
from semtask.model.job import ExecutionMode, OnInterrupt
from semtask.model.state import FINAL
from semtask.protocol.messages import EnqueueParams, JobView, Stats

HERE = Path(__file__).resolve().parent
JOBS = 400
KILL_AT = 0.4
TEXT_SUFFIXES = frozenset(
    {".py", ".pyi", ".c", ".h", ".rs", ".go", ".java", ".js", ".ts", ".md", ".rst", ".txt", ".toml", ".sh", ".sql"}
)


def main() -> int:
    parser = argparse.ArgumentParser(description="The demo of semtask: a durable index of a source tree.")
    parser.add_argument("--dir", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    source = parser.parse_args().dir.resolve()
    if not source.is_dir():
        sys.exit(f"demo: {source} is no folder")
    work = Path(tempfile.mkdtemp(prefix="semtask-demo-"))
    home = work / "home"
    os.environ["SEMANTICA_HOME"] = str(home)
    try:
        return run(source, work, home)
    finally:
        subprocess.run([sys.executable, "-m", "semtask", "down", "--now"], capture_output=True, check=False)
        for name in ("home", "lists", "locks", "shards"):
            shutil.rmtree(work / name, ignore_errors=True)


def run(source: Path, work: Path, home: Path) -> int:
    began = time.monotonic()
    batches = plan(source, work)
    if not batches:
        print(f"demo: there are no source files below {source}")
        return 1
    print(f"{sum(map(len, batches.values()))} files of {source}, {len(batches)} jobs, home {home}")
    with Client(home) as client:
        stored = client.enqueue_many([job_for(name, work) for name in batches])
        print(f"{len(stored)} jobs stored: from here on they survive anything")
        ids = [job.job_id for job in stored]
        first_pid = client.stats().pid
        watch(client, len(ids), until=KILL_AT)
        os.kill(first_pid, signal.SIGKILL)
        print(f"\nkill -9 {first_pid}: the daemon is gone")
        # The next request finds nobody and starts a new daemon.
        second = client.stats()
        print(f"a new daemon (pid {second.pid}) goes on: {second.counters}")
        watch(client, len(ids), until=1.0)
        jobs = [view for start in range(0, len(ids), 1000) for view in client.wait(ids[start : start + 1000]).jobs]
        sound = report(jobs, batches, work)
        index = build_index(work, source)
    print(f"\n{time.monotonic() - began:.1f} s in all. Search the index:\n")
    print(f"  {os.path.relpath(sys.executable)} {os.path.relpath(HERE / 'search.py')} {index} namedtuple\n")
    return 0 if sound else 1


def plan(source: Path, work: Path) -> dict[str, list[str]]:
    """name of the job -> its files; the lists are written to disk, as they are long."""
    files = sorted(
        str(path)
        for path in source.rglob("*")
        if path.suffix in TEXT_SUFFIXES and path.is_file() and "site-packages" not in path.parts
    )
    size = max(1, -(-len(files) // JOBS))
    for name in ("lists", "locks", "shards"):
        (work / name).mkdir()
    batches = {f"part-{n:04}": files[start : start + size] for n, start in enumerate(range(0, len(files), size))}
    for name, batch in batches.items():
        (work / "lists" / name).write_text("\n".join(batch))
    return batches


def job_for(name: str, work: Path) -> EnqueueParams:
    command = [sys.executable, "-I", "-S", str(HERE / "index_files.py"), name, str(work), str(work / "lists" / name)]
    payload = {"command": command[0], "args": command[1:]}
    return EnqueueParams(
        job_type="index",
        payload=Raw(json.dumps(payload).encode()),
        execution_mode=ExecutionMode.SUBPROCESS,
        on_interrupt=OnInterrupt.REQUEUE,
        idempotency_key=name,
    )


def watch(client: Client, total: int, *, until: float) -> None:
    """Show the progress until this part of all jobs has ended."""
    while True:
        stats = client.stats()
        ended = ended_jobs(stats)
        show(ended, total, stats)
        if ended >= until * total:
            return
        time.sleep(0.1)


def ended_jobs(stats: Stats) -> int:
    return stats.total_jobs - stats.scheduled_jobs - stats.queued_jobs - stats.running_jobs


def show(ended: int, total: int, stats: Stats) -> None:
    width = 40
    filled = width * ended // total
    line = f"[{'#' * filled}{'.' * (width - filled)}] {ended}/{total} ended, {stats.running_jobs} running"
    if sys.stdout.isatty():
        print(f"\r{line} ", end="\n" if ended == total else "", flush=True)
    elif ended == total:
        print(line)


def report(jobs: list[JobView], batches: dict[str, list[str]], work: Path) -> bool:
    """What the engine says, and what the jobs' own history says."""
    states = Counter(str(job.state) for job in jobs)
    history = [line.split() for line in (work / "history").read_text().splitlines()]
    marks = Counter(mark for mark, _ in history)
    ended = {name for mark, name in history if mark == "end"}
    interrupted = sum(job.interruptions > 0 for job in jobs)
    lost = len(batches) - len(ended)
    print(f"\njobs by state           {dict(states)}")
    print(f"interrupted by the kill {interrupted}, each run again from the start")
    print(f"lost                    {lost}    (jobs whose end is not in their own history)")
    print(f"ran twice at once       {marks['overlap']}    (found by locks that the engine knows nothing of)")
    print(f"starts, ends            {marks['start']}, {marks['end']}")
    return lost == 0 and marks["overlap"] == 0 and all(job.state in FINAL for job in jobs) and states["FAILED"] == 0


def build_index(work: Path, source: Path) -> Path:
    """Join the shards to one database."""
    index = work / "index.db"
    db = sqlite3.connect(index)
    db.execute("create table words(word text, path text, count int, first_line int)")
    db.execute("create table symbols(name text, path text, line int)")
    files = 0
    for shard in sorted((work / "shards").glob("*.json")):
        for entry in json.loads(shard.read_text()):
            files += 1
            path = os.path.relpath(entry["path"], source)
            rows = [(word, path, len(lines), lines[0]) for word, lines in entry["words"].items()]
            db.executemany("insert into words values (?, ?, ?, ?)", rows)
            db.executemany("insert into symbols values (?, ?, ?)", [(n, path, line) for n, line in entry["symbols"]])
    db.execute("create index by_word on words(word)")
    db.execute("create index by_name on symbols(name)")
    db.commit()
    words = db.execute("select count(distinct word) from words").fetchone()[0]
    db.close()
    print(f"index                   {files} files, {words} different words")
    return index


if __name__ == "__main__":
    sys.exit(main())
