"""huey on SQLite with fsync: the peer that is durable as semtask is, and needs no server."""

from huey import SqliteHuey  # type: ignore[import-not-found]

from benchmarks.peers import probe

huey = SqliteHuey("benchmark", filename="huey.db", fsync=True, results=False)


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
