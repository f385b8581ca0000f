"""Tasks that do what a task can do wrong, and some that do not: the app of test_isolation.py."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from semtask import Semantica, current_job

app = Semantica()
task = app.task(queue="hostile")


@app.task(queue="beside")
def good(number: int) -> int:
    time.sleep(0.02)
    return number + 1


@app.task(queue="async")
async def good_async(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "ok"


@app.task(queue="hostile")
async def crash_async(after: float) -> None:
    await asyncio.sleep(after)
    os.abort()


@app.task(queue="hostile")
async def hang_async() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


@task
def exception() -> None:
    raise ValueError("no such thing")


@task
def system_exit() -> None:
    sys.exit(0)


@task
def keyboard_interrupt() -> None:
    raise KeyboardInterrupt


@task
def recursion() -> None:
    recursion()


@task
def memory_error() -> None:
    with Path("/proc/self/statm").open(encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


@task
def segfault() -> None:
    ctypes.string_at(0)


@task
def exit_0() -> None:
    os._exit(0)


@task
def abort() -> None:
    os.abort()


@task
def kill_9() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task
def hold_the_gil() -> None:
    print("begun", flush=True)
    sum(itertools.repeat(1))  # C code that looks neither for signals nor for other threads


@task
def endless_loop() -> None:
    print("begun", flush=True)
    while True:
        pass


@task
def leave_a_thread() -> str:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return "done"


@task
def pid_and_thread() -> int:
    leave_a_thread()
    return os.getpid()


@task
def fork() -> str:
    if os.fork() == 0:
        return "the child answers"
    os.wait()
    return "the parent answers"


def _square(number: int) -> int:
    return number * number


@task
def pool(method: str) -> list[int]:
    with multiprocessing.get_context(method).Pool(2) as workers:
        return workers.map(_square, range(5))


@task
def unserialisable() -> Any:
    return object()


@task
def not_a_number() -> float:
    return float("nan")


@task
def huge(size: int) -> str:
    return "x" * size


@task
def keep_file(path: str) -> int:
    return current_job().artifact("kept", Path(path)).size


@task
def keep_many(sizes: list[int]) -> int:
    for number, size in enumerate(sizes):
        current_job().artifact(f"kept-{number}", bytes(size))
    return len(sizes)


@task
def write_in_c(text: str, times: int, crash: bool) -> None:
    for number in range(times):
        os.write(1, f"{text} {number}\n".encode())
    if crash:
        os.abort()


@task
def close_descriptors() -> None:
    os.closerange(3, 100)


class _EvilError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@task
def evil_exception() -> None:
    raise _EvilError


@task
def leave_processes() -> list[int]:
    plain = subprocess.Popen(["sleep", "60"])
    started = subprocess.run(
        ["sh", "-c", "setsid sleep 61 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    return [plain.pid, int(started.stdout)]


@app.task(queue="async")
async def leave_processes_async() -> int:
    process = await asyncio.create_subprocess_exec("sleep", "62")
    return process.pid


@app.task(queue="one")
def child(number: int) -> int:
    return number * 2


@app.task(queue="one")
def parent(number: int) -> int:
    return child.enqueue(number).result(timeout=60) + 1


@app.task(queue="slow")
def witness(folder: str, name: str) -> None:
    """Runs until the file `go` is there. Leaves its pid; whoever comes after it looks whether that process is gone."""
    mark = Path(folder, f"{name}.pid")
    if mark.exists():
        before = int(mark.read_text())
        if before != os.getpid() and Path(f"/proc/{before}").exists():
            Path(folder, f"{name}.overlap").write_text(f"{before} {os.getpid()}")
    mark.write_text(str(os.getpid()))
    while not Path(folder, "go").exists():
        time.sleep(0.02)
    Path(folder, f"{name}.done").touch()
