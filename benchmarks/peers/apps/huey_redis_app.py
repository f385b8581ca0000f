"""huey on Redis."""

import os

from huey import RedisHuey  # type: ignore[import-not-found]

from benchmarks.peers import probe

huey = RedisHuey("benchmark", url=os.environ["BENCHMARK_REDIS"], results=False)


@huey.task()
def noop() -> None:
    probe.tick()


@huey.task()
def stamp(sent: float) -> None:
    probe.mark("starts", sent)


def send_noop() -> None:
    noop()


def send_stamp(sent: float) -> None:
    stamp(sent)
