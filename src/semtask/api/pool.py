"""The open connections, and which of them is closed when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter

from semtask.api.connection import Connection, ConnectionState

# A connection in its state for less than this may have its request on the way.
_FRESH_S = 1.0
# A process with more than this share of all connections makes room among its own.
_CROWD = 8
_NOT_IDLE = frozenset({ConnectionState.STREAMING, ConnectionState.WORKING})


class ConnectionPool:
    """Has room for `most` connections, each of a process that is known by its pid (0 for all that come by TCP)."""

    def __init__(self, most: int, monotonic: Callable[[], float]) -> None:
        self._most = most
        self._monotonic = monotonic
        self._pids: dict[Connection, int] = {}
        self._crowds: Counter[int] = Counter()
        self._states: dict[Connection, ConnectionState] = {}
        # Each with the time since when it is in this state, the oldest first.
        self._groups: dict[ConnectionState, dict[Connection, float]] = {state: {} for state in ConnectionState}

    def __len__(self) -> int:
        return len(self._pids)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._pids))

    @property
    def overfull(self) -> bool:
        return len(self._pids) > self._most

    def enter(self, connection: Connection, pid: int) -> None:
        self._pids[connection] = pid
        self._crowds[pid] += 1

    def set_state(self, connection: Connection, state: ConnectionState) -> None:
        """Has no effect on one that has left."""
        if connection in self._pids:
            self._forget(connection)
            self._states[connection] = state
            self._groups[state][connection] = self._monotonic()

    def leave(self, connection: Connection) -> None:
        """Has no effect on one that has left."""
        pid = self._pids.pop(connection, None)
        if pid is None:
            return
        self._forget(connection)
        self._crowds[pid] -= 1
        if not self._crowds[pid]:
            del self._crowds[pid]

    def least_missed(self, pid: int) -> Connection | None:
        """The one to close for a newcomer from `pid`: by what it does, but none that is fresh while there are others.

        A process that has many loses one of its own. None if all are at work.
        """
        crowded = self._crowds[pid] > self._most // _CROWD
        return (self._oldest(pid) if crowded else None) or self._oldest(None)

    def _oldest(self, pid: int | None) -> Connection | None:
        """A stream is closed only if there is nothing else: that it is old and silent does not make it idle."""
        groups = (group for state, group in self._groups.items() if state not in _NOT_IDLE)
        oldest = [first for first in (self._first(group, pid) for group in groups) if first is not None]
        if not oldest:
            stream = self._first(self._groups[ConnectionState.STREAMING], pid)
            return stream[0] if stream else None
        settled = self._monotonic() - _FRESH_S
        return next((c for c, since in oldest if since < settled), min(oldest, key=itemgetter(1))[0])

    def _first(self, group: dict[Connection, float], pid: int | None) -> tuple[Connection, float] | None:
        return next((one for one in group.items() if pid in {None, self._pids[one[0]]}), None)

    def _forget(self, connection: Connection) -> None:
        state = self._states.pop(connection, None)
        if state is not None:
            del self._groups[state][connection]
