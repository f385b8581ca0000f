"""A worker from its start to its end.

SIGTERM ends it, as it ends any program: it comes with the kill of its tree, when no grace is wanted any more. SIGINT
raises KeyboardInterrupt, which is a failure of the task that runs. SIGUSR1 is the daemon's: it stops a sync task.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import platform
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import semtask
from semtask.protocol.frames import (
    PROTOCOL,
    WORKER_SOCKET_FD,
    WORKER_STREAM_FD,
    WORKER_TOKENS_FD,
    Failed,
    Hello,
    ProtocolError,
    Run,
    Setup,
    ToWorker,
)
from semtask.tasks.registry import Registry
from semtask.worker.audit import Audit
from semtask.worker.capture import Capture
from semtask.worker.channel import Channel, DaemonGone
from semtask.worker.hygiene import Hygiene
from semtask.worker.kit import Kit
from semtask.worker.loading import AppFailure, load, offers_of
from semtask.worker.mark import Mark
from semtask.worker.results import Results
from semtask.worker.stream import Stream

EXIT_FAILED = 1  # after Failed
EXIT_PROTOCOL = 70


def main() -> None:
    for fd in (WORKER_SOCKET_FD, WORKER_TOKENS_FD):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            sys.exit(
                "semtask.worker is started by the daemon of semtask, with a socket; try: semtask up --app MODULE:APP"
            )
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there are tasks to stop
    channel = Channel(WORKER_SOCKET_FD, WORKER_TOKENS_FD)
    code = 0
    with suppress(DaemonGone):
        code = _work(channel)
    _leave(code)


def _work(channel: Channel) -> int:
    messages: list[ToWorker] = []
    try:
        while not messages:
            messages = channel.receive()
    except ProtocolError as error:
        channel.send(Failed(error=f"{error}: are its semtask and {_me()} of one version?"))
        return EXIT_PROTOCOL
    setup = messages[0]
    assert isinstance(setup, Setup), "the daemon begins with it"
    if setup.protocol != PROTOCOL:
        channel.send(
            Failed(
                error=f"the daemon speaks protocol {setup.protocol}, {_me()} speaks {PROTOCOL}:"
                " install the same version of semtask for both"
            )
        )
        return EXIT_PROTOCOL
    try:
        kit = _prepare(channel, setup)
    except AppFailure as failure:
        channel.send(failure.failed)
        return EXIT_FAILED
    _run(kit, messages[1:])
    return 0


def _me() -> str:
    return f"this worker (semtask {semtask.__version__}, {sys.executable})"


def _prepare(channel: Channel, setup: Setup) -> Kit:
    """Import the app and say hello. Raises AppFailure."""
    capture = Capture(setup.logs_dir, setup.log_path, Stream(WORKER_STREAM_FD) if setup.has_stream else None)
    capture.install()
    faulthandler.enable(capture.own_fd, all_threads=True)
    # Where it hangs, for the daemon that is about to kill it: written in C, also while C code holds the interpreter.
    faulthandler.register(signal.SIGUSR2, capture.own_fd, all_threads=True)
    registry = load(setup.app)
    tasks, refused = offers_of(registry)
    capture.restore_streams()
    capture.install_logging()
    audit = Audit()
    kit = Kit(
        setup=setup,
        registry=registry,
        channel=channel,
        capture=capture,
        audit=audit,
        mark=Mark(setup.mark_path),
        hygiene=Hygiene(setup, audit),
        results=Results(setup),
    )
    channel.send(
        Hello(
            protocol=PROTOCOL,
            version=semtask.__version__,
            python=platform.python_version(),
            pid=os.getpid(),
            tasks=tasks,
            refused=refused,
        )
    )
    return kit


def _run(kit: Kit, messages: list[ToWorker]) -> None:
    """The first job decides what kind of worker this is. Raises DaemonGone."""
    while (is_async := _kind(messages, kit.registry)) is None:
        messages += kit.channel.receive()
    if is_async:
        from semtask.worker.async_runner import AsyncRunner

        AsyncRunner(kit).run(messages)
    else:
        from semtask.worker.sync_runner import SyncRunner

        SyncRunner(kit).run(messages)


def _kind(messages: Sequence[ToWorker], registry: Registry) -> bool | None:
    for message in messages:
        if isinstance(message, Run) and message.calls:
            definition = registry.get(message.calls[0].task)
            return definition is not None and definition.is_async
    return None


def _leave(code: int) -> None:
    """End without waiting for threads that jobs have left: none of them may hold up a worker that has to go."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
