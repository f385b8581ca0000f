"""Index a source tree with hundreds of durable jobs, Python tasks and commands side by side: parse the Python files,
collect the words of all files, join it all to a search index. One task dies of a segmentation fault on purpose, one is
flaky, and the daemon is killed with -9 in the middle. Then prove that nothing was lost and nothing ran twice at once.

usage: python -m demo [--dir FOLDER]        (make demo DIR=FOLDER)
"""

from __future__ import annotations

import argparse
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

from demo.app import Parsed, app, flaky, join, parse, segfault
from demo.witness import history
from demo.words import words_of
from semtask import Client, CompletedCommand, JobHandle
from semtask.protocol.admin import Stats

ROOT = Path(__file__).resolve().parents[1]
SEARCH = ROOT / "demo" / "search.py"
JOBS_OF_A_KIND = 200
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
    os.environ["SEMANTICA_HOME"] = str(work / "home")
    try:
        return run(source, work)
    finally:
        semtask("down", "--now", check=False)
        for name in ("home", "locks", "lists", "words", "symbols"):
            shutil.rmtree(work / name, ignore_errors=True)


def semtask(*words: str, check: bool = True) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "semtask", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if check and result.returncode:
        sys.exit(f"demo: semtask {' '.join(words)}: {result.stderr or result.stdout}")


def run(source: Path, work: Path) -> int:
    began = time.monotonic()
    texts, pythons = plan(source, work)
    if not texts:
        print(f"demo: there are no source files below {source}")
        return 1
    home = work / "home"
    print(f"{sum(map(len, texts.values()))} files of {source}, home {home}")
    semtask("up", "--app", "demo.app:app")
    with Client(home) as client:
        jobs = Jobs(work, texts, pythons)
        total = len(jobs.ids)
        print(f"{total} jobs stored, {len(jobs.words)} commands and {total - len(jobs.words)} calls of Python tasks:")
        print("from here on they survive anything")
        first_pid = client.stats().pid
        watch(client, total, until=KILL_AT)
        os.kill(first_pid, signal.SIGKILL)
        print(f"\nkill -9 {first_pid}: the daemon is gone")
        # The next request finds nobody and starts a new daemon.
        second = client.stats()
        counted = {name: count for name, count in second.counters.items() if count}
        print(f"a new daemon (pid {second.pid}) goes on: {counted}")
        watch(client, total, until=1.0)
        sound = report(client, jobs, work)
        word, path = rare_word(jobs.files)
        sound &= searchable(jobs, work, source, word, path)
    print(f"\n{time.monotonic() - began:.1f} s in all. Search the index:\n")
    print(f"  {os.path.relpath(sys.executable)} {os.path.relpath(SEARCH)} {work / 'index.db'} {word}\n")
    return 0 if sound else 1


def plan(source: Path, work: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Name of the job -> its files: of all texts for the commands, of the Python files for the tasks."""
    for name in ("locks", "lists", "words", "symbols"):
        (work / name).mkdir()
    files = sorted(
        path
        for path in source.rglob("*")
        if path.suffix in TEXT_SUFFIXES and path.is_file() and "site-packages" not in path.parts
    )
    return split("words", files), split("parse", [path for path in files if path.suffix == ".py"])


def split(kind: str, files: list[Path]) -> dict[str, list[Path]]:
    size = max(1, -(-len(files) // JOBS_OF_A_KIND))
    return {f"{kind}-{n:04}": files[start : start + size] for n, start in enumerate(range(0, len(files), size))}


class Jobs:
    """All jobs of the demo, enqueued: the two that go wrong stand in the middle of those that must not notice."""

    def __init__(self, work: Path, texts: dict[str, list[Path]], pythons: dict[str, list[Path]]) -> None:
        self.names = [*texts, *pythons]
        self.files = [path for part in texts.values() for path in part]
        calls = [(name, work, files) for name, files in pythons.items()]
        middle = len(calls) // 4
        self.parse: list[JobHandle[Parsed]] = parse.enqueue_many(calls[:middle])
        self.segfault = segfault.enqueue(work)
        self.flaky = flaky.enqueue(work)
        self.parse += parse.enqueue_many(calls[middle:])
        self.words = [self._command(name, work, files) for name, files in texts.items()]

    @staticmethod
    def _command(name: str, work: Path, files: list[Path]) -> JobHandle[CompletedCommand]:
        listed = work / "lists" / name  # too long for a command line
        listed.write_text("\n".join(map(str, files)))
        program = [sys.executable, "-E", "-s", "-S", "-m", "demo.words"]
        return app.run(
            *program,
            name,
            str(work),
            str(listed),
            queue="words",
            cwd=str(ROOT),
            on_interrupt="requeue",
            idempotency_key=name,
        )

    @property
    def ids(self) -> list[str]:
        return [job.id for job in (*self.parse, self.segfault, self.flaky, *self.words)]


def watch(client: Client, total: int, *, until: float) -> None:
    """Show the progress until this part of all jobs has ended."""
    while True:
        stats = client.stats()
        ended = stats.total_jobs - stats.scheduled_jobs - stats.queued_jobs - stats.running_jobs
        show(ended, total, stats)
        if ended >= until * total:
            return
        time.sleep(0.1)


def show(ended: int, total: int, stats: Stats) -> None:
    width = 40
    filled = width * ended // total
    line = f"[{'#' * filled}{'.' * (width - filled)}] {ended}/{total} ended, {stats.running_jobs} running"
    if sys.stdout.isatty():
        print(f"\r{line} ", end="\n" if ended == total else "", flush=True)
    elif ended == total:
        print(line)


def report(client: Client, jobs: Jobs, work: Path) -> bool:
    """What the engine says, and what the jobs' own history says."""
    views = {view.job_id: view for view in client.wait(jobs.ids).jobs}
    crashed, flaky_one = views.pop(jobs.segfault.id), views[jobs.flaky.id]
    states = Counter(str(view.state) for view in views.values())
    interrupted = sum(view.interruptions > 0 for view in views.values())
    marks = Counter(mark for mark, _ in history(work))
    ended = {name for mark, name in history(work) if mark == "end"}
    lost = [name for name in jobs.names if name not in ended]
    print(f"\njobs by state           {dict(states)}, and the one that crashes on purpose")
    print(f"the segmentation fault  {crashed.state}, {crashed.end_cause}: {crashed.error}")
    print(f"the flaky task          {flaky_one.state} after {flaky_one.attempts} attempts")
    print(f"interrupted by the kill {interrupted}, each run again from the start")
    print(f"lost                    {len(lost)}    (jobs whose end is not in their own history)")
    print(f"ran twice at once       {marks['overlap']}    (found by locks that the engine knows nothing of)")
    print(f"starts, ends            {marks['start']}, {marks['end']}")
    return (
        not lost
        and not marks["overlap"]
        and set(states) == {"DONE"}
        and (crashed.state, crashed.end_cause) == ("FAILED", "worker_crash")
        and flaky_one.failures == 2
    )


def searchable(jobs: Jobs, work: Path, source: Path, word: str, path: Path) -> bool:
    """Join the index in one more task, compare it with what the tasks returned, and find the file by its word."""
    index = join.enqueue(work, source).result(timeout=120)
    returned = [job.result(timeout=30) for job in jobs.parse]
    symbols = sum(each.symbols for each in returned)
    other = sum(not is_text(path) for path in jobs.files)
    print(f"index                   {index.files} files, {index.words} different words, {index.symbols} symbols")
    print(f"not in the index        {other} files that are no UTF-8 text")
    print(f"results of the tasks    {symbols} symbols in {sum(each.files for each in returned)} Python files")
    db = sqlite3.connect(index.path)
    found = [row[0] for row in db.execute("select path from words where word = ?", (word,))]
    db.close()
    there = os.path.relpath(path, source) in found
    print(f"a search for {word!r} finds {len(found)} files, {path.name} {'among them' if there else 'is MISSING'}")
    return symbols == index.symbols and there and index.files + other == len(jobs.files)


def is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def rare_word(files: list[Path]) -> tuple[str, Path]:
    """The longest word of the last file that has one."""
    return next((max(words, key=len), path) for path in reversed(files) if (words := words_of(path)))


if __name__ == "__main__":
    sys.exit(main())
