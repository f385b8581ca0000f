"""From the specification to the running program, and why it may not come to that. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, NoReturn, TypeVar

from semtask.launch import sandbox
from semtask.launch.bubblewrap import Bubble
from semtask.launch.control import Specification, decode_specification
from semtask.launch.sandbox import Sandbox, SandboxError
from semtask.model.sandbox import SandboxLevel

T = TypeVar("T")

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_FIRST_PASSED = 3
_ASIDE = 16  # above all numbers that are passed
_GO_ON = _ABSENT | {errno.EACCES}  # another folder of PATH may have it


class RefusedError(Exception):
    """The command cannot be started; says why, for people."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Started(NamedTuple):
    """A command that runs. `group` is the process group that is asked to end."""

    pid: int
    group: int
    level: str = ""  # of its sandbox
    bubble: Bubble | None = None


def start(specification: int, signal_mask: Collection[int], passed: Sequence[int] = ()) -> Started:
    """Start the command of the specification (a descriptor) in a session of its own.

    It inherits standard streams and umask, the working directory, which this process enters for it, and the
    descriptors `passed`, numbered from 3 on. All its dispositions are at default, because they are so here (but for
    32 and 33, which the C library keeps to itself and every posix_spawn of glibc leaves ignored). Raises RefusedError.
    """
    spec = _load(specification)
    _enter(spec.working_dir)
    if spec.executable and not _is_in(spec.working_dir):
        raise RefusedError(errno.EXDEV, f"the working directory {_shown(spec.working_dir)} has just become another one")
    if spec.sandbox is not None or not spec.standing.is_harmless:
        return _fork_and_execute(spec, signal_mask)
    # Out of the way first: one of them may have the number that another one shall get.
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE) for fd in passed]
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(aside, _FIRST_PASSED)]
    try:
        with spec.standing.borrowed():
            pid = _first_that_works(
                spec,
                lambda program: os.posix_spawn(
                    program, spec.argv, spec.env, file_actions=actions, setsid=True, setsigmask=signal_mask
                ),
            )
        return Started(pid, pid)
    finally:
        for fd in aside:
            os.close(fd)


def _first_that_works(spec: Specification, begin: Callable[[bytes], T]) -> T:
    """Begin with each file that may be meant until one can be executed. Raises RefusedError."""
    refused: OSError | None = None
    where = b""
    for candidate in _candidates(spec):
        try:
            return begin(candidate)
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


# --- sandboxes -------------------------------------------------------------------------------------------------------


def _fork_and_execute(spec: Specification, signal_mask: Collection[int]) -> Started:
    """The same by fork and exec: a process enters its sandbox itself, and nothing is executed if it cannot."""
    wanted = spec.sandbox
    bubble = Bubble() if wanted is not None and wanted.level is SandboxLevel.BWRAP else None
    trouble, in_trouble = os.pipe2(os.O_CLOEXEC)
    pid = _fork()
    if pid == 0:
        _become(spec, bubble, signal_mask, in_trouble)
    os.close(in_trouble)
    with open(trouble, "rb") as pipe:
        said = pipe.read()  # until something is executed
    if said:
        os.waitpid(pid, 0)
        number, _, why = said.partition(b" ")
        raise RefusedError(int(number), why.decode("utf-8", "replace"))
    group = pid if bubble is None else bubble.first_pid() or pid
    return Started(pid, group, "" if wanted is None else wanted.level.value, bubble)


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        number = error.errno or 0
        raise RefusedError(number, f"no process could be forked for the sandbox: {os.strerror(number)}") from None


def _become(spec: Specification, bubble: Bubble | None, signal_mask: Collection[int], trouble: int) -> NoReturn:
    """Be the command; or say in `trouble` why it does not come to that, and end."""
    wanted = spec.sandbox
    what = "it cannot be started" if wanted is None else f"the sandbox level {wanted.level.value} is not available here"
    try:
        os.setsid()
        _stand(spec)
        if wanted is None or bubble is None:
            if wanted is not None:
                sandbox.enter(wanted, os.fsdecode(spec.working_dir))
            _limit(spec)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
            _first_that_works(spec, lambda program: os.execve(program, spec.argv, spec.env))
        assert wanted is not None, "a bubble is one of a sandbox"
        assert bubble is not None, "without one nothing comes here"
        argv = _in_bubble(spec, wanted, bubble)
        sandbox.set_limits(wanted)
        _limit(spec)
        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        os.execve(wanted.bwrap, argv, spec.env)
    except (RefusedError, SandboxError) as error:
        why = f"{error.number} {error}"
    except OSError as error:
        why = f"{error.errno or errno.EPERM} {what}: {error.strerror}"
    except BaseException as error:  # noqa: BLE001 - whatever it is, nothing may be executed
        why = f"{errno.EPERM} {what}: {error!r:.900}"
    os.write(trouble, why.encode("utf-8", "replace"))
    os._exit(1)


def _stand(spec: Specification) -> None:
    try:
        spec.standing.take()
    except OSError as error:
        number = error.errno or 0
        why = (
            f"it may run on none of the CPUs {', '.join(map(str, spec.standing.cpus))} (`cpus`): {os.strerror(number)}"
        )
        raise RefusedError(number, why) from None


def _limit(spec: Specification) -> None:
    """A limit of the sandbox is not lifted."""
    of_sandbox = sandbox.limited(spec.sandbox)
    spec.standing.take_limits(but=of_sandbox)


def _in_bubble(spec: Specification, wanted: Sandbox, bubble: Bubble) -> list[bytes]:
    """What to execute for it, if the program is there and can be seen in there. Raises RefusedError, SandboxError."""
    given = list(sandbox.grants(wanted, os.fsdecode(spec.working_dir)))

    def require(program: bytes) -> None:
        os.stat(program)
        real = os.path.realpath(os.fsdecode(program))
        seen = any(sandbox.is_below(real, grant.real) for grant in given)
        if os.path.isdir(program) or not os.access(program, os.X_OK) or not seen:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    _first_that_works(spec, require)
    return bubble.arguments(wanted, given, [spec.executable or spec.argv[0], *spec.argv[1:]])


# --- words -----------------------------------------------------------------------------------------------------------


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


def _is_in(folder: bytes) -> bool:
    try:
        return os.getcwdb() == folder
    except OSError:  # removed
        return False


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
        case errno.EACCES if spec.sandbox is not None and os.access(where, os.X_OK):
            return (
                f"{_shown(where)}, or the interpreter that it needs, lies outside of what the sandbox may read; "
                "name its folder in `read`"
            )
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
