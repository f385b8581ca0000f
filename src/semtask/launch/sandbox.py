"""What a sandboxed command gets, and how a process enters it. Standard library only: launcher and shims import it.

Nothing is taken for granted here: paths are judged by what was opened, not by their names, so that nobody can put
something else in their place.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from semtask.host import landlock, linux, seccomp
from semtask.model.sandbox import SandboxLevel

# What every command may read and execute, as far as it is there.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),  # programs, libraries, time zones
    "/opt",  # programs besides those of the system
    "/etc",  # settings of the system: the cache of the linker, users, hosts, certificates
    *("/nix/store", "/gnu/store", "/run/current-system"),  # the programs of NixOS and Guix
    *("/sys/devices/system", "/sys/fs/cgroup"),  # CPUs and limits of memory, by which runtimes choose their size
)
# Where /etc/resolv.conf may lead to: for those that have a network.
RESOLVER = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager/resolv.conf")
# Bubblewrap makes its own. With Landlock it can be read, but not what is of other processes: that takes ptrace. Nobody
# gets more of it: it leads to the files of everybody.
_PROC = "/proc"
# No terminals: those of the user are among them. No /dev/shm: it has the memory of other programs.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_MIB = 1024 * 1024
_LIMITS = {
    # Not RLIMIT_AS: that counts what is only reserved, and node does not start below 1 GB of it.
    "memory_mb": (resource.RLIMIT_DATA, _MIB),
    "cpu_seconds": (resource.RLIMIT_CPU, 1),
    "open_files": (resource.RLIMIT_NOFILE, 1),
    "file_mb": (resource.RLIMIT_FSIZE, _MIB),
}


class SandboxError(Exception):
    """The sandbox cannot be as it was asked for; says why, for people."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Sandbox(NamedTuple):
    """All of it, with absolute paths.

    `limits` are those of `LEAST_LIMITS`. `private` is a folder for temporary files, for Landlock. Nothing of what is
    `protected` may be reached. `bwrap` is the path of that program.
    """

    level: SandboxLevel
    read: Sequence[str] = ()
    write: Sequence[str] = ()
    network: bool = False
    limits: Mapping[str, int] = {}
    private: str = ""
    protected: Sequence[str] = ()
    bwrap: str = ""


def encode(sandbox: Sandbox | None) -> list[str]:
    """As words, of which none is empty."""
    if sandbox is None:
        return []
    return [
        f"level={sandbox.level.value}",
        f"network={int(sandbox.network)}",
        f"private={sandbox.private}",
        f"bwrap={sandbox.bwrap}",
        *(f"{kind}={path}" for kind in ("read", "write", "protected") for path in getattr(sandbox, kind)),
        *(f"{name}={value}" for name, value in sandbox.limits.items()),
    ]


def decode(words: Sequence[bytes]) -> Sandbox | None:
    if not words:
        return None
    values: dict[str, list[str]] = {}
    for word in words:
        name, _, value = word.decode("utf-8", "surrogateescape").partition("=")
        values.setdefault(name, []).append(value)
    return Sandbox(
        level=SandboxLevel(values["level"][0]),
        read=values.get("read", []),
        write=values.get("write", []),
        network=values["network"] == ["1"],
        limits={name: int(values[name][0]) for name in _LIMITS if name in values},
        private=values["private"][0],
        protected=values.get("protected", []),
        bwrap=values["bwrap"][0],
    )


# --- in the process that becomes the command -------------------------------------------------------------------------


def enter(sandbox: Sandbox, working_dir: str) -> None:
    """Give up what the sandbox does not have, forever. Raises SandboxError; then nothing may be executed.

    What comes later is a program that is executed: some of these limits are too tight for this interpreter.
    """
    linux.set_no_new_privs()
    ruleset = _ruleset(sandbox, working_dir) if sandbox.level is SandboxLevel.LANDLOCK else None
    set_limits(sandbox)
    if ruleset is None:
        linux.drop_capabilities(linux.CAP_SYS_RESOURCE)  # with it root may lift its limits
    else:
        linux.drop_capabilities()
        ruleset.restrict_self()
        seccomp.confine(network=sandbox.network)


def set_limits(sandbox: Sandbox) -> None:
    """Neither can be raised again. No core files: they would have what the command has seen."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, value in sandbox.limits.items():
        kind, unit = _LIMITS[name]
        _, hard = resource.getrlimit(kind)
        wanted = value * unit if hard == resource.RLIM_INFINITY else min(value * unit, hard)
        last = wanted + 1 if kind == resource.RLIMIT_CPU and wanted != hard else wanted  # SIGXCPU comes before SIGKILL
        resource.setrlimit(kind, (wanted, last))


def limited(sandbox: Sandbox | None) -> set[int]:
    """What the kernel limits for it (RLIMIT_*)."""
    return set() if sandbox is None else {resource.RLIMIT_CORE, *(_LIMITS[name][0] for name in sandbox.limits)}


def _ruleset(sandbox: Sandbox, working_dir: str) -> landlock.Ruleset:
    rules = landlock.Ruleset(network=sandbox.network)
    for grant in grants(sandbox, working_dir):
        rules.allow(grant.fd, landlock.WRITE if grant.writable else landlock.READ, folder=grant.is_folder)
        os.close(grant.fd)
    for path in (_PROC, *_DEVICES):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rules.allow(fd, landlock.READ if path == _PROC else landlock.DEVICE, folder=path == _PROC)
        os.close(fd)
    private = os.open(sandbox.private, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    rules.allow(private, landlock.WRITE, folder=True)
    os.close(private)
    return rules


class Grant(NamedTuple):
    """Something that the command may read, or change as well. `fd` was opened with O_PATH; `real` is where it is."""

    path: str
    real: str
    fd: int
    is_folder: bool
    writable: bool


def grants(sandbox: Sandbox, working_dir: str) -> Iterator[Grant]:
    """Everything that it may reach by a path. Raises SandboxError for what is not there or must not be reached."""
    system = (*SYSTEM, *RESOLVER) if sandbox.network else SYSTEM
    yield from _opened("a folder of the system", system, sandbox, writable=False, must=False)
    yield from _opened("`read`", sandbox.read, sandbox, writable=False)
    yield from _opened("the working directory", (working_dir,), sandbox, writable=True)
    yield from _opened("`write`", sandbox.write, sandbox, writable=True)


def _opened(what: str, paths: Iterable[str], sandbox: Sandbox, *, writable: bool, must: bool = True) -> Iterator[Grant]:
    for path in paths:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            if not must and error.errno in {errno.ENOENT, errno.ENOTDIR}:
                continue
            number = error.errno or 0
            raise SandboxError(number, f"{what} of the sandbox, {path!r}: {os.strerror(number)}") from None
        real = os.readlink(f"/proc/self/fd/{fd}")
        if secret := next((secret for secret in (*sandbox.protected, _PROC) if _touch(real, secret)), None):
            raise SandboxError(
                errno.EACCES,
                f"no sandbox can have {what} {path!r}: no job may reach what is in {secret!r}; "
                "choose another folder (--cwd), or another home (SEMANTICA_HOME)",
            )
        yield Grant(path, real, fd, stat.S_ISDIR(os.fstat(fd).st_mode), writable)


def _touch(one: str, other: str) -> bool:
    """Whether one of the paths is the other one, or leads to it."""
    return is_below(one, other) or is_below(other, one)


def is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
