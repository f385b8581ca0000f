"""Async tasks that leave something going on the event loop: the app of test_async_leftovers.py."""

# ruff: noqa: ASYNC110, RUF006, SIM105 - code as careless people write it

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from semtask import Semantica, app_scope

app = Semantica()
task = app.task(queue="async")
kept: list[Any] = []
peers: list[socket.socket] = []  # of connections that stay
_TICK_S = 0.01


def write(path: str, text: str = "x") -> None:
    with Path(path).open("a", encoding="ascii") as file:
        file.write(text)


async def tick(path: str) -> None:
    while True:
        write(path)
        await asyncio.sleep(_TICK_S)


@task
async def where(wait_s: float = 0.0) -> int:
    while peers:
        peers.pop().send(b"x")
    await asyncio.sleep(wait_s)
    return os.getpid()


@task
async def beside(go: str) -> int:
    while not Path(go).exists():
        await asyncio.sleep(_TICK_S)
    return os.getpid()


@task
async def change() -> int:
    gc.disable()
    return os.getpid()


@task
async def leave(kind: str, path: str) -> int:
    await LEAVERS[kind](path)
    return os.getpid()


@task
async def leave_and_hang(path: str) -> None:
    asyncio.create_task(tick(path))
    await asyncio.Event().wait()


async def a_task(path: str) -> None:
    asyncio.create_task(tick(path), name="my ticker")
    await asyncio.sleep(_TICK_S)


async def a_task_of_a_task(path: str) -> None:
    async def inner() -> None:
        asyncio.create_task(tick(path))

    await asyncio.create_task(inner())
    await asyncio.sleep(_TICK_S)


async def a_gathered_task(path: str) -> None:
    kept.append(asyncio.gather(tick(path), asyncio.sleep(0)))
    await asyncio.sleep(_TICK_S)


async def a_shielded_task(path: str) -> None:
    try:
        await asyncio.wait_for(asyncio.shield(tick(path)), _TICK_S)
    except TimeoutError:
        pass


async def a_task_in_another_context(path: str) -> None:
    async def inner() -> None:
        asyncio.create_task(tick(path))

    asyncio.create_task(inner(), context=contextvars.Context())
    await asyncio.sleep(_TICK_S)


async def a_task_past_the_loop(path: str) -> None:
    kept.append(asyncio.Task(tick(path)))
    await asyncio.sleep(_TICK_S)


async def an_eager_task(path: str) -> None:
    eager: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
    kept.append(asyncio.Task(tick(path), loop=asyncio.get_running_loop(), **eager))
    await asyncio.sleep(_TICK_S)


async def a_task_of_a_callback(path: str) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_task(asyncio.sleep(0))
    done.add_done_callback(lambda _: kept.append(loop.create_task(tick(path))))


async def a_task_of_a_later_callback(path: str) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(asyncio.sleep(60))
    task.add_done_callback(lambda _: kept.append(loop.create_task(tick(path))))
    await asyncio.sleep(_TICK_S)


async def a_task_of_a_thread(path: str) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(tick(path), loop))


async def call_later(path: str) -> None:
    loop = asyncio.get_running_loop()

    def again() -> None:
        write(path)
        loop.call_later(_TICK_S, again)

    again()


async def call_at(path: str) -> None:
    loop = asyncio.get_running_loop()
    for number in range(100):
        loop.call_at(loop.time() + number * _TICK_S, write, path)


async def call_soon(path: str) -> None:
    loop = asyncio.get_running_loop()

    def again() -> None:
        write(path)
        loop.call_soon(again)

    again()


async def a_reader(path: str) -> None:
    left, right = socket.socketpair()
    kept.extend([left, right])
    right.send(b"x")
    asyncio.get_running_loop().add_reader(left, write, path)
    await asyncio.sleep(_TICK_S)


async def a_writer(path: str) -> None:
    left, right = socket.socketpair()
    kept.extend([left, right])
    asyncio.get_running_loop().add_writer(left, write, path)
    await asyncio.sleep(_TICK_S)


async def a_task_of_a_connection(path: str) -> None:
    class Ticks(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            kept.append(asyncio.get_running_loop().create_task(tick(path)))

    ours, peer = socket.socketpair()
    peers.append(peer)
    kept.append((peer, await asyncio.get_running_loop().create_connection(Ticks, sock=ours)))


async def a_server(path: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        write(path)

    kept.append(await asyncio.start_unix_server(serve, f"{path}.sock"))


async def a_process(path: str) -> None:
    await asyncio.create_subprocess_exec("sh", "-c", f"while :; do printf x >>{path}; sleep 0.01; done")
    await asyncio.sleep(_TICK_S)


async def work_in_a_thread(path: str) -> None:
    asyncio.get_running_loop().run_in_executor(None, _write_for, path, 0.2)
    while not Path(path).exists():  # what has not begun would be cancelled
        await asyncio.sleep(_TICK_S)


async def work_that_waits_for_a_thread(path: str) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(100):  # more than the pool has threads
        loop.run_in_executor(None, _write_for, path, 0.05)


async def a_thread(path: str) -> None:
    threading.Thread(target=_write_for, args=(path, 0.2)).start()


def _write_for(path: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        write(path)
        time.sleep(_TICK_S)


async def _letters(path: str) -> AsyncIterator[str]:
    try:
        yield "a"
        yield "b"
    finally:
        await asyncio.sleep(_TICK_S)
        write(path, "cleaned")


async def a_generator(path: str) -> None:
    async for _ in _letters(path):
        break


async def one_that_cleans_up(path: str) -> None:
    async def clean() -> None:
        try:
            await tick(path)
        finally:
            await asyncio.gather(asyncio.sleep(_TICK_S), asyncio.create_task(asyncio.sleep(_TICK_S)))
            write(path, "cleaned")

    asyncio.create_task(clean())
    await asyncio.sleep(_TICK_S)


async def one_that_swallows(path: str) -> None:
    async def swallow() -> None:
        while True:
            try:
                await tick(path)
            except asyncio.CancelledError:
                continue

    asyncio.create_task(swallow())
    await asyncio.sleep(_TICK_S)


async def one_that_refuses(path: str) -> None:
    async def refuse() -> None:
        while True:
            try:
                await tick(path)
            except BaseException:  # GeneratorExit too
                continue

    asyncio.create_task(refuse())
    await asyncio.sleep(_TICK_S)


async def a_long_thread(path: str) -> None:
    threading.Thread(target=_write_for, args=(path, 8.0), daemon=True, name="long").start()


async def of_the_app(path: str) -> None:
    with app_scope():
        kept.append(asyncio.create_task(tick(path)))


LEAVERS: dict[str, Callable[[str], Awaitable[None]]] = {
    function.__name__: function
    for function in (
        *(a_task, a_task_of_a_task, a_gathered_task, a_shielded_task, a_task_in_another_context, a_task_past_the_loop),
        *(
            an_eager_task,
            a_task_of_a_callback,
            a_task_of_a_later_callback,
            a_task_of_a_thread,
            call_later,
            call_at,
            call_soon,
            a_reader,
            a_writer,
        ),
        *(
            a_task_of_a_connection,
            a_server,
            a_process,
            work_in_a_thread,
            work_that_waits_for_a_thread,
            a_thread,
            a_generator,
        ),
        *(one_that_cleans_up, one_that_swallows, one_that_refuses, a_long_thread, of_the_app),
    )
}
