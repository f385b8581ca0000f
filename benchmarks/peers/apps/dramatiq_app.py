"""dramatiq on Redis."""

import os

import dramatiq  # type: ignore[import-not-found]
from dramatiq.brokers.redis import RedisBroker  # type: ignore[import-not-found]

from benchmarks.peers import probe

dramatiq.set_broker(RedisBroker(url=os.environ["BENCHMARK_REDIS"]))


@dramatiq.actor
def noop() -> None:
    probe.tick()


@dramatiq.actor
def stamp(sent: float) -> None:
    probe.mark("starts", sent)


def send_noop() -> None:
    noop.send()


def send_stamp(sent: float) -> None:
    stamp.send(sent)
