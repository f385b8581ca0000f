"""Daemons of other homes, started for jobs: what a job starts itself ends with the job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

from semtask.client import autostart
from semtask.config.loading import load
from semtask.config.settings import Settings
from semtask.errors import ConfigError, StartupError, SystemFailure, ValidationError
from semtask.protocol.admin import StartDaemonParams, StartedDaemon


class OtherDaemons:
    """They are children of this process, and go on when it ends. `keep` is entered while one is started, and gives
    who is to be told its pid.
    """

    def __init__(self, keep: Callable[[], AbstractContextManager[Callable[[int], None]]]) -> None:
        self._keep = keep

    async def start(self, params: StartDaemonParams) -> StartedDaemon:
        """Start the daemon of another home with this interpreter, and wait until it is ready or has given up.

        Raises ValidationError for an environment that names no home, SystemFailure if it cannot be started.
        """
        if not params.env.get("SEMANTICA_HOME", "").startswith("/"):
            raise ValidationError("`env` must have an absolute SEMANTICA_HOME", details={"parameter": "env"})
        try:
            settings = load(params.env, cwd="/")
        except ConfigError as error:
            raise ValidationError(error.message, details={"parameter": "env"}) from error
        # To its end, also if the client leaves: the process must be known as ours.
        return await asyncio.shield(asyncio.ensure_future(self._start(settings, params)))

    async def _start(self, settings: Settings, params: StartDaemonParams) -> StartedDaemon:
        try:
            with self._keep() as keep:
                pid, ready, exit_code = await asyncio.to_thread(
                    autostart.start_for_another, settings, params.env, params.umask
                )
                keep(pid)
        except StartupError as error:
            raise SystemFailure(error.message) from error
        return StartedDaemon(pid=pid, ready=ready, exit_code=exit_code)
