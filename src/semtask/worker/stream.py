"""A pipe from descriptors 1 and 2 of a worker to the log of a job. The shim empties it, also when the worker is dead.

So programs that a job starts may open their output again. No thread of the worker could empty it: C code that writes
while it holds the interpreter would wait forever.
"""

from __future__ import annotations

import os
import socket

from semtask.worker.descriptors import keep_aside

_PATIENCE_S = 5.0  # a shim answers within milliseconds, unless somebody has stopped it

LEAD = b"+"  # with two descriptors: the read end of a pipe, and the log
DRAIN = b"."  # answered by the same when all that was written has come to the logs


class Stream:
    """`shim` is the descriptor of the socket to the shim; this takes it over."""

    def __init__(self, shim: int) -> None:
        self._shim: socket.socket | None = socket.socket(fileno=keep_aside(shim))
        self._shim.settimeout(_PATIENCE_S)
        os.close(shim)

    def lead_to(self, log: int) -> int | None:
        """The write end of a new pipe to the log; None without a shim. The caller closes it. Raises OSError."""
        if self._shim is None:
            return None
        source, stream = os.pipe()
        try:
            end = keep_aside(stream)
            try:
                socket.send_fds(self._shim, [LEAD], [source, log])
            except OSError:
                os.close(end)
                raise
            return end
        finally:
            os.close(source)
            os.close(stream)

    def drain(self) -> None:
        """Wait until what was written so far is in the logs."""
        if self._shim is None:
            return
        try:
            self._shim.send(DRAIN)
            answer = self._shim.recv(1)
        except OSError:
            answer = b""
        if not answer:  # it would answer the next question with the answer to this one
            self._shim.close()
            self._shim = None
