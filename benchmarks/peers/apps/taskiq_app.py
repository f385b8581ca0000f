"""taskiq on Redis streams, with coroutines as its documentation shows it."""

import os

from taskiq_redis import RedisStreamBroker  # type: ignore[import-not-found]

from benchmarks.peers import probe

broker = RedisStreamBroker(url=os.environ["BENCHMARK_REDIS"])


@broker.task
async def noop() -> None:
    probe.tick()


@broker.task
async def stamp(sent: float) -> None:
    probe.mark("starts", sent)


async def open_producer() -> None:
    await broker.startup()


async def send_noop() -> None:
    await noop.kiq()


async def send_stamp(sent: float) -> None:
    await stamp.kiq(sent)
