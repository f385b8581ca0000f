"""AsyncClient: its connections against a scripted server, its methods against a real daemon."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semtask import AsyncClient, Client, errors
from semtask.client.address import NotRunning, TcpAddress, UnixAddress
from semtask.client.async_transport import AsyncTransport
from semtask.model.state import State
from tests.cli.rig import Shell, eventually, kill
from tests.client.fake import Fake, Reply, answer, failure, hang_up, serving

STATS, CANCEL = "admin.stats.v1", "dev.cancel.v1"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    with serving(tmp_path / "run") as server:
        yield server


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def gone(pid: int) -> bool:
    """Whether a killed process has ended with all of its threads: the last one closes its sockets."""
    try:
        threads = [Path(f"/proc/{pid}/task/{thread}/stat").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return True
    return all(stat.rpartition(")")[2].split()[0] in {"Z", "X"} for stat in threads)


async def ask(transport: AsyncTransport, method: str = STATS, *, timeout: float = 10, repeatable: bool = True) -> bytes:
    return await transport.exchange(method, b"{}", timeout=timeout, repeatable=repeatable)


def test_a_connection_is_kept_for_the_next_request(fake: Fake) -> None:
    async def main() -> None:
        async with AsyncTransport(UnixAddress(fake.run_dir), notice=pytest.fail) as transport:
            assert b'"result": 1' in await ask(transport)
            assert b'"result": 2' in await ask(transport)

    fake.script = [answer(1), answer(2)]
    before = open_fds()
    asyncio.run(main())
    assert fake.connections == 1
    assert open_fds() == before


def test_one_that_the_daemon_closed_is_replaced_for_every_request(fake: Fake) -> None:
    async def main() -> None:
        async with AsyncTransport(UnixAddress(fake.run_dir)) as transport:
            await ask(transport)
            (idle,) = transport._idle
            await wait_readable(idle)
            assert b'"result": 2' in await ask(transport, CANCEL, repeatable=False)

    fake.script = [answer(1, keep=False), answer(2)]
    asyncio.run(main())
    assert [r["method"] for r in fake.requests] == [STATS, CANCEL]


async def wait_readable(connection: socket.socket) -> None:
    readable = asyncio.Event()
    asyncio.get_running_loop().add_reader(connection, readable.set)
    await asyncio.wait_for(readable.wait(), 10)
    asyncio.get_running_loop().remove_reader(connection)


def test_a_lost_answer_is_asked_for_again_only_where_that_is_safe(fake: Fake) -> None:
    async def main() -> None:
        async with AsyncTransport(UnixAddress(fake.run_dir)) as transport:
            assert b'"result": 2' in await ask(transport)
            with pytest.raises(errors.DaemonUnavailable, match="before you repeat it"):
                await ask(transport, CANCEL, repeatable=False)
            with pytest.raises(errors.DaemonUnavailable, match="broke 4 times"):
                await ask(transport)

    fake.script = [hang_up, hang_up, hang_up, answer(2), hang_up, *[hang_up] * 4]
    asyncio.run(main())
    assert len(fake.requests) == 9


def waits_for(event: threading.Event) -> Reply:
    def reply(connection: socket.socket, request: dict[str, Any]) -> bool:
        event.wait(10)
        return False

    return reply


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_a_request_that_is_given_up_leaves_no_half_read_connection(fake: Fake, how: str) -> None:
    go = threading.Event()

    async def main() -> None:
        async with AsyncTransport(UnixAddress(fake.run_dir)) as transport:
            if how == "timeout":
                with pytest.raises(errors.DaemonUnavailable, match=r"did not answer admin.stats.v1 within 0\.1 s"):
                    await ask(transport, timeout=0.1)
            else:
                task = asyncio.create_task(ask(transport))
                await asyncio.to_thread(eventually, lambda: fake.requests)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert transport._idle == []
            go.set()
            assert b'"result": 2' in await ask(transport)

    fake.script = [waits_for(go), answer(2)]
    before = open_fds()
    asyncio.run(main())
    assert open_fds() == before


def test_a_connection_that_comes_too_late_is_closed(tmp_path: Path) -> None:
    """The backlog is full when the request is cancelled; its thread gets through later."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "rpc.sock"))
        listener.listen(0)
        first.connect(str(tmp_path / "rpc.sock"))
        before = open_fds()

        async def main() -> None:
            transport = AsyncTransport(UnixAddress(tmp_path))
            task = asyncio.create_task(ask(transport))
            # The loop's own, the folder, and the socket that waits.
            await asyncio.to_thread(eventually, lambda: open_fds() >= before + 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(2):
                listener.accept()[0].close()
            await asyncio.to_thread(eventually, lambda: open_fds() <= before + 3)

        asyncio.run(main())
        assert open_fds() == before


def test_errors_and_another_version_are_told_as_by_the_other_transport(fake: Fake) -> None:
    lines: list[str] = []

    async def main() -> None:
        async with AsyncTransport(UnixAddress(fake.run_dir), notice=lines.append) as transport:
            with pytest.raises(errors.Throttled, match="stop") as caught:
                await ask(transport)
            assert caught.value.retry_after_ms == 3000
            await ask(transport)
            await ask(transport)

    fake.script = [
        failure({"code": -32600, "message": "stop"}, status=503, head="Retry-After: 3\r\n"),
        answer(1, version="9.0.0"),
        answer(1, version="9.0.0"),
    ]
    asyncio.run(main())
    assert len(lines) == 1
    assert "9.0.0" in lines[0]


def test_nobody_there(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(NotRunning, match="semtask up"):
            await ask(AsyncTransport(UnixAddress(tmp_path)))

    asyncio.run(main())


# --- a real daemon ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    running = Shell(tmp_path_factory.mktemp("async") / "home", SEMANTICA_MAX_PROCESSES="8", SEMANTICA_TCP="on")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        running.env["SEMANTICA_RPC_PORT"] = str(probe.getsockname()[1])
    assert running("up").code == 0
    try:
        yield running
    finally:
        running.stop()


def test_many_waits_at_once_do_not_stand_in_each_others_way(shell: Shell) -> None:
    """Eighty waits of one client are under way while it enqueues; a pool of a few connections would be stuck."""

    async def main() -> float:
        async with AsyncClient(home=shell.home, notice=pytest.fail) as client:
            slow = (await client.enqueue("s", {"command": "sleep", "args": ["60"]})).job_id
            waits = [asyncio.create_task(client.wait([slow], timeout_ms=60_000)) for _ in range(80)]
            begin = time.monotonic()
            quick = (await client.enqueue("q", {"command": "true"})).job_id
            assert (await client.wait([quick])).jobs[0].state is State.DONE
            took = time.monotonic() - begin
            assert not any(task.done() for task in waits)
            await client.cancel(slow)
            assert {(await task).jobs[0].state for task in waits} == {State.CANCELLED}
            assert len(client._transport._idle) <= 64
        return took

    assert asyncio.run(main()) < 10


def test_more_requests_than_connections_take_turns(shell: Shell) -> None:
    async def main() -> None:
        async with AsyncClient(home=shell.home) as client:
            pids = await asyncio.gather(*(client.stats() for _ in range(300)))
            assert {stats.pid for stats in pids} == {shell.daemon_pid()}

    asyncio.run(main())


@pytest.mark.parametrize("tcp", [False, True])
def test_both_clients_answer_the_same(shell: Shell, tcp: bool) -> None:
    url = f"http://127.0.0.1:{shell.env['SEMANTICA_RPC_PORT']}" if tcp else None

    async def main() -> tuple[Any, ...]:
        async with AsyncClient(home=shell.home, url=url) as client:
            job = await client.enqueue(
                "x", {"command": "sh", "args": ["-c", "echo ä; exit 3"]}, idempotency_key=str(tcp)
            )
            await client.wait([job.job_id])
            with pytest.raises(errors.NotFound):
                await client.get_job("01a207a1-0000-7000-8000-000000000000")
            with pytest.raises(errors.ValidationError, match="JSON"):
                await client.enqueue("x", object())
            return (
                job.job_id,
                await client.get_job(job.job_id, include=["payload", "attempts"]),
                (await client.read_log(job.job_id)).chunk,
                await client.list_queues(),
                await client.discover(),
            )

    job_id, *answers = asyncio.run(main())
    with Client(home=shell.home, url=url) as client:
        job = client.get_job(job_id, include=["payload", "attempts"])
        assert answers == [job, "ä\n", client.list_queues(), client.discover()]


def test_the_token_goes_with_the_request(shell: Shell, tmp_path: Path) -> None:
    async def main() -> None:
        transport = AsyncTransport(TcpAddress("127.0.0.1", int(shell.env["SEMANTICA_RPC_PORT"]), tmp_path / "none"))
        with pytest.raises(errors.Unauthorized):
            await ask(transport)
        transport.close()

    asyncio.run(main())


def test_it_starts_the_daemon_once_and_does_not_stop_the_loop_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path))
    lines: list[str] = []

    async def main() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        counting = asyncio.create_task(count())
        async with AsyncClient(home=shell.home, notice=lines.append) as client:
            pids = {stats.pid for stats in await asyncio.gather(*(client.stats() for _ in range(10)))}
            assert len(pids) == 1
            assert turns > 10
            (pid,) = pids
            kill(pid)
            await asyncio.to_thread(eventually, lambda: gone(pid), what="it is dead, with its sockets")
            job = await client.enqueue("x", {"command": "true"})
            assert (await client.wait([job.job_id])).jobs[0].state is State.DONE
        counting.cancel()
        return turns

    try:
        asyncio.run(main())
        assert [line.split(" (")[0] for line in lines] == ["started the daemon"] * 2
    finally:
        shell.stop()


def test_no_daemon_and_none_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncClient(home=tmp_path / "home", autostart=False) as client:
            with pytest.raises(errors.DaemonUnavailable, match="semtask up"):
                await client.stats()

    asyncio.run(main())
    assert not (tmp_path / "home").exists()
