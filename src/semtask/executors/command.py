"""From the fork to the command: what the child of a shim does before it becomes the command.

Standard library only. Everything here runs in the child; it never returns.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Collection

from semtask.executors.control import Specification, decode_specification
from semtask.host import linux

_MAX_MESSAGE = 3500  # with the error number in front, less than PIPE_BUF: it is written at once


class _Refused(Exception):
    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def become(
    specification: int,
    stdout: int,
    stderr: int,
    failure: int,
    *,
    shim: int,
    umask: int,
    signal_mask: Collection[int],
) -> None:
    """Become the command of the specification; the first four arguments are descriptors.

    What went wrong is written to the pipe `failure` as error number and message; the exit code means nothing then.
    """
    try:
        os.setsid()
        linux.die_with_parent(signal.SIGKILL)
        if os.getppid() != shim:  # it died before it could take us along
            os._exit(1)
        spec = _load(specification)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.umask(umask)
        _enter(spec.working_dir)
        # All dispositions are at default already (see launcher.py); what was pending did not survive the fork.
        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        _execute(spec)
    except _Refused as refused:
        _report(failure, refused.number, str(refused))
    except OSError as error:
        _report(failure, error.errno or 0, f"the command could not be started: {error}")
    except Exception as error:  # noqa: BLE001 - it must be told apart from an exit code of the command
        number = errno.ENOMEM if isinstance(error, MemoryError) else 0
        _report(failure, number, f"the command could not be started: {error!r}")


def _load(fd: int) -> Specification:
    size = os.fstat(fd).st_size
    chunks = []
    offset = 0
    while offset < size:
        chunks.append(os.pread(fd, size - offset, offset))
        offset += len(chunks[-1])
    return decode_specification(b"".join(chunks))


def _enter(folder: bytes) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        if error.errno == errno.ENOENT:
            why = f"the working directory {_shown(folder)} does not exist"
        else:
            why = f"the working directory {_shown(folder)} cannot be entered: {os.strerror(error.errno or 0)}"
        raise _Refused(error.errno or 0, why) from None


def _execute(spec: Specification) -> None:
    """Execute the first of the candidates that is there, as execvp(3) does, but without its shell for ENOEXEC."""
    program = spec.argv[0]
    path = spec.env.get(b"PATH", os.defpath.encode())
    folders = [b""] if b"/" in program else path.split(b":")
    refused: OSError | None = None
    where = program
    for folder in folders:
        candidate = os.path.join(folder, program)
        try:
            os.execve(candidate, spec.argv, spec.env)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                if os.path.lexists(candidate) and refused is None:
                    refused, where = error, candidate
                continue
            if refused is None or refused.errno in {errno.ENOENT, errno.ENOTDIR}:
                refused, where = error, candidate
            if error.errno != errno.EACCES:
                break
    if refused is None:
        raise _Refused(errno.ENOENT, _not_found(program, path))
    raise _Refused(refused.errno or 0, _why_not(refused.errno or 0, where, spec))


def _not_found(program: bytes, path: bytes) -> str:
    if b"/" in program:
        return f"the program {_shown(program)} does not exist"
    return f"there is no program {_shown(program)} in PATH={_shown(path)} of the job"


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
        case _:
            return f"{_shown(where)} cannot be executed: {os.strerror(number)}"


def _shown(text: bytes) -> str:
    """Quoted, on one line and of bounded length."""
    return repr(text[:1000].decode("utf-8", "replace"))


def _report(pipe: int, number: int, message: str) -> None:
    os.write(pipe, f"{number} {message[:_MAX_MESSAGE]}".encode("utf-8", "replace")[:4096])
