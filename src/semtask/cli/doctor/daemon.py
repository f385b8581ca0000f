"""What `doctor` finds about the daemon: whether it answers, on which socket and port, and what it left."""

from __future__ import annotations

import os
import socket as sockets
import time
from collections.abc import Iterator
from contextlib import suppress

from semtask import __version__
from semtask.cli import render
from semtask.cli.doctor.patient import Finding, Patient, fail, ok, warn
from semtask.client.address import UnixAddress, address_of
from semtask.client.transport import Transport
from semtask.config.settings import Settings
from semtask.errors import DaemonUnavailable, SemtaskError
from semtask.host.locks import verified_holder


def daemon(patient: Patient) -> Iterator[Finding]:
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
    elif stats.version != __version__:
        yield warn(
            f"is version {stats.version}, this command line is {__version__}", "`semtask down`, then `semtask up`"
        )
    elif not stats.accepting:
        yield warn(f"pid {stats.pid} is stopping", "wait, then `semtask up`")
    else:
        yield ok(f"pid {stats.pid}, version {stats.version}, answered in {took}")


def _locked_by(settings: Settings) -> int | None:
    """The process that has this home, if it is one that we would have reached."""
    here = isinstance(address_of(settings), UnixAddress) and settings.home.is_dir()
    found = verified_holder(settings.home) if here else None
    if found is None:
        return None
    os.close(found[1])
    return found[0]


def socket(patient: Patient) -> Iterator[Finding]:
    address = address_of(patient.settings)
    if not isinstance(address, UnixAddress):
        yield ok(f"not used: SEMANTICA_RPC_URL is {address}")
        return
    path = patient.settings.socket
    if patient.pid is None and path.exists():
        yield ok(f"{path} is left of a daemon that was killed; the next one replaces it")
    else:
        yield ok(str(path) if path.exists() else f"{path} is there while the daemon runs")


def port(patient: Patient) -> Iterator[Finding]:
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
    with sockets.socket() as probe:
        probe.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
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


def attempts(patient: Patient) -> Iterator[Finding]:
    """Each running attempt has a folder; others are of a daemon that was killed, and its next start settles them."""
    try:
        folders = [name for name in os.listdir(patient.settings.attempts_dir) if not name.startswith(".")]
    except FileNotFoundError:
        folders = []
    stats = patient.stats
    running = stats.running_jobs if stats else 0
    left = len(folders) - running
    if stats is None and folders:
        yield warn(f"{len(folders)} of a daemon that is gone are not settled", "semtask up")
    elif left > max(10, running):
        yield warn(f"{left} are left over of jobs that have ended", "`semtask down`, then `semtask up` removes them")
    else:
        yield ok(f"{len(folders)}, with {running} running jobs")
