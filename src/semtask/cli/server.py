"""`up`, `down`, `status` and `daemon`."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semtask.cli import render
from semtask.cli.apps import app_options, briefly, register, require_imported, require_usable, tell, wanted_app
from semtask.cli.arguments import now_ms
from semtask.cli.session import Command, Session, pass_session
from semtask.client.address import NotRunning, UnixAddress, address_of
from semtask.client.messages import LIST_APPS, LIST_WORKERS, STATS, json_of
from semtask.client.transport import Transport
from semtask.errors import ConfigError, DaemonUnavailable, MethodNotFound, SystemFailure

if TYPE_CHECKING:
    from semtask.protocol.admin import DiskView, Stats, ThrottleView
    from semtask.protocol.apps import AppView, WorkerView


@click.command(cls=Command)
@click.option("--app", "module", metavar="PACKAGE.MODULE:APP", help="Also run the tasks of this app.")
@app_options
@pass_session
def up(session: Session, /, module: str | None, **place: str | None) -> None:
    """Start the daemon in the background, unless it runs, and wait until it is ready.

    With --app it adds the app to the list, unless it is there, and waits until its code, as it is now, is imported.
    Exit code 1 if it cannot be.
    """
    if module is None:
        if given := next((name for name, value in place.items() if value is not None), None):
            raise click.UsageError(f"--{given} goes with --app only")
        transport, app = _started(session), None
    else:
        wanted = wanted_app(session, module, **place)
        transport = _started(session)
        app = register(session, transport, wanted)
    stats = transport.send(STATS())
    if not session.json:
        if not session.quiet:
            session.line(_headline(session, stats))
        if app is not None:
            tell(session, app)
        return
    if app is not None:
        require_usable(session, app)
    session.emit(_status_json(session, stats) | ({"app": json_of(app)} if app else {}))
    if app is not None:
        require_imported(session, app)


def _started(session: Session) -> Transport:
    """The daemon; variables without effect are reported, which a start does itself."""
    from semtask.config.unused import unknown_environment

    try:
        transport = session.connect(start=False)
    except NotRunning:
        return session.connect(start=True)
    for name, problem in unknown_environment().items():
        session.notice(f"{name} {problem}")
    return transport


@click.command(cls=Command)
@pass_session
def status(session: Session) -> None:
    """Show the daemon, what it has to do, and its queues. Exit code 3 if it does not run."""
    session.forgive_broken_settings()
    transport = session.connect(start=False)
    stats = transport.send(STATS())
    if session.quiet:
        return
    apps, workers = _apps_and_workers(transport)
    if session.json:
        session.emit(_status_json(session, stats) | {"apps": [json_of(app) for app in apps], "workers": len(workers)})
        return
    system = stats.system
    session.line(_headline(session, stats))
    session.line(
        f"jobs: {stats.running_jobs} running, {stats.queued_jobs} queued, {stats.scheduled_jobs} scheduled, "
        f"{stats.done_jobs} done, {stats.failed_jobs} failed"
    )
    session.line(
        f"processes: {system.running_processes} of {system.max_processes}, database: {render.size(stats.db_size_bytes)}"
    )
    if apps:
        session.line("apps: " + ", ".join(f"{app.name} ({briefly(app)})" for app in apps))
        session.line(_workers_line(workers))
    if stats.commands_held:
        session.line(f"no command is accepted or started: {render.printable(stats.commands_held)}")
    if stats.throttle.active:
        session.line(f"background work waits, {_for_how_long(stats.throttle)}")
    disk: DiskView | None = stats.disk  # None of a daemon from before an upgrade
    if disk is not None and disk.state != "OK":
        session.line(f"the disk is {disk.state}, {_for_how_long(disk)}")
    if stats.queues and session.terminal:
        from semtask.cli.queues import queue_lines

        session.line("")
        for line in queue_lines(session, stats.queues):
            session.line(line)


def _for_how_long(state: ThrottleView | DiskView) -> str:
    """'for 3m05s by now: ...', with the reason."""
    since = 0.0 if state.since is None else now_ms() - state.since
    return f"for {render.duration(since)} by now: {render.printable(state.reason or 'no reason is known')}"


def _apps_and_workers(transport: Transport) -> tuple[list[AppView], list[WorkerView]]:
    try:
        return transport.send(LIST_APPS()).apps, transport.send(LIST_WORKERS()).workers
    except MethodNotFound:  # a daemon from before an upgrade: it must at least be seen
        return [], []


def _workers_line(workers: list[WorkerView]) -> str:
    """'workers: 2 busy, 1 idle'."""
    states = [worker.state for worker in workers]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    return "workers: " + (", ".join(counts) or "none")


@click.command(cls=Command)
@click.option("--now", is_flag=True, help="Stop running jobs immediately instead of letting them finish for a while.")
@pass_session
def down(session: Session, now: bool) -> None:
    """Stop the daemon and wait until it is gone. What is queued waits for its next start.

    It works without the socket, too: the daemon of the home is then found by the lock that it holds.
    """
    session.forgive_broken_settings()
    try:
        transport = session.connect(start=False)
    except NotRunning:
        _stop_unreachable(session, now)
        return
    stats = transport.send(STATS())
    pid = stats.pid
    process = _open_daemon(transport, pid)
    try:
        _say_what_happens(session, stats, now)
        _stop(session, process, now)
    finally:
        os.close(process)
    _tell_stopped(session, pid, stats.running_jobs)


def _stop_unreachable(session: Session, now: bool) -> None:
    """The daemon that has the home but no socket: it is starting, or its socket has just been deleted."""
    from semtask.host.locks import verified_holder

    address, home = address_of(session.settings), session.settings.home
    found = verified_holder(home) if isinstance(address, UnixAddress) and home.is_dir() else None
    if found is None:
        raise NotRunning(f"no daemon answers at {address}; there is nothing to stop")
    pid, process = found
    try:
        if not _is_daemon(pid):
            raise NotRunning(f"no daemon answers at {address}; process {pid} is at work on the home, and is no daemon")
        session.notice(f"no daemon answers at {address}, but process {pid} is the daemon of this home")
        _stop(session, process, now)
    finally:
        os.close(process)
    _tell_stopped(session, pid, None)


def _is_daemon(pid: int) -> bool:
    """Others lock a home, too: `semtask db`."""
    try:
        return b"daemon" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _tell_stopped(session: Session, pid: int, running_jobs: int | None) -> None:
    if session.json:
        session.emit({"schema": "down.v1", "pid": pid, "stopped": True, "running_jobs": running_jobs})
    else:
        session.notice(f"the daemon (pid {pid}) has stopped")


def stop_daemon(session: Session, transport: Transport, pid: int, *, now: bool) -> None:
    """Stop the daemon and wait until it is gone; `now`: running jobs may not go on for a while."""
    process = _open_daemon(transport, pid)
    try:
        _stop(session, process, now)
    finally:
        os.close(process)


def _open_daemon(transport: Transport, pid: int) -> int:
    """A pidfd of the daemon. The kernel, not only the answer, must say that this process owns the socket."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        process = -1
    if process >= 0 and transport.peer_pid() == pid:
        return process
    if process >= 0:
        os.close(process)
    raise SystemFailure(
        f"the daemon says that it is process {pid}, and the kernel does not confirm it from here (a container, or a "
        "TCP port?); send SIGTERM where it runs"
    )


def _say_what_happens(session: Session, stats: Stats, now: bool) -> None:
    running, waiting = stats.running_jobs, stats.queued_jobs + stats.scheduled_jobs
    if running:
        one = running == 1
        grace = render.duration(session.settings.shutdown_grace_ms)
        when = f"{'is' if one else 'are'} stopped now" if now else f"may go on for {grace}, then {_it(one)} stopped"
        session.notice(
            f"{_jobs(running, 'running')} {when}; "
            "a stopped command ends FAILED unless it was enqueued with on_interrupt=requeue"
        )
    if waiting:
        session.notice(f"{_jobs(waiting, 'waiting')} will go on at the next start")


def _jobs(count: int, what: str) -> str:
    return f"{count} {what} job{'s' * (count != 1)}"


def _it(one: bool) -> str:
    return "it is" if one else "they are"


def _stop(session: Session, process: int, now: bool) -> None:
    limit = time.monotonic() + session.settings.shutdown_grace_ms / 1000 + 120
    poll = select.poll()
    poll.register(process, select.POLLIN)
    signal.pidfd_send_signal(process, signal.SIGTERM)
    while not poll.poll(200):
        if now:
            try:
                signal.pidfd_send_signal(process, signal.SIGTERM)  # the second one means: immediately
            except ProcessLookupError:
                continue
        if time.monotonic() > limit:
            raise DaemonUnavailable("the daemon is still stopping; `semtask status` shows when it is gone")


def _headline(session: Session, stats: Stats) -> str:
    stopping = "" if stats.accepting else ", stopping"
    return (
        f"daemon: running (pid {stats.pid}, version {stats.version}, "
        f"up {render.duration(stats.uptime_seconds * 1000)}{stopping}), home {_home_of(session, stats)}"
    )


def _home_of(session: Session, stats: Stats) -> str:
    """The daemon's, which is not ours behind SEMANTICA_RPC_URL. One from before an upgrade does not say it."""
    return render.printable(stats.home or str(session.settings.home))


def _status_json(session: Session, stats: Stats) -> dict[str, Any]:
    sent = json_of(stats)
    times: dict[str, Any] = {name: render.with_iso_times(sent[name]) for name in ("throttle", "disk") if name in sent}
    return {"schema": "status.v1", **sent, "home": _home_of(session, stats), **times}


@click.command(cls=Command)
@click.option("--db-path", metavar="FILE", help="The database file.")
@click.option("--tcp/--no-tcp", default=None, help="Listen on 127.0.0.1 too.")
@click.option("--rpc-port", type=int, metavar="PORT", help="The TCP port.")
@click.option("--log-format", type=click.Choice(["console", "json"]), help="The daemon's own log.")
@click.option("--max-processes", type=int, metavar="N", help="Running commands over all queues.")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--detached", is_flag=True, hidden=True)
@click.option("--life-fd", type=int, hidden=True)
@pass_session
def daemon(session: Session, /, ready_fd: int | None, detached: bool, life_fd: int | None, **flags: Any) -> int:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C: what a service manager calls.

    Exit code 100: another daemon owns this home.
    """
    _require_linux()  # elsewhere the daemon's modules cannot even be imported
    from semtask.daemon.process import main as run_daemon
    from semtask.host.standing import become_neutral

    if detached:  # before the settings, some of whose defaults follow the CPUs
        become_neutral()
    session.flags |= flags
    return run_daemon(session.settings, ready_fd=ready_fd, detached=detached, life_fd=life_fd)


def _require_linux() -> None:
    """Raises ConfigError elsewhere: the supervision of processes is written for Linux."""
    if sys.platform != "linux":
        raise ConfigError(f"semtask runs its daemon on Linux only for now, and this is {sys.platform}")
