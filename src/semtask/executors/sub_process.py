"""The executor of commands: one attempt from its folder to its outcome, through the launcher and a shim."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

from msgspec import structs

from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.base import CommandSpec, KillFailed
from semtask.executors.shim_end import Lost, ShimEnd
from semtask.executors.spawner import NoRoomError, NotSpawnedError, SpawnedShim, Spawner, SpawnRequest
from semtask.host import isolation, linux, procfs
from semtask.launch import control
from semtask.launch.folder import DAEMON_DIED, AttemptFolder, Record, Stop
from semtask.launch.pump import Pump
from semtask.launch.sandbox import Sandbox
from semtask.model import outcome
from semtask.model.job import ProcessIdentity
from semtask.model.outcome import Outcome
from semtask.model.sandbox import SandboxLevel, confines
from semtask.model.state import StopReason

log = logging.getLogger("semtask.commands")

_LEARN_S = 0.02

OpenLogs = Callable[[str, int, bool], tuple[int, int | None]]
"""(job_id, claim_no, split) -> descriptors of the logs of stdout and, if split, of stderr."""


def outcome_of(record: Record) -> Outcome:
    """What a whole record says. A stop that the daemon asked for is not judged here: `model.retry.decide` does it."""
    if record.wait_status is None:
        if record.spawn_errno in control.NO_ROOM:
            return outcome.no_room(record.spawn_error)
        return outcome.spawn_failed(record.spawn_error)
    end = outcome.of_command(record.wait_status)
    level = SandboxLevel(record.sandbox) if record.sandbox else None
    if record.stop == DAEMON_DIED:
        why = "the daemon died while the command ran"
        return structs.replace(outcome.interrupted(why, exit_code=end.exit_code, signal=end.signal), sandbox=level)
    return structs.replace(end, stopped=bool(record.stop), sandbox=level)


class _Attempt:
    """A running attempt and what was asked of it."""

    def __init__(self, spec: CommandSpec, folder: AttemptFolder, on_started: Callable[[ProcessIdentity], None]) -> None:
        self.about = {"job_id": spec.job_id, "claim_no": spec.claim_no}
        self.folder = folder
        self.shim: SpawnedShim | None = None
        self.output: list[Pump] = []
        self.stop: Stop | None = None
        self.handed_over = False
        self.kill_failed = False
        self.alarm: asyncio.TimerHandle | None = None
        self._on_started: Callable[[ProcessIdentity], None] | None = on_started

    def started(self, command: ProcessIdentity) -> None:
        """Tell who the command is, once."""
        if self._on_started is not None:
            tell, self._on_started = self._on_started, None
            tell(command)

    def is_stopping(self) -> bool:
        return self.stop is not None

    def convey_stop(self) -> None:
        """Write the note, then wake the shim, if there is one by now."""
        if self.stop is None or not self.handed_over:
            return
        try:
            self.folder.ask_to_stop(self.stop)
        except OSError as error:
            text = "cannot write %s/stop: %s; the command is stopped with its own grace"
            log.warning(text, self.folder.path, error, extra=self.about)
        if self.shim is not None:
            self.shim.terminate()


class SubprocessExecutor:
    """Implements `executors.base.Executor` for commands.

    `protected` are the folders and files that no sandboxed command may reach. `open_port`: the daemon does what anybody
    on this machine asks of it by TCP.
    `kill_patience_s`: how long after its grace a stopped attempt may still have processes before `on_kill_failed`.
    """

    def __init__(
        self,
        attempts: AttemptsDir,
        spawner: Spawner,
        open_logs: OpenLogs,
        on_kill_failed: KillFailed,
        count: Callable[[str, int], None],
        *,
        protected: Sequence[str] = (),
        open_port: bool = False,
        kill_patience_s: float = 5.0,
    ) -> None:
        self._attempts = attempts
        self._protected = [os.path.realpath(path) for path in (*protected, attempts.path)]
        self._open_port = open_port
        self._confined = linux.has_no_new_privs()
        self._spawner = spawner
        self._open_logs = open_logs
        self._on_kill_failed = on_kill_failed
        self._count = count
        self._kill_patience_s = kill_patience_s
        self._live: dict[tuple[str, int], _Attempt] = {}

    async def run(self, spec: CommandSpec, on_started: Callable[[ProcessIdentity], None]) -> Outcome:
        attempt = _Attempt(spec, self._attempts.attempt(spec.job_id, spec.claim_no), on_started)
        key = (spec.job_id, spec.claim_no)
        self._live[key] = attempt
        try:
            end = await self._run(spec, attempt)
            return structs.replace(end, sandbox=spec.sandbox.level) if spec.sandbox is not None else end
        except NoRoomError as error:
            return outcome.no_room(str(error))
        except NotSpawnedError as error:
            return outcome.never_ran(str(error))
        finally:
            del self._live[key]
            _close(attempt.output)
            if attempt.alarm is not None:
                attempt.alarm.cancel()

    def stop(self, job_id: str, claim_no: int, reason: StopReason, grace_ms: int) -> None:
        attempt = self._live.get((job_id, claim_no))
        if attempt is None:
            return
        if attempt.stop is not None:
            grace_ms = min(grace_ms, attempt.stop.grace_ms)
        attempt.stop = Stop(reason.value, grace_ms)
        attempt.convey_stop()
        if attempt.alarm is not None:
            attempt.alarm.cancel()
        loop = asyncio.get_running_loop()
        # A daemon that was stopped for a while learns of an end after the time that has passed: hence not immediately.
        alarm_s = grace_ms / 1000 + self._kill_patience_s
        attempt.alarm = loop.call_later(alarm_s, loop.call_later, _LEARN_S, self._kill_failed, job_id, claim_no)

    def job_of(self, pid: int) -> tuple[str, int] | None:
        shims = {attempt.shim.pid: key for key, attempt in self._live.items() if attempt.shim is not None}
        return next((shims[one] for one in procfs.line_of(pid) if one in shims), None)

    def forget(self, job_id: str, claim_no: int) -> None:
        """Remove the folder of an attempt whose end was committed."""
        self._attempts.attempt(job_id, claim_no).remove()

    async def _run(self, spec: CommandSpec, attempt: _Attempt) -> Outcome:
        if spec.sandbox is not None:
            level = spec.sandbox.level
            if why := isolation.why_not(level, daemon_confined=self._confined) or self._why_open(spec.sandbox):
                return outcome.spawn_failed(f"the sandbox level {level.value} is not available here: {why}")
            spec = self._confine(spec, spec.sandbox, attempt.folder)
        try:
            specification = control.encode_specification(
                spec.working_dir,
                spec.argv,
                spec.env,
                spec.executable or "",
                confined=spec.sandbox,
                standing=spec.standing,
            )
        except ValueError as error:
            return outcome.spawn_failed(str(error))
        fds: list[int] = []
        try:
            request = self._prepare(spec, attempt, specification, fds)
            if attempt.is_stopping():
                return outcome.never_ran("it was stopped before it started")
            attempt.handed_over = True
            attempt.shim = await self._spawner.spawn(request)
        except OSError as error:
            return outcome.no_room(f"the files of the attempt could not be made: {error}")
        finally:
            for fd in fds:
                os.close(fd)
        attempt.convey_stop()  # a stop that came while the launcher was at work
        return await self._finish(spec, attempt)

    def _why_open(self, sandbox: Sandbox) -> str | None:
        """Why a job could get out of this sandbox by asking the daemon."""
        # Landlock knows TCP, but not what speaks it under another name (MPTCP).
        reaches_port = sandbox.network or sandbox.level is SandboxLevel.LANDLOCK
        if self._open_port and confines(sandbox.level) and reaches_port:
            return "the daemon's TCP port wants no token (SEMANTICA_TCP_AUTH=off), so it could ask there for anything"
        return None

    def _confine(self, spec: CommandSpec, sandbox: Sandbox, folder: AttemptFolder) -> CommandSpec:
        """With the places of the sandbox. A folder for temporary files takes the place of that of the user."""
        private = folder.private if sandbox.level is SandboxLevel.LANDLOCK else ""
        env = {**spec.env, "TMPDIR": private or "/tmp"} if confines(sandbox.level) else spec.env  # noqa: S108 - its own
        program = isolation.bubblewrap() if sandbox.level is SandboxLevel.BWRAP else ""
        places = sandbox._replace(private=private, protected=self._protected, bwrap=program or "")
        return structs.replace(spec, env=env, sandbox=places)

    def _prepare(self, spec: CommandSpec, attempt: _Attempt, specification: bytes, fds: list[int]) -> SpawnRequest:
        """Make the files of the attempt; what was opened is added to `fds`."""
        attempt.folder.create()
        if spec.sandbox is not None and spec.sandbox.private:
            os.mkdir(spec.sandbox.private, 0o700)
        fds.append(attempt.folder.open())
        outputs = self._open_outputs(spec, attempt, fds)
        fds.append(control.sealed("semtask-command", specification))
        return SpawnRequest(
            folder=attempt.folder,
            specification=fds[-1],
            folder_fd=fds[0],
            outputs=outputs,
            umask=spec.umask,
            grace_ms=spec.grace_ms,
            on_command=attempt.started,
            on_stuck=lambda: self._kill_failed(spec.job_id, spec.claim_no),
            about=attempt.about,
        )

    def _open_outputs(self, spec: CommandSpec, attempt: _Attempt, fds: list[int]) -> tuple[int, ...]:
        logs = [fd for fd in self._open_logs(spec.job_id, spec.claim_no, spec.split_stderr) if fd is not None]
        outputs: list[int] = []
        try:
            while logs:
                source, stream = os.pipe2(os.O_CLOEXEC)
                fds.append(stream)
                outputs += (stream, source, logs[0])
                attempt.output.append(Pump(source, logs.pop(0)))
        finally:
            for fd in logs:
                os.close(fd)
        return tuple(outputs)

    def _kill_failed(self, job_id: str, claim_no: int) -> None:
        attempt = self._live.get((job_id, claim_no))
        if attempt is not None and not attempt.kill_failed:
            attempt.kill_failed = True
            self._on_kill_failed(job_id, claim_no)

    async def _finish(self, spec: CommandSpec, attempt: _Attempt) -> Outcome:
        end = ShimEnd(self._spawner, attempt.folder, spec.nonce, self._count, attempt.started, log, attempt.about)
        seen = await end.wait(attempt.shim)
        if not isinstance(seen, Lost):
            return outcome_of(seen)
        output, attempt.output = attempt.output, []
        # In a thread: a file system that is frozen or busy must not stop the daemon.
        await asyncio.to_thread(_save, output)
        if seen.had_no_room:
            return outcome.no_room("the shim of the command had no room for its files or processes")
        return outcome.lost(f"the shim that watched the command {seen.how} and left no record")


def _save(output: list[Pump]) -> None:
    """Move what a lost shim has left in the pipes."""
    for pump in output:
        pump.drain()
    _close(output)


def _close(output: list[Pump]) -> None:
    for pump in output:
        pump.close()
