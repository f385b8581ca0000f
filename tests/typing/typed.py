"""What type checkers see of the SDK. Each line with an ignore must be an error, and no other one: test_typing.py."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from semtask import AsyncClient, AsyncTask, Client, CompletedCommand, JobHandle, Retry, Semantica, Task

app = Semantica()


@app.task
def plain(path: str, *, force: bool = False) -> int:
    return len(path) if force else 0


@app.task(queue="index", retry=Retry(5, base=1.0, cap=60.0), deadline=timedelta(minutes=2), timeout=30, concurrency=2)
def with_options(path: str, *numbers: int) -> dict[str, int]:
    return {path: len(numbers)}


@app.task
async def awaited(text: str) -> list[float]:
    return [float(len(text))]


@app.task(queue="net", retry=3)
async def awaited_with_options(text: str, /, count: int = 1) -> bytes:
    return text.encode() * count


@app.task
def nothing() -> None: ...


class Worker:
    @staticmethod
    @app.task
    def method(x: int) -> str:
        return str(x)


def kinds() -> None:
    assert_type(plain("a"), int)
    assert_type(plain.enqueue("a", force=True), JobHandle[int])
    assert_type(plain.enqueue("a").result(timeout=30), int)
    assert_type(plain.using(subject="a", priority=5, delay=timedelta(seconds=5)).enqueue("a").result(), int)
    assert_type(plain.enqueue_many([("a",), {"path": "b"}, plain.args("c", force=True)]), list[JobHandle[int]])
    assert_type(plain.handle("id").result(), int)
    assert_type(with_options.enqueue("a", 1, 2).result(), dict[str, int])
    assert_type(nothing.enqueue(), JobHandle[None])
    assert_type(Worker.method.enqueue(1).result(), str)
    assert_type(app.run("make", "test", env={"A": "b"}, timeout=600, on_duplicate="join").result(), CompletedCommand)
    assert_type(app.job("id").result(), Any)
    is_task: Task[Any, int] = plain
    is_async_task: AsyncTask[Any, list[float]] = awaited
    wider: JobHandle[object] = plain.enqueue("a")
    print(is_task, is_async_task, wider)


async def async_kinds() -> None:
    called: Coroutine[Any, Any, list[float]] = awaited("a")
    assert_type(await called, list[float])
    assert_type(awaited.enqueue("a"), JobHandle[list[float]])
    assert_type(awaited.enqueue("a").result(), list[float])
    assert_type(await awaited.aenqueue("a"), JobHandle[list[float]])
    assert_type(await (await awaited.aenqueue("a")), list[float])
    assert_type(await awaited_with_options.enqueue("a", count=2), bytes)
    assert_type(await awaited_with_options.using(queue="b").enqueue("a").aresult(timeout=1), bytes)
    assert_type(await (await plain.aenqueue("a")), int)
    assert_type(await (await app.arun("make")), CompletedCommand)
    async for line in plain.enqueue("a").alogs(follow=True):
        assert_type(line, str)


def wrong_arguments() -> None:
    plain(1)  # type: ignore[arg-type]
    plain.enqueue(1)  # type: ignore[arg-type]
    plain.enqueue()  # type: ignore[call-arg]
    plain.enqueue("a", True)  # type: ignore[call-arg]
    plain.enqueue("a", forse=True)  # type: ignore[call-arg]
    plain.using(queue="b").enqueue(b"a")  # type: ignore[arg-type]
    plain.args(1)  # type: ignore[arg-type]
    plain.enqueue_many(["a"])  # type: ignore[list-item]
    with_options.enqueue("a", "b")  # type: ignore[arg-type]
    awaited.enqueue(1)  # type: ignore[arg-type]
    awaited_with_options.enqueue(text="a")  # type: ignore[call-arg]
    nothing.enqueue(1)  # type: ignore[call-arg]
    app.run("make", 5)  # type: ignore[arg-type]


async def wrong_results() -> None:
    text: str = plain.enqueue("a").result()  # type: ignore[assignment]
    numbers: list[int] = await awaited.enqueue("a")  # type: ignore[assignment]
    code: str = app.run("make").result().exit_code  # type: ignore[assignment]
    handle: JobHandle[str] = plain.enqueue("a")  # type: ignore[assignment]
    size: int = awaited("a")  # type: ignore[assignment]
    later: JobHandle[int] = plain.aenqueue("a")  # type: ignore[assignment]
    print(text, numbers, code, handle, size, later)


def wrong_options() -> None:
    plain.using(prio=5)  # type: ignore[call-arg]
    plain.using(priority="high")  # type: ignore[arg-type]
    plain.using(on_duplicate="perhaps")  # type: ignore[arg-type]
    plain.using(at="tomorrow")  # type: ignore[arg-type]
    plain.using(at=datetime.now(UTC), deadline=datetime.now(UTC))
    app.run("make", tiemout=5)  # type: ignore[call-arg]
    app.task(timeot=5)  # type: ignore[call-overload]
    app.task(priority="high")  # type: ignore[call-overload]
    app.task(subject="a")  # type: ignore[call-overload]
    app.task(retry="often")  # type: ignore[call-overload]
    app.task(5)  # type: ignore[call-overload]


def clients(client: Client) -> None:
    assert_type(client.enqueue("a", {"x": 1}, priority=5, tag=None, grace_ms=10).job_id, str)
    client.enqueue("a")  # type: ignore[call-arg]
    client.enqueue("a", {}, priority="high")  # type: ignore[arg-type]
    client.enqueue("a", {}, on_duplicate="perhaps")  # type: ignore[arg-type]


async def async_clients(client: AsyncClient) -> None:
    assert_type((await client.enqueue("a", {}, priority=5)).job_id, str)
    await client.enqueue("a", {}, grace_ms="10s")  # type: ignore[arg-type]
