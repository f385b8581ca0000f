"""Celery on Redis; acks_late, as the others lose no job of a worker that dies."""

import os

from celery import Celery  # type: ignore[import-not-found]

from benchmarks.peers import probe

app = Celery("benchmark", broker=os.environ["BENCHMARK_REDIS"])
app.conf.task_acks_late = True
app.conf.task_ignore_result = True


@app.task
def noop() -> None:
    probe.tick()


@app.task
def stamp(sent: float) -> None:
    probe.mark("starts", sent)


def send_noop() -> None:
    noop.delay()


def send_stamp(sent: float) -> None:
    stamp.delay(sent)
