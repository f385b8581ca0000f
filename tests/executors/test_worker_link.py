"""The connection to a worker, seen from the daemon: the order of frames and tokens, and the end of the stream."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from semtask.protocol.frames import (
    Call,
    Frames,
    Progress,
    ProgressInfo,
    ProtocolError,
    Recalled,
    Run,
    ToDaemon,
    encode,
    to_worker,
)
from semtask.workers.link import WorkerLink
from tests.executors.rig import until


class _Peer:
    """A link and the worker's end of it."""

    def __init__(self) -> None:
        self.heard: list[ToDaemon] = []
        self.ends: list[ProtocolError | None] = []
        self.link = WorkerLink(self.heard.extend, self.ends.append)
        channel, tokens = self.link.passed
        self.worker = socket.socket(fileno=os.dup(channel))
        self.tokens = os.dup(tokens)
        self.link.handed_over()

    def close(self) -> None:
        self.worker.close()
        self.link.close()
        os.close(self.tokens)

    def tokens_there(self) -> int:
        count = 0
        while True:
            try:
                count += os.eventfd_read(self.tokens)
            except BlockingIOError:
                os.eventfd_write(self.tokens, count)
                return count


@asynccontextmanager
async def peer() -> AsyncIterator[_Peer]:
    made = _Peer()
    try:
        yield made
    finally:
        made.close()


def run(jobs: int, payload: str = "{}") -> bytes:
    return encode(Run(calls=[_call(payload)] * jobs))


def _call(payload: str) -> Call:
    return Call(job_id="j", claim_no=1, task="t", payload=payload, attempt=1, max_attempts=1)


def progress(done: float) -> bytes:
    return encode(Progress(job_id="j", claim_no=1, progress=ProgressInfo(done=done)))


def test_tokens_of_later_jobs_wait_for_what_is_not_sent_yet() -> None:
    async def main() -> None:
        async with peer() as p:
            p.link.run(run(1, "x" * 4_000_000), 1, tokens=True)
            assert not p.link.is_clear
            assert p.link.take_tokens(5) == 1
            p.link.send(Recalled(jobs=[("j", 1)]))
            p.link.run(run(3), 3, tokens=True)
            p.link.run(run(2), 2, tokens=True)
            assert p.tokens_there() == 0
            assert p.link.withdraw() == 5
            p.link.run(run(2), 2, tokens=True)
            frames = Frames()
            seen: list[object] = []

            def read() -> bool:
                with suppress(BlockingIOError):
                    frames.feed(p.worker.recv(1 << 20, socket.MSG_DONTWAIT))
                for body in frames.bodies():
                    seen.append(to_worker(body))
                    if isinstance(seen[-1], Recalled):
                        seen.append(p.tokens_there())
                return len(seen) == 4

            await until(read, "all frames")
            assert [type(item).__name__ for item in seen] == ["Run", "Recalled", "int", "Run"]
            assert p.tokens_there() == 2
            assert p.link.is_clear

    asyncio.run(main())


def test_a_worker_cannot_make_the_daemon_wait_for_tokens() -> None:
    async def main() -> None:
        async with peer() as p:
            os.set_blocking(p.tokens, True)  # a flag that both share
            p.link.run(run(2), 2, tokens=True)
            assert p.link.take_tokens(10) == 2
            assert p.link.take_tokens(-1) == 0
            os.set_blocking(p.tokens, False)

    asyncio.run(main())


def test_everything_that_was_sent_before_the_end_is_taken() -> None:
    async def main() -> None:
        async with peer() as p:
            whole = b"".join(map(progress, range(500)))
            p.worker.sendall(whole + progress(500)[:-1])
            p.worker.close()
            p.link.drain()  # the loop had no turn since
            assert len(p.heard) == 500
            assert p.ends == [None]
            p.link.send(Recalled(jobs=[]))  # to nobody

    asyncio.run(main())


def test_frames_before_a_bad_one_count() -> None:
    async def main() -> None:
        async with peer() as p:
            p.worker.sendall(progress(1) + b"\0\0\0\1\xc1" + progress(2))
            await until(lambda: p.ends, "the end")
            assert len(p.heard) == 1
            (error,) = p.ends
            assert isinstance(error, ProtocolError)

    asyncio.run(main())
