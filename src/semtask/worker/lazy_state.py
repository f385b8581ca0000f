"""What modules set up themselves when they are first used: after a job it is put back to what it was before."""

from __future__ import annotations

import functools
import signal
import sys
from typing import Any


class LazyState:
    """A job that only uses urllib, asyncio or random changes what the next one gets; no worker is replaced for that."""

    def __init__(self) -> None:
        self._seeded = False
        self._random: Any = None

    def settle(self) -> None:
        """What is there by now stays."""
        self._opener = getattr(sys.modules.get("urllib.request"), "_opener", None)
        self._policy: Any = getattr(sys.modules.get("asyncio.events"), "_event_loop_policy", None)
        self._loop = getattr(getattr(self._policy, "_local", None), "_loop", None)
        self._wakeup_fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(self._wakeup_fd)
        self._watch_random(sys.modules.get("random"))

    def put_back(self) -> None:
        modules = sys.modules
        urllib: Any = modules.get("urllib.request")
        if self._opener is None and urllib is not None:
            urllib._opener = None
        if self._loop is None:  # else it is that of the worker, which may use all this
            signal.set_wakeup_fd(self._wakeup_fd)
            if (events := modules.get("asyncio.events")) is not None:
                self._put_back_policy(events)
        if self._random is None and (random := modules.get("random")) is not None:
            self._seeded = True  # perhaps: it was not looked at until now
            self._watch_random(random)
        if self._seeded:
            self._seeded = False
            self._seed()

    def _put_back_policy(self, events: Any) -> None:
        """asyncio.run() leaves a process in which get_event_loop() raises, set_event_loop() a loop that is closed."""
        policy = events._event_loop_policy
        if policy is None:
            return
        if policy is self._policy:
            if getattr(policy, "_local", None) is not None and vars(policy._local):
                policy._local = type(policy._local)()
        elif self._policy is None and type(policy).__module__ == "asyncio.unix_events":
            events._event_loop_policy = None

    def _watch_random(self, random: Any) -> None:
        """Jobs that seed the shared generator of random make the numbers of the next one predictable."""
        if random is None or self._random is not None:
            return
        self._random, self._seed = random, random.seed

        @functools.wraps(random.seed)
        def seed(*args: Any, **options: Any) -> None:
            self._seeded = True
            self._seed(*args, **options)

        random.seed = seed
