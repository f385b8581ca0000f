"""What a job leaves behind: processes, threads, a changed process, memory. Cheap where there is nothing."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Collection

from semtask.host import procfs
from semtask.protocol.frames import Setup
from semtask.worker.audit import Audit
from semtask.worker.exceptions import clean
from semtask.worker.process_state import ProcessState

_LONG_JOB_NS = 10_000_000
_NO_NOOP_NS = 100_000  # in less time no job opens so many files that the next one finds none
_JOBS_BETWEEN_LOOKS = 50
_THREADS_MAY_END_S = 0.01
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1024 * 1024


class Hygiene:
    """Made when the app is imported: what is there by then belongs to the app, not to a job."""

    def __init__(self, setup: Setup, audit: Audit) -> None:
        self._setup = setup
        self._pid = os.getpid()
        self._jobs = 0
        self._weighed = 0  # after so many jobs its memory was looked at
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._siblings = _children_file(setup.shim_pid)
        self._children = frozenset(procfs.children(self._pid))
        self._orphans = frozenset(self._beside())
        self._threads = threading.active_count()
        self._known_threads = frozenset(threading.enumerate())
        self._state = ProcessState(audit)
        self._highest_fd = (_lowest_free_fd() + resource.getrlimit(resource.RLIMIT_NOFILE)[0]) // 2

    def settle(self) -> None:
        """The worker has set up its signals and its event loop."""
        self._state.settle()

    def count(self) -> None:
        """A job has run."""
        self._jobs += 1

    def knows_thread(self, thread: threading.Thread) -> bool:
        return thread in self._known_threads

    def leftovers(self) -> bool:
        """Whether there are living processes that jobs have started. Children that have ended are reaped."""
        try:
            return self._has_children() or self._has_orphans()
        except OSError:  # the job has left no descriptor to look with: the shim can
            return True

    def _has_children(self) -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        found = False
        for pid in procfs.children(self._pid):
            if pid in self._children:
                continue
            if _alive(pid):
                found = True
            else:
                os.waitpid(pid, os.WNOHANG)
        return found

    def _has_orphans(self) -> bool:
        """Orphans of jobs are adopted by the shim, whose only own child is this worker."""
        pids = self._beside()
        return len(pids) > 1 and any(_alive(int(pid)) for pid in pids if pid not in self._orphans)

    def _beside(self) -> list[bytes]:
        """The pids of this worker and of orphans."""
        return [] if self._siblings is None else os.pread(self._siblings, 4096, 0).split()

    def untrace(self) -> None:
        """The code of a job has ended."""
        self._state.untrace()

    def change(self, ran_ns: int, spare: Collection[threading.Thread] = ()) -> str | None:
        """What a job has left that makes this process unfit for another one. `spare` threads are no job's."""
        change = self._change_of_threads(spare) or self._state.change(thorough=ran_ns > _NO_NOOP_NS)
        return None if change is None else clean(change)

    def glance(self) -> str | None:
        """What is changed while jobs run, of which one may be about to put it back."""
        change = self._state.glance(thorough=True)
        return None if change is None else clean(change)

    def wear(self, ran_ns: int) -> str | None:
        """Why this process has served long enough, whatever the last job did."""
        if 0 < self._setup.max_jobs <= self._jobs:
            return f"it has run {self._jobs} jobs"
        if (ran_ns > _NO_NOOP_NS or self._jobs % _JOBS_BETWEEN_LOOKS == 0) and self._lacks_fds():
            return "jobs left so many files open that soon no more can be opened"
        limit = self._setup.max_memory_bytes
        if limit > 0 and (ran_ns > _LONG_JOB_NS or self._jobs - self._weighed >= _JOBS_BETWEEN_LOOKS):
            self._weighed = self._jobs
            resident = int(os.pread(self._memory, 100, 0).split()[1]) * _PAGE
            if resident > limit:
                return f"it uses {resident // _MIB} MiB of memory, more than {limit // _MIB}"
        return None

    def _change_of_threads(self, spare: Collection[threading.Thread]) -> str | None:
        if threading.active_count() > self._threads + len(spare) and (names := self._new_threads(spare)):
            return f"a job left threads running: {', '.join(names)}"
        return None

    def _lacks_fds(self) -> bool:
        try:
            return _lowest_free_fd() > self._highest_fd
        except OSError:  # there is none
            return True

    def _new_threads(self, spare: Collection[threading.Thread]) -> list[str]:
        known = self._known_threads.union(spare)
        deadline = time.monotonic() + _THREADS_MAY_END_S
        left = [thread for thread in threading.enumerate() if thread not in known]
        while (left := [thread for thread in left if thread.is_alive()]) and time.monotonic() < deadline:
            time.sleep(0.001)
        return [thread.name for thread in left]


def _lowest_free_fd() -> int:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    os.close(fd)
    return fd


def _alive(pid: int) -> bool:
    seen = procfs.stat(pid)
    return seen is not None and seen.alive


def _children_file(shim_pid: int) -> int | None:
    """None without a shim, or where the kernel does not list children."""
    try:
        return os.open(f"/proc/{shim_pid}/task/{shim_pid}/children", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
