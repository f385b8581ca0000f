"""The open connections, and which of them is closed when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter

from semtask.api.connection import Connection
from semtask.api.site import Standing

# A connection that stands so for less than this may have its request on the way.
_FRESH_S = 1.0
# A process with more than this share of all connections makes room among its own.
_CROWD = 8


class Room:
    """Has room for `most` connections, each of a process that is known by its pid (0 for all that come by TCP)."""

    def __init__(self, most: int, monotonic: Callable[[], float]) -> None:
        self._most = most
        self._monotonic = monotonic
        self._pids: dict[Connection, int] = {}
        self._crowds: Counter[int] = Counter()
        self._standings: dict[Connection, Standing] = {}
        # Each since when it stands so, the oldest first.
        self._groups: dict[Standing, dict[Connection, float]] = {standing: {} for standing in Standing}

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

    def stands(self, connection: Connection, standing: Standing) -> None:
        """Has no effect on one that has left."""
        if connection in self._pids:
            self._forget(connection)
            self._standings[connection] = standing
            self._groups[standing][connection] = self._monotonic()

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
        groups = (group for standing, group in self._groups.items() if standing is not Standing.WORKING)
        heads = (next((one for one in group.items() if pid in {None, self._pids[one[0]]}), None) for group in groups)
        oldest = [head for head in heads if head is not None]
        if not oldest:
            return None
        settled = self._monotonic() - _FRESH_S
        return next((c for c, since in oldest if since < settled), min(oldest, key=itemgetter(1))[0])

    def _forget(self, connection: Connection) -> None:
        standing = self._standings.pop(connection, None)
        if standing is not None:
            del self._groups[standing][connection]
