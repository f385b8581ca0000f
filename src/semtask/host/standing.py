"""What a process inherits besides files, signals and umask: niceness, CPUs, limits. Standard library only.

Of all that Linux passes on through fork and exec, this is what a shell sets and a process may set back. Not to be
undone are lowered hard limits, a raised niceness (without CAP_SYS_NICE), a set of CPUs, a control group, namespaces,
no_new_privs, seccomp and Landlock filters, and capabilities that were dropped.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from semtask.host import linux

NO_LIMIT = resource.RLIM_INFINITY
LIMITS = {
    "as": resource.RLIMIT_AS,
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "rss": resource.RLIMIT_RSS,
    "stack": resource.RLIMIT_STACK,
}
_USUAL = {"core": 0, "nofile": 65536, "stack": 8 * 1024 * 1024}  # of most others: none
_LEAST_MEMLOCK = 64 * 1024
_LEAST_FILES = 1024
_LOOKED_AT_ELSEWHERE = frozenset({"nofile", "nproc"})  # the daemon may do with fewer than usual
_HARMLESS = frozenset({"core", "memlock", "nofile"})  # to a process that only spawns another one
_ALL_CPUS = range(1024)
_OOM_SCORE = "/proc/self/oom_score_adj"


class Standing(NamedTuple):
    """What is set; None and what is missing is left as it is. Limits are soft ones, NO_LIMIT (-1) for none."""

    nice: int | None = None
    cpus: tuple[int, ...] = ()
    limits: Mapping[str, int] = {}

    def as_payload(self) -> dict[str, Any]:
        """As the payload of a command says it."""
        said: dict[str, Any] = {} if self.nice is None else {"nice": self.nice}
        if self.cpus:
            said["cpus"] = list(self.cpus)
        if self.limits:
            said["limits"] = {name: None if value == NO_LIMIT else value for name, value in self.limits.items()}
        return said

    def encode(self) -> str:
        words = [] if self.nice is None else [f"nice={self.nice}"]
        words += [f"cpu={number}" for number in self.cpus]
        return " ".join([*words, *(f"{name}:={value}" for name, value in self.limits.items())])

    @classmethod
    def decode(cls, text: str) -> Standing:
        pairs = [word.partition("=")[::2] for word in text.split()]
        nice = next((int(value) for name, value in pairs if name == "nice"), None)
        cpus = tuple(int(value) for name, value in pairs if name == "cpu")
        return cls(nice, cpus, {name[:-1]: int(value) for name, value in pairs if name.endswith(":")})

    @property
    def is_harmless(self) -> bool:
        """Whether a process may have it for a moment, and then again what it had."""
        return self.nice is None and not self.cpus and _HARMLESS.issuperset(self.limits)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Have it while a process is spawned, if it is harmless."""
        before = [(LIMITS[name], resource.getrlimit(LIMITS[name])) for name in self.limits]
        self.take_limits(but=())
        try:
            yield
        finally:
            for kind, limits in before:
                resource.setrlimit(kind, limits)

    def take(self) -> None:
        """Let this process have it, as far as the kernel allows. Raises OSError if it has none of the CPUs."""
        if self.nice is not None:
            with suppress(PermissionError):  # less nice than we are: as nice as we are, then
                os.setpriority(os.PRIO_PROCESS, 0, self.nice)
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)

    def take_limits(self, but: Collection[int]) -> None:
        """But for these (RLIMIT_*). To be called last: this interpreter may not be able to go on with them."""
        for name, value in self.limits.items():
            if LIMITS[name] in but:
                continue
            _, hard = resource.getrlimit(LIMITS[name])
            resource.setrlimit(LIMITS[name], (_least(value, hard), hard))


def of_this_process() -> Standing:
    """What is not as it is in a neutral process, and goes with a job for this reason."""
    cpus = os.sched_getaffinity(0)
    limits = {name: resource.getrlimit(kind) for name, kind in LIMITS.items()}
    return Standing(
        nice=os.getpriority(os.PRIO_PROCESS, 0) or None,
        cpus=() if cpus == _cpus_of_machine() else tuple(sorted(cpus)),
        limits={name: soft for name, (soft, hard) in limits.items() if not _is_usual(name, soft, hard)},
    )


def become_neutral() -> None:
    """Undo what this process has inherited, as far as the kernel allows."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with suppress(OSError):
        os.sched_setaffinity(0, _ALL_CPUS)
    for name, kind in LIMITS.items():
        _, hard = resource.getrlimit(kind)
        usual = _usual(name, hard)
        try:
            resource.setrlimit(kind, (usual, _most(usual, hard)))
        except (PermissionError, ValueError):
            resource.setrlimit(kind, (_least(usual, hard), hard))
    with suppress(OSError), open(_OOM_SCORE, "w", encoding="ascii") as file:
        file.write("0")
    linux.forget_scheduling_of_parent()


def differences(pid: int) -> list[str]:
    """How a process is not neutral, in words for people."""
    found = []
    if nice := os.getpriority(os.PRIO_PROCESS, pid):
        found.append(f"nice {nice}")
    if os.sched_getscheduler(pid) != os.SCHED_OTHER:
        found.append(f"scheduling policy {os.sched_getscheduler(pid)}")
    cpus = os.sched_getaffinity(pid)
    if cpus != _cpus_of_machine():
        found.append(f"{len(cpus)} of {len(_cpus_of_machine())} CPUs")
    for name, kind in LIMITS.items():
        soft, hard = resource.prlimit(pid, kind)
        usual = _usual(name, hard)
        if name not in _LOOKED_AT_ELSEWHERE and soft != usual and _least(soft, usual) == soft:
            found.append(f"{name} at most {soft}")
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
        if score := int(file.read()):
            found.append(f"oom_score_adj {score}")
    return found


def _usual(name: str, hard: int) -> int:
    """The soft limit of a neutral process; above the hard one where somebody has lowered that."""
    match name:
        case "nproc":
            return _most(hard, _processes_of_machine())
        case "memlock":
            return _most(hard, _LEAST_MEMLOCK)
        case _:
            return _USUAL.get(name, NO_LIMIT)


def _is_usual(name: str, soft: int, hard: int) -> bool:
    if name == "nproc":
        return _least(soft, _processes_of_machine()) != soft or soft == _processes_of_machine()
    if name == "nofile":
        return soft == _least(_USUAL[name], hard) and soft >= _LEAST_FILES
    return soft == _usual(name, hard)


def _processes_of_machine() -> int:
    """What Linux gives its first process as a limit."""
    try:
        with open("/proc/sys/kernel/threads-max", encoding="ascii") as file:
            return int(file.read()) // 2
    except OSError:
        return 0


def _cpus_of_machine() -> set[int]:
    try:
        return os.sched_getaffinity(1)
    except OSError:
        return set(range(os.cpu_count() or 1))


def _least(one: int, other: int) -> int:
    return min(one, other) if NO_LIMIT not in {one, other} else max(one, other)


def _most(one: int, other: int) -> int:
    return NO_LIMIT if NO_LIMIT in {one, other} else max(one, other)
