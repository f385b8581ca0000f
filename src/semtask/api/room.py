"""Which connection is closed when there are too many of them."""

from __future__ import annotations

from operator import itemgetter

from semtask.api.connection import Connection, Standing

# A connection that stands so for less than this may have its request on the way.
_FRESH_S = 1.0


class Room:
    """Connections that may be closed to make room for others, by what they do."""

    def __init__(self) -> None:
        # Each since when it stands so, the oldest first.
        self._groups: dict[Standing, dict[Connection, float]] = {
            standing: {} for standing in Standing if standing is not Standing.WORKING
        }

    def put(self, connection: Connection, standing: Standing, now: float) -> None:
        self.remove(connection)
        if standing is not Standing.WORKING:
            self._groups[standing][connection] = now

    def remove(self, connection: Connection) -> None:
        for group in self._groups.values():
            group.pop(connection, None)

    def least_missed(self, now: float) -> Connection | None:
        """The one to close: by what it does, but none that is fresh as long as there are others."""
        oldest = [next(iter(group.items())) for group in self._groups.values() if group]
        if not oldest:
            return None
        return next((c for c, since in oldest if since < now - _FRESH_S), min(oldest, key=itemgetter(1))[0])
