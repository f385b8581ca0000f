"""Finding the daemon, and starting it where none answers: once, however many clients ask for it at the same time."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from semtask.client.address import NotRunning, UnixAddress, address_of
from semtask.client.http import Notice, print_notice
from semtask.client.transport import Transport
from semtask.config.apps import variables_of
from semtask.config.environment import ENV_JOB_HOME, OF_ONE_JOB, inherited
from semtask.config.kinds import PATH
from semtask.config.settings import BY_ENV, FIELDS, Settings
from semtask.config.unused import unknown_environment
from semtask.errors import EXIT_OTHER_DAEMON, DaemonUnavailable, StartupError

if TYPE_CHECKING:
    from subprocess import Popen

START_LIMIT = 10.0
_MAX_OUTPUT = 1024 * 1024
_WHERE_SETTINGS_ARE = ("XDG_CONFIG_HOME",)
_PATHS = [variable for variable, name in BY_ENV.items() if FIELDS[name].metadata["kind"] is PATH]


def open_transport(
    settings: Settings, *, autostart: bool, url: str | None = None, notice: Notice = print_notice
) -> Transport:
    """A connected transport. Where none answers the daemon is started if `autostart` says so.

    Raises NotRunning, DaemonUnavailable or Unauthorized, and StartupError if the started daemon gave up.
    """
    transport = Transport(address_of(settings, url), notice=notice)
    try:
        transport.connect()
    except NotRunning:
        if not autostart:
            raise
        start(settings, transport, notice)
    return transport


def start(settings: Settings, transport: Transport, notice: Notice = print_notice) -> None:
    """Start the daemon of this home, or wait for the one that another client is starting, and connect to it."""
    if not isinstance(transport.address, UnixAddress):
        transport.connect()  # what should run behind a TCP port is not known here: NotRunning, as before
        return
    around = home_around()
    if around is not None and _is_same(around, settings.home):
        raise NotRunning(_why_not_from_inside(transport.address))
    if around is not None and "home" not in settings.origin:
        raise NotRunning(
            f"no daemon answers at {transport.address}, and this is a job of the daemon in {around} whose environment "
            "was cleared: keep SEMANTICA_HOME, or give --home"
        )
    deadline = time.monotonic() + START_LIMIT
    _make_folders(settings)
    with _start_lock(settings.run_dir, deadline):
        try:
            transport.connect()
            return
        except NotRunning:
            pass
        output = settings.logs_dir / "daemon.out"
        begin = _shorten(output)
        if around is not None:
            _start_from_inside(around, settings, transport, notice, begin)
            return
        ready_fd, process = _spawn(settings, output, os.environ)
        try:
            ready = _wait_ready(ready_fd, deadline)
        finally:
            os.close(ready_fd)
        if ready:
            notice(f"started the daemon (pid {process.pid})")
            for name, problem in unknown_environment().items():
                notice(f"{name} {problem}")
            transport.connect()
            _leave_running(process)
            return
        _explain_failure(process, output, begin, transport, deadline)


def start_for_another(settings: Settings, env: Mapping[str, str], umask: int) -> tuple[int, bool, int | None]:
    """Start the daemon of this home for a client whose own processes end with its job, as a child of this process.

    (pid, whether it is ready, its exit code if it has ended). The client has made the folders, and holds the lock of
    those who start. Raises StartupError.
    """
    ready_fd, process = _spawn(settings, settings.logs_dir / "daemon.out", env, umask=umask)
    try:
        ready = _wait_ready(ready_fd, time.monotonic() + START_LIMIT)
    finally:
        os.close(ready_fd)
    code = None if ready else process.poll()
    if not ready and code is None:
        import subprocess

        with suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=1.0)
    _leave_running(process)
    return process.pid, ready, code


def home_around() -> Path | None:
    """The home of the daemon that runs the job to which this process belongs; None if it is no job's.

    A process whose environment was cleared asks those that it comes from.
    """
    if home := os.environ.get(ENV_JOB_HOME):
        return Path(home)
    from semtask.host import procfs

    for pid in procfs.line_of(os.getppid()):
        for name, _, value in (pair.partition(b"=") for pair in _marks_of(pid)):
            if name == ENV_JOB_HOME.encode() and value:
                return Path(os.fsdecode(value))
    return None


def _marks_of(pid: int) -> Iterator[bytes]:
    """The environment that a process was started with, and its command line, as a shim has the mark there; nothing of
    one that is gone, no environment of another user's or outside of our sandbox.
    """
    for file in ("environ", "cmdline"):
        with suppress(OSError):
            yield from Path(f"/proc/{pid}/{file}").read_bytes().split(b"\0")


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _why_not_from_inside(address: object) -> str:
    from semtask.host import procfs

    if procfs.no_new_privs(os.getpid()):
        return (
            f"the daemon that runs this job, at {address}, cannot be reached from the job's sandbox, and a job starts "
            "no other one there; enqueue from outside of the sandbox"
        )
    return f"the daemon that runs this job does not answer at {address}, and a job starts no other one there"


def _start_from_inside(around: Path, settings: Settings, transport: Transport, notice: Notice, begin: int) -> None:
    """Have the daemon that runs this job start the one of another home: ours would end with the job."""
    assert isinstance(transport.address, UnixAddress), "the daemon of a home"
    params = {"env": environment(settings, os.environ), "umask": _umask()}
    output = settings.logs_dir / "daemon.out"
    try:
        # With the token of the job, if it has one: what that does not allow must not be had without it.
        address = dataclasses.replace(transport.address, run_dir=around / "run")
        with Transport(address, notice=notice) as outer:
            started = outer.call("admin.start_daemon.v1", params, START_LIMIT + 5)
    except NotRunning as error:
        raise NotRunning(
            f"no daemon answers at {transport.address}; a job cannot start one that outlives it, and the daemon that "
            f"runs this job, which could, is not reached at {around}: start it outside of the job"
        ) from error
    if started["ready"]:
        notice(f"started the daemon (pid {started['pid']}), outside of this job")
        transport.connect()
    elif started["exit_code"] is None:
        raise _not_ready(started["pid"], output)
    else:
        _explain_end(started["exit_code"], output, begin, transport, time.monotonic() + START_LIMIT)


def _umask() -> int:
    with open("/proc/self/status", "rb") as file:
        _, found, rest = file.read().partition(b"\nUmask:\t")
    return int(rest[:4], 8) if found else 0o077


def start_private(settings: Settings, env: Mapping[str, str], life_fd: int) -> Popen[bytes]:
    """A daemon of the caller's own, which ends immediately when `life_fd` is readable, as a pidfd is at the end of
    its process. The caller stops and reaps it. `env` stands for the environment.

    Raises StartupError, also where another daemon has this home, and DaemonUnavailable.
    """
    deadline = time.monotonic() + START_LIMIT
    _make_folders(settings)
    output = settings.logs_dir / "daemon.out"
    begin = _shorten(output)
    ready_fd, process = _spawn(settings, output, env, life_fd)
    ready = False
    try:
        ready = _wait_ready(ready_fd, deadline)
        if not ready:
            with Transport(UnixAddress(settings.run_dir)) as transport:
                _explain_failure(process, output, begin, transport, deadline)
            raise StartupError(f"another daemon has the home {settings.home}", exit_code=EXIT_OTHER_DAEMON)
    finally:
        os.close(ready_fd)
        if not ready:
            process.kill()
            process.wait()
    return process


def environment(settings: Settings, env: Mapping[str, str]) -> dict[str, str]:
    """What a started daemon inherits: the allowlist, the settings in the environment, and this home."""
    passed = inherited(env, (*settings.env_allowlist, *_WHERE_SETTINGS_ARE))
    passed |= {k: v for k, v in env.items() if k.startswith("SEMANTICA_") and k not in OF_ONE_JOB}
    # Paths are absolute from here on: the daemon has another working directory.
    passed |= variables_of(settings.environment_apps)
    passed |= {variable: str(getattr(settings, BY_ENV[variable])) for variable in _PATHS if variable in passed}
    passed["SEMANTICA_HOME"] = str(settings.home)
    if settings.db_path is not None:
        passed["SEMANTICA_DB_PATH"] = str(settings.db_path)  # it may be an option
    return passed


def _make_folders(settings: Settings) -> None:
    for folder in (settings.home, settings.run_dir, settings.logs_dir):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(
                f"cannot make the folder {folder}: {error.strerror}; choose another one with SEMANTICA_HOME"
            ) from error


@contextmanager
def _start_lock(run_dir: Path, deadline: float) -> Iterator[None]:
    """Held by the one client that starts the daemon. It is the folder's own lock, so there is no file to lose."""
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise DaemonUnavailable(
                    f"another client has been starting the daemon for {START_LIMIT:g} s; "
                    f"its messages are in {run_dir.parent / 'logs' / 'daemon.out'}"
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(folder)


def _shorten(output: Path) -> int:
    """Empty the file of the daemon's stdout and stderr once it is large; returns where new output begins."""
    try:
        size = output.stat().st_size
    except FileNotFoundError:
        return 0
    if size <= _MAX_OUTPUT:
        return size
    os.truncate(output, 0)
    return 0


def _spawn(
    settings: Settings, output: Path, env: Mapping[str, str], life_fd: int | None = None, *, umask: int = -1
) -> tuple[int, Popen[bytes]]:
    """(read end of the readiness pipe, the daemon)."""
    import subprocess  # costs milliseconds, and a start is rare

    ready_fd, theirs = os.pipe()
    life = [] if life_fd is None else ["--life-fd", str(life_fd)]
    try:
        target = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "semtask", "daemon", "--ready-fd", str(theirs), "--detached", *life],
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=target,
                cwd=settings.home,
                env=environment(settings, env),
                pass_fds=(theirs,) if life_fd is None else (theirs, life_fd),
                start_new_session=True,
                umask=umask,
            )
        finally:
            os.close(target)
    except OSError as error:
        os.close(ready_fd)
        raise StartupError(f"cannot start the daemon: {error}") from error
    finally:
        os.close(theirs)
    return ready_fd, process


def _wait_ready(ready_fd: int, deadline: float) -> bool:
    """Whether the readiness byte came; False at the end of the pipe (the daemon is gone) or of the time."""
    poll = select.poll()
    poll.register(ready_fd, select.POLLIN)
    left_ms = max(0, int((deadline - time.monotonic()) * 1000))
    return bool(poll.poll(left_ms)) and os.read(ready_fd, 1) != b""


def _leave_running(process: Popen[bytes]) -> None:
    """Let the daemon outlive this client, and reap it if it ends first, so that no zombie keeps its pid."""
    import threading

    threading.Thread(target=process.wait, name="semtask-reaper", daemon=True).start()


def _explain_failure(process: Popen[bytes], output: Path, begin: int, transport: Transport, deadline: float) -> None:
    """Raise what went wrong, unless another daemon of this home came up meanwhile."""
    import subprocess

    try:
        code = process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _leave_running(process)
        raise _not_ready(process.pid, output) from None
    _explain_end(code, output, begin, transport, deadline)


def _not_ready(pid: int, output: Path) -> DaemonUnavailable:
    return DaemonUnavailable(
        f"the daemon (pid {pid}) was started but is not ready after {START_LIMIT:g} s; its messages are in {output}"
    )


def _explain_end(code: int, output: Path, begin: int, transport: Transport, deadline: float) -> None:
    while code == EXIT_OTHER_DAEMON and time.monotonic() < deadline:
        with suppress(NotRunning):
            transport.connect()
            return
        time.sleep(0.05)
    how = f"exit code {code}" if code >= 0 else f"signal {-code}"
    last = _last_line(output, begin)
    said = last.removeprefix("semtask: ") if last else f"it said nothing in {output}"
    raise StartupError(f"the daemon did not start ({how}): {said}", exit_code=code if code > 0 else 1)


def _last_line(output: Path, begin: int) -> str:
    with output.open("rb") as file:
        file.seek(begin)
        lines = file.read(_MAX_OUTPUT).decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
