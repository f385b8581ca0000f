"""What `doctor` looks at. Each check is a function that yields findings, with what to do about what it found."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from semtask import __version__, maintenance
from semtask.cli import render
from semtask.cli.doctor.access import command_policy, tokens
from semtask.cli.doctor.apps import apps
from semtask.cli.doctor.patient import FAIL, Finding, Patient, fail, ok, warn
from semtask.cli.doctor.sandbox import sandbox
from semtask.client.address import UnixAddress, address_of
from semtask.client.transport import Transport
from semtask.config.settings import Settings
from semtask.config.unused import misplaced, unknown_environment
from semtask.errors import DaemonUnavailable, SemtaskError, StartupError
from semtask.host.filesystem import free_bytes, require_local
from semtask.host.locks import verified_holder
from semtask.host.open_files import LEAST_OPEN_FILES
from semtask.host.standing import differences

_MIB = 1 << 20
_FEW_BYTES, _TOO_FEW_BYTES = 1024 * _MIB, 100 * _MIB
_OF_DISK = {
    "LOW": "make room; `semtask gc --vacuum` deletes old jobs and gives their space back",
    "FULL": "make room by deleting files of others; the daemon goes on by itself",
    "DEGRADED": "look at the log of the kernel (dmesg), and at `semtask db check`",
}
_LONG_WAL = 256 * _MIB
_SLOW_SYNC_MS = 20
_QUICK_CHECK_S = 10.0
_FILES_PER_PROCESS = 4
_FILES_OF_DAEMON = 128
_PROCESSES_PER_JOB = 4
_EARLIEST = 1_735_689_600_000  # 2025-01-01: before it this program did not exist
_SKEW_MS = 60_000


Check = Callable[[Patient], Iterator[Finding]]


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings. A check that cannot be made is a finding, too."""
    patient = Patient(settings)
    for check in CHECKS:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield from (finding._replace(name=name) for finding in check(patient))
        except SemtaskError as error:
            yield Finding(name, FAIL, error.message)
        except OSError as error:
            yield Finding(name, FAIL, f"cannot be checked: {error}")


def _daemon(patient: Patient) -> Iterator[Finding]:
    begin = time.monotonic()
    try:
        stats = patient.stats
    except DaemonUnavailable as error:
        yield fail(error.message, "look at `semtask logs --daemon -n 50`")
        return
    took = render.duration((time.monotonic() - begin) * 1000)
    if stats is None and (pid := _locked_by(patient.settings)):
        yield warn(
            f"does not answer, but process {pid} has locked the home: it is starting, or its socket was just deleted",
            "look again in a few seconds; `semtask down` stops a daemon without a socket",
        )
    elif stats is None:
        if patient.settings.autostart:
            yield ok("does not run; the next command that needs it starts it")
        else:
            yield warn("does not run, and autostart is off", "semtask up")
    elif stats["version"] != __version__:
        yield warn(
            f"is version {stats['version']}, this command line is {__version__}", "`semtask down`, then `semtask up`"
        )
    elif not stats["accepting"]:
        yield warn(f"pid {stats['pid']} is stopping", "wait, then `semtask up`")
    else:
        yield ok(f"pid {stats['pid']}, version {stats['version']}, answered in {took}")


def _locked_by(settings: Settings) -> int | None:
    """The process that has this home, if it is one that we would have reached."""
    here = isinstance(address_of(settings), UnixAddress) and settings.home.is_dir()
    found = verified_holder(settings.home) if here else None
    if found is None:
        return None
    os.close(found[1])
    return found[0]


def _settings(patient: Patient) -> Iterator[Finding]:
    good = True
    for name, problem in unknown_environment().items():
        good = False
        yield warn(f"{name} {problem}", f"unset {name}")
    for name, path in misplaced(patient.settings).items():
        good = False
        yield warn(
            f"{name} in {path} has no effect: one daemon serves all projects of its home",
            f"move it to the user file, ~/.config/semtask/config.toml, or to {patient.settings.home}/config.toml",
        )
    if good:
        files = {source for source in patient.settings.origin.values() if source.startswith("/")}
        yield ok("from " + ", ".join([*sorted(files), "the environment and defaults"]))


def _home(patient: Patient) -> Iterator[Finding]:
    home = patient.settings.home
    there = _existing(home)
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        what = "cannot be written to" if there == home else f"cannot be made, as you may not write to {there}"
        yield fail(f"{home} {what}", "choose another one with SEMANTICA_HOME")
        return
    if there != home:
        yield ok(f"{home} is not there yet; the first start of the daemon makes it")
        return
    bad = [
        finding
        for path, allowed in (
            (home, 0o755),
            (patient.settings.run_dir, 0o700),
            (patient.settings.logs_dir, 0o755),
            (patient.settings.attempts_dir, 0o700),
            (patient.settings.socket, 0o600),
            (patient.settings.token_file, 0o600),
            (patient.settings.database, 0o600),
        )
        if (finding := _private(path, allowed))
    ]
    yield from bad
    if not bad:
        yield ok(f"{home} belongs to you, and nobody else can write or connect")


def _private(path: Path, allowed: int) -> Finding | None:
    """What is wrong with the owner or mode of a file or folder that need not be there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        return fail(f"{path} belongs to user id {found.st_uid}, not to you", "use a home of your own: SEMANTICA_HOME")
    if mode & ~allowed & 0o777:
        return fail(f"{path} has mode {mode:04o}; others get in", f"chmod {allowed:o} {path}")
    return None


def _sqlite(_patient: Patient) -> Iterator[Finding]:
    yield ok(f"version {maintenance.sqlite_version()}, without the WAL-reset bug")


def _file_system(patient: Patient) -> Iterator[Finding]:
    folders = {patient.settings.home, patient.settings.database.parent}
    for folder in folders:
        require_local(folder)
    yield ok("local: " + ", ".join(map(str, sorted(folders))))


def _database(patient: Patient) -> Iterator[Finding]:
    path = patient.settings.database
    if not path.exists():
        yield ok(f"{path} is not there yet")
        return
    schema = maintenance.schema(patient.settings)
    if schema.pending:
        yield warn(
            f"the schema has version {schema.version}, this release has {schema.pending[-1][0]}",
            "`semtask down`, then `semtask up` brings it up to date",
        )
    found = maintenance.damages(patient.settings.database, limit_s=_QUICK_CHECK_S)
    if found is None:
        yield warn(f"is too large to be checked within {_QUICK_CHECK_S:g} s", "semtask db check")
    elif found:
        yield fail(
            f"is damaged: {found[0]}" + (f", and {len(found) - 1} more" if len(found) > 1 else ""),
            f"`semtask down`, keep a copy of {path}, and see `semtask db check`",
        )
    else:
        yield ok(f"sound, {render.size(path.stat().st_size)}, schema version {schema.version}")


def _write_ahead_log(patient: Patient) -> Iterator[Finding]:
    wal = Path(f"{patient.settings.database}-wal")
    size = wal.stat().st_size if wal.exists() else 0
    if size > _LONG_WAL:
        yield warn(
            f"has {render.size(size)}: it cannot be emptied while something reads the database",
            f"look for other programs that have {patient.settings.database} open",
        )
    else:
        yield ok(render.size(size))


def _disk(patient: Patient) -> Iterator[Finding]:
    folder = _existing(patient.settings.home)
    free = free_bytes(folder)
    text = f"{render.size(free)} free at {folder}"
    with suppress(DaemonUnavailable):  # told by the check of the daemon
        disk = (patient.stats or {}).get("disk") or {"state": "OK"}
        if disk["state"] != "OK":
            yield fail(f"{text}; the daemon calls it {disk['state']}: {disk['reason']}", _OF_DISK[disk["state"]])
            return
    if free < _TOO_FEW_BYTES:
        yield fail(text, "make room; `semtask gc --vacuum` deletes old jobs and gives their space back")
    elif free < _FEW_BYTES:
        yield warn(text, "`semtask gc --vacuum` deletes old jobs and gives their space back")
    else:
        yield ok(text)


def _sync(patient: Patient) -> Iterator[Finding]:
    folder = _existing(patient.settings.database.parent)
    median_ms = statistics.median(_sync_times(folder)) * 1000
    text = f"one write reaches the disk in {median_ms:.1f} ms"
    if median_ms > _SLOW_SYNC_MS:
        yield warn(text, "a faster disk for the home, or durability=os for jobs that a power cut may take")
    else:
        yield ok(text)


def _sync_times(folder: Path) -> list[float]:
    # Without a name, so that nothing is left behind whatever happens.
    file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        times = []
        for _ in range(5):
            os.write(file, b"x" * 4096)
            begin = time.perf_counter()
            os.fsync(file)
            times.append(time.perf_counter() - begin)
        return times
    finally:
        os.close(file)


def _limits(patient: Patient) -> Iterator[Finding]:
    """Of the daemon; without one, what it would inherit from us."""
    settings = patient.settings
    needs = {
        "open files (nofile)": (
            resource.RLIMIT_NOFILE,
            settings.max_connections + _FILES_PER_PROCESS * settings.max_processes + _FILES_OF_DAEMON,
            "ulimit -n",
        ),
        "processes (nproc)": (resource.RLIMIT_NPROC, _PROCESSES_PER_JOB * settings.max_processes, "ulimit -u"),
    }
    texts = []
    for name, (kind, need, command) in needs.items():
        soft, _ = resource.prlimit(patient.pid, kind) if patient.pid else resource.getrlimit(kind)
        shown = "no limit" if soft == resource.RLIM_INFINITY else str(soft)
        texts.append(f"{name}: {shown}")
        if kind == resource.RLIMIT_NOFILE and 0 <= soft < LEAST_OPEN_FILES:
            yield fail(
                f"{name}: {soft}, and a daemon needs {LEAST_OPEN_FILES}", f"`{command} {need}` before `semtask up`"
            )
            return
        if soft != resource.RLIM_INFINITY and soft < need:
            yield warn(
                f"{name}: {soft}, and max_connections and max_processes may take {need}",
                f"`{command} {need}` before `semtask up`, or lower the settings",
            )
            return
    yield ok(", ".join(texts))


def _inherited(patient: Patient) -> Iterator[Finding]:
    """What the daemon has from whoever started it, and gives to its jobs."""
    if not patient.pid:
        yield ok("no daemon runs; one that is started by a command undoes what the shell has set")
        return
    with open(f"/proc/{patient.pid}/cmdline", "rb") as file:
        by_itself = b"--detached" in file.read().split(b"\0")
    with open(f"/proc/{patient.pid}/cgroup", encoding="utf-8", errors="replace") as file:
        group = file.readline().strip().rpartition(":")[2]
    found = ", ".join(differences(patient.pid))
    where = f"control group {group}"
    if found and by_itself:
        yield warn(
            f"{found}: of the shell that started the daemon, which could not undo it; {where}",
            "jobs have it too; `semtask down`, and `semtask up` from a shell without it",
        )
    else:
        yield ok(f"{found or 'nothing that slows jobs down'}; {where}")


def _clock(patient: Patient) -> Iterator[Finding]:
    now = time.time() * 1000
    if now < _EARLIEST:
        yield fail(f"it says {render.iso(int(now))}, which is in the past", "set the clock; times of jobs depend on it")
        return
    newest = max(
        (p.stat().st_mtime * 1000 for p in (patient.settings.database, patient.settings.logs_dir) if p.exists()),
        default=0,
    )
    if newest > now + _SKEW_MS:
        yield warn(
            f"it was turned back: the home was written {render.duration(newest - now)} in the future",
            "deadlines and times of jobs from before are late by as much",
        )
    else:
        yield ok(render.iso(int(now)))


def _port(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    taken = settings.rpc_port != 0 and _is_taken(settings.rpc_port)
    if not taken:
        yield ok(f"{settings.rpc_port} of 127.0.0.1 is free; TCP is {'on' if settings.tcp else 'off'}")
    elif patient.pid is not None and _is_ours(patient):
        yield ok(f"{settings.rpc_port} of 127.0.0.1 is the daemon's")
    elif settings.tcp:
        yield fail(
            f"{settings.rpc_port} of 127.0.0.1 is taken by another program",
            "SEMANTICA_RPC_PORT=0 takes a free one, SEMANTICA_TCP=off none",
        )
    else:
        yield ok(f"{settings.rpc_port} of 127.0.0.1 is taken by another program, which matters only with TCP on")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _is_ours(patient: Patient) -> bool:
    url = f"http://127.0.0.1:{patient.settings.rpc_port}"
    with suppress(SemtaskError), Transport(address_of(patient.settings, url), notice=lambda _: None) as transport:
        return bool(transport.call("admin.stats.v1", {}, 2.0)["pid"] == patient.pid)
    return False


def _attempts(patient: Patient) -> Iterator[Finding]:
    """Each running attempt has a folder; others are of a daemon that was killed, and its next start settles them."""
    try:
        folders = [name for name in os.listdir(patient.settings.attempts_dir) if not name.startswith(".")]
    except FileNotFoundError:
        folders = []
    stats = patient.stats
    running = stats["running_jobs"] if stats else 0
    left = len(folders) - running
    if stats is None and folders:
        yield warn(f"{len(folders)} of a daemon that is gone are not settled", "semtask up")
    elif left > max(10, running):
        yield warn(f"{left} are left over of jobs that have ended", "`semtask down`, then `semtask up` removes them")
    else:
        yield ok(f"{len(folders)}, with {running} running jobs")


def _programs(_patient: Patient) -> Iterator[Finding]:
    """Another program may answer to our names."""
    found: dict[str, str] = {}
    for folder in os.get_exec_path():
        path = shutil.which("semtask", path=folder)
        if path:
            found.setdefault(os.path.realpath(path), path)
    others = list(found.values())[1:]
    if others:
        yield warn(f"`semtask` is {next(iter(found.values()))}, but there is {', '.join(others)} too", "remove one")
    if other := shutil.which("semantica"):
        yield warn(f"{other} is another program; both read SEMANTICA_* variables", "set SEMANTICA_HOME for each alone")
    if not others and not other:
        yield ok("no other `semtask` or `semantica` on PATH")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def _socket(patient: Patient) -> Iterator[Finding]:
    address = address_of(patient.settings)
    if not isinstance(address, UnixAddress):
        yield ok(f"not used: SEMANTICA_RPC_URL is {address}")
        return
    path = patient.settings.socket
    if patient.pid is None and path.exists():
        yield ok(f"{path} is left of a daemon that was killed; the next one replaces it")
    else:
        yield ok(str(path) if path.exists() else f"{path} is there while the daemon runs")


CHECKS: tuple[Check, ...] = (
    _daemon,
    _socket,
    _settings,
    _home,
    _sqlite,
    _file_system,
    _database,
    _write_ahead_log,
    _disk,
    _sync,
    _limits,
    _inherited,
    sandbox,
    _clock,
    _port,
    _attempts,
    apps,
    tokens,
    command_policy,
    _programs,
)


def of_settings(error: StartupError) -> Finding:
    """The only finding where the settings cannot be read: everything else depends on them."""
    return Finding("settings", FAIL, error.message, "mend it; `semtask config validate` checks again")
