"""From the specification to the running program, and why it may not come to that. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Collection, Iterable, Sequence

from semtask.executors.control import Specification, decode_specification

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_FIRST_PASSED = 3
_ASIDE = 64  # above all numbers that are passed
_GO_ON = _ABSENT | {errno.EACCES}  # another folder of PATH may have it


class RefusedError(Exception):
    """The command cannot be started; says why, for people."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def start(specification: int, signal_mask: Collection[int], passed: Sequence[int] = ()) -> int:
    """Start the command of the specification (a descriptor) in a session of its own; its pid.

    It inherits standard streams and umask, the working directory, which this process enters for it, and the
    descriptors `passed`, numbered from 3 on. All its dispositions are at default, because they are so here (but for
    32 and 33, which the C library keeps to itself and every posix_spawn of glibc leaves ignored). Raises RefusedError.
    """
    spec = _load(specification)
    _enter(spec.working_dir)
    # Out of the way first: one of them may have the number that another one shall get.
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE) for fd in passed]
    try:
        return _spawn(spec, signal_mask, aside)
    finally:
        for fd in aside:
            os.close(fd)


def _spawn(spec: Specification, signal_mask: Collection[int], passed: Sequence[int]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(passed, _FIRST_PASSED)]
    refused: OSError | None = None
    where = b""
    for candidate in _candidates(spec):
        try:
            return os.posix_spawn(
                candidate, spec.argv, spec.env, file_actions=actions, setsid=True, setsigmask=signal_mask
            )
        except OSError as error:
            if error.errno in _ABSENT and not os.path.lexists(candidate):
                continue
            if refused is None or refused.errno in _ABSENT:
                refused, where = error, candidate
            if error.errno not in _GO_ON:
                break
    if refused is None:
        raise RefusedError(errno.ENOENT, _not_found(spec))
    number = refused.errno or 0
    raise RefusedError(number, _why_not(number, where, spec))


def _candidates(spec: Specification) -> Iterable[bytes]:
    """Where the program may be, as execvp(3) has it, with the PATH of the job, unless it was found before."""
    if spec.executable:
        return (spec.executable,)
    program = spec.argv[0]
    if b"/" in program:
        return (program,)
    paths = (os.path.join(folder, program) for folder in _search_path(spec).split(b":"))
    return (path for path in paths if os.access(path, os.F_OK))


def _search_path(spec: Specification) -> bytes:
    return spec.env.get(b"PATH", os.defpath.encode())


def _load(fd: int) -> Specification:
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return decode_specification(data)


def _enter(folder: bytes) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        if error.errno == errno.ENOENT:
            why = f"the working directory {_shown(folder)} does not exist"
        else:
            why = f"the working directory {_shown(folder)} cannot be entered: {os.strerror(error.errno or 0)}"
        raise RefusedError(error.errno or 0, why) from None


def _not_found(spec: Specification) -> str:
    program = spec.argv[0]
    if b"/" in program:
        return f"the program {_shown(program)} does not exist"
    return f"there is no program {_shown(program)} in PATH={_shown(_search_path(spec))} of the job"


def _why_not(number: int, where: bytes, spec: Specification) -> str:
    match number:
        case errno.ENOENT:
            return f"{_shown(where)} exists, but the interpreter that its first line or its header names does not"
        case errno.EACCES if os.path.isdir(where):
            return f"{_shown(where)} is a folder, not a program"
        case errno.EACCES:
            return f"{_shown(where)} may not be executed: permission denied (a file needs its x bit, see chmod +x)"
        case errno.ENOEXEC:
            return f"{_shown(where)} is no program: a script needs a first line like #!/bin/sh"
        case errno.E2BIG:
            size = sum(map(len, spec.argv)) + sum(len(k) + len(v) + 1 for k, v in spec.env.items())
            longest = max(map(len, spec.argv))
            return (
                f"the arguments and the environment of {_shown(where)} are too long for Linux: "
                f"{size} bytes, the longest argument {longest} (it may have 131071); pass a file instead"
            )
        case errno.EAGAIN:
            return f"no process could be forked for {_shown(where)}: {os.strerror(number)}"
        case _:
            return f"{_shown(where)} cannot be executed: {os.strerror(number)}"


def _shown(text: bytes) -> str:
    """Quoted, on one line and of bounded length."""
    return repr(text[:1000].decode("utf-8", "replace"))
