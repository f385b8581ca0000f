"""The janitor on a real database and real files, with a clock of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from semtask.engine import janitor as module
from semtask.engine.janitor import DAY_MS, Janitor, Key, Retention
from semtask.errors import DatabaseError
from semtask.executors.attempt_files import AttemptFiles
from semtask.executors.attempts_dir import AttemptsDir
from semtask.executors.output import LogFiles
from semtask.model.job import Job
from semtask.store.requests import Purge, Purged
from semtask.store.sqlite import SqliteStore, open_store
from tests.engine.clock import FakeClock
from tests.executors.rig import until
from tests.impatience import ImpatientLoop
from tests.store.harness import NOW, Opened, new_id, new_job


class Home:
    """A store, logs and attempt folders as a daemon has them, and what fills them."""

    def __init__(self, folder: Path, store: SqliteStore) -> None:
        self.clock = FakeClock(NOW)
        self.store = store
        self.opened = Opened(store, [], [])
        self.logs = LogFiles(folder / "logs" / "jobs")
        self.attempts = AttemptsDir(folder / "attempts")
        self.artifacts = folder / "artifacts"
        self.files = AttemptFiles(self.attempts, self.logs, str(self.artifacts))

    def janitor(self, *, days: int = 7, max_jobs: int = 0, max_bytes: int = 0) -> Janitor:
        retention = Retention(days=days, max_jobs=max_jobs, max_bytes=max_bytes)
        return Janitor(self.store, self.files, retention, self.clock)

    async def run_jobs(self, count: int, *, queue: str = "default", payload: str = "{}") -> list[str]:
        """Jobs that are done now, each with a log."""
        jobs = [new_job(queue=queue, payload=payload, created_at=self.clock.now) for _ in range(count)]
        for start in range(0, count, 200):
            await self.opened.insert(*jobs[start : start + 200])
            claimed = await self.opened.claim({queue: 200}, limit=200, now=self.clock.now)
            await asyncio.gather(*(self._end(job) for job in claimed))
        return [job.job_id for job in jobs]

    async def _end(self, job: Job) -> None:
        self.log(job.job_id, job.claim_no)
        await self.opened.finish(job, now=self.clock.now)

    def log(self, job_id: str, claim_no: int = 1, content: bytes = b"line\n") -> Path:
        path = self.logs.path(job_id, claim_no)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def logs_left(self) -> set[Key]:
        return {key for folder in self.files.log_folders() for key in self.files.logs_in(folder)}

    async def jobs_left(self) -> int:
        return sum(sum(queue.counts.values()) for queue in await self.store.queues())


@asynccontextmanager
async def opened_home(folder: Path) -> AsyncIterator[Home]:
    folder.mkdir(exist_ok=True)
    store = await open_store(folder / "meta.db", on_commit=lambda _: None, now=lambda: NOW, fatal=lambda _: None)
    try:
        yield Home(folder, store)
    finally:
        await store.close()


Scenario = Callable[[Home], Awaitable[None]]


@pytest.fixture
def in_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    monkeypatch.setattr(module, "LEAST_REST_S", 0)
    monkeypatch.setattr(module, "LOOK_PAUSE_S", 0)

    async def run(scenario: Scenario) -> None:
        async with opened_home(tmp_path / "home") as home:
            await scenario(home)

    return lambda scenario: asyncio.run(run(scenario))


InHome = Callable[[Scenario], None]


def test_a_job_goes_with_its_logs_after_its_days_and_not_before(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        [old] = await home.run_jobs(1)
        home.clock.now += DAY_MS
        [young] = await home.run_jobs(1)
        home.log(old, 1)
        home.clock.now = NOW + 7 * DAY_MS
        assert await home.janitor().clean() == 0
        home.clock.now += 1
        assert await home.janitor().clean() == 1
        assert await home.store.get(old) is None
        assert await home.store.get(young) is not None
        assert home.logs_left() == {(young, 1)}
        assert await home.opened.counts() == {"DONE": 1}

    in_home(scenario)


def test_the_files_that_a_job_kept_go_with_it_and_those_of_lost_jobs_too(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        [old] = await home.run_jobs(1)
        home.clock.now += DAY_MS
        [young] = await home.run_jobs(1)
        for job_id, names in ((old, "ab"), (young, "c"), (lost := new_id(), "d")):
            (home.artifacts / job_id).mkdir(parents=True)
            for name in names:
                (home.artifacts / job_id / name).write_text(name)
        (home.artifacts / "not-ours").mkdir()
        home.clock.now = NOW + 7 * DAY_MS + 1
        janitor = home.janitor()
        assert await janitor.clean() == 1
        assert {path.name for path in home.artifacts.iterdir()} == {young, lost, "not-ours"}, "with the job's row"
        answer = await janitor.maintain(force_vacuum=False)
        assert (answer.jobs_deleted, answer.artifacts_deleted) == (0, 1)
        assert {path.name for path in home.artifacts.iterdir()} == {young, "not-ours"}
        assert not (home.artifacts / lost).exists()

    in_home(scenario)


def test_two_passes_at_a_time_do_the_work_once_and_each_tells_of_its_own(
    in_home: InHome, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(home: Home) -> None:
        old = await home.run_jobs(600)
        for job_id in [*old, *(new_id() for _ in range(20))]:
            (home.artifacts / job_id).mkdir(parents=True)
            (home.artifacts / job_id / "a").touch()
        home.clock.now = NOW + 7 * DAY_MS + 1
        janitor = home.janitor()
        answers = await asyncio.gather(*(janitor.maintain(force_vacuum=vacuum) for vacuum in (True, False, True)))
        assert sorted(answer.jobs_deleted for answer in answers) == [0, 0, 600]
        assert sorted(answer.artifacts_deleted for answer in answers) == [0, 0, 620]
        assert len({answer.db_size_after for answer in answers}) == 1
        assert not [record for record in caplog.records if record.levelname == "WARNING"]

    in_home(scenario)


def test_all_logs_of_all_attempts_go(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        await home.opened.insert(new_job(job_id=(job_id := new_id()), max_attempts=3, retry_base_delay_ms=0))
        from semtask.model.outcome import of_command

        for attempt in (1, 2, 3):
            await home.store.promote(NOW + 10_000, 10)
            [job] = await home.opened.claim()
            assert job.claim_no == attempt
            home.log(job_id, attempt)
            home.logs.path(job_id, attempt, "stderr").write_text("split\n")
            await home.opened.finish(job, of_command(1 << 8))
        home.clock.now += 8 * DAY_MS
        assert await home.janitor().clean() == 1
        assert home.logs_left() == set()

    in_home(scenario)


def test_nothing_that_lives_goes_and_no_limit_keeps_all(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        await home.run_jobs(3)
        await home.opened.insert(*(new_job() for _ in range(2)))
        [running] = await home.opened.claim(limit=1)
        home.log(running.job_id)
        home.clock.now += 1000 * DAY_MS
        assert await home.janitor(days=0).clean() == 0
        assert await home.janitor(days=1).clean() == 3
        assert await home.opened.counts() == {"QUEUED": 1, "RUNNING": 1}
        assert home.logs_left() == {(running.job_id, 1)}

    in_home(scenario)


def test_the_newest_stay_where_the_number_is_limited(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        for _ in range(5):
            last = await home.run_jobs(100)
            home.clock.now += 1000
        assert await home.janitor(max_jobs=100).clean() == 400
        assert await home.opened.counts() == {"DONE": 100}
        assert {job_id for job_id, _ in home.logs_left()} == set(last)

    in_home(scenario)


def test_the_oldest_go_while_the_database_is_too_large(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        limit = 2 * 1024 * 1024
        payload = '{"x": "' + "x" * 10_000 + '"}'
        for _ in range(10):
            last = await home.run_jobs(50, payload=payload)
            home.clock.now += 1000
        assert await home.store.size_bytes() > 2 * limit
        deleted = await home.janitor(max_bytes=limit).clean()
        assert await home.store.size_bytes() <= limit
        assert 0 < deleted < 500
        assert all((await home.store.get_many(last)).values())
        assert await home.janitor(max_bytes=limit).clean() == 0

    in_home(scenario)


def test_a_database_that_live_jobs_alone_make_too_large_is_left_as_it_is(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        payload = '{"x": "' + "x" * 10_000 + '"}'
        await home.run_jobs(10)
        await home.opened.insert(*(new_job(payload=payload) for _ in range(200)))
        async with asyncio.timeout(20):
            assert await home.janitor(max_bytes=100_000).clean() == 10
        assert await home.opened.counts() == {"QUEUED": 200}

    in_home(scenario)


def test_a_month_stays_bounded(in_home: InHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 jobs a day, each of a subject of its own, and one pass a day: after a week nothing grows any more."""

    async def scenario(home: Home) -> None:
        janitor = home.janitor(days=7)
        sizes, rows, files = [], [], []
        for day in range(30):
            jobs = [
                new_job(created_at=home.clock.now, subject_key=f"{day}-{n}", payload='{"x": "' + "x" * 2000 + '"}')
                for n in range(200)
            ]
            await home.opened.insert(*jobs)
            claimed = await home.opened.claim({"default": 200}, limit=200, now=home.clock.now)
            assert len(claimed) == 200
            await asyncio.gather(*(home._end(job) for job in claimed))
            home.clock.now += DAY_MS
            await janitor.clean()
            await home.store.checkpoint()
            sizes.append(await home.store.size_bytes())
            rows.append(await home.jobs_left())
            files.append(len(home.logs_left()))
        assert rows[-1] == files[-1] == 7 * 200
        assert max(rows) <= 8 * 200
        assert max(sizes[14:]) <= 1.1 * max(sizes[:10])
        assert await home.store.purge_subjects(1000) == 0

    in_home(scenario)


def test_generations_of_a_subject_go_with_its_last_job(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        async def one() -> int | None:
            [answer] = await home.store.insert([new_job(subject_key="s", created_at=home.clock.now)], durable=True)
            [job] = await home.opened.claim(now=home.clock.now)
            await home.opened.finish(job, now=home.clock.now)
            return answer.generation

        assert [await one(), await one()] == [1, 2]
        home.clock.now += 8 * DAY_MS
        assert await home.janitor().clean() == 2
        assert await one() == 1

    in_home(scenario)


def test_maintenance_gives_the_free_pages_back(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        await home.run_jobs(400, payload='{"x": "' + "x" * 10_000 + '"}')
        home.clock.now += 8 * DAY_MS
        done = await home.janitor().maintain(force_vacuum=True)
        assert (done.jobs_deleted, done.vacuum_run, done.artifacts_deleted) == (400, True, 0)
        assert done.db_size_before > 4_000_000
        assert done.db_size_after < 500_000
        assert done.db_size_after == await home.store.size_bytes()
        assert await home.store.compact(1) == 0
        again = await home.janitor().maintain(force_vacuum=True)
        assert (again.jobs_deleted, again.vacuum_run) == (0, True)  # there is nothing left to give back

    in_home(scenario)


# --- what a crash left ------------------------------------------------------------------------------------------------


def test_folders_of_ended_attempts_are_removed_and_those_of_running_ones_stay(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        [done] = await home.run_jobs(1)
        await home.opened.insert(new_job(job_id=(live := new_id())))
        [running] = await home.opened.claim()
        assert (running.job_id, running.claim_no) == (live, 1)
        gone, held = new_id(), new_id()
        for job_id, claim_no in ((done, 1), (live, 1), (live, 7), (gone, 3), (held, 1)):
            home.attempts.attempt(job_id, claim_no).create()
        (Path(home.attempts.path) / "notes of the user").mkdir()
        with home.attempts.attempt(held, 1).locked() as free:
            assert free
            await home.janitor().maintain(force_vacuum=False)
            assert home.files.folders() == {(live, 1), (held, 1)}
        await home.janitor().maintain(force_vacuum=False)
        assert home.files.folders() == {(live, 1)}
        assert (Path(home.attempts.path) / "notes of the user").is_dir()

    in_home(scenario)


def test_logs_that_lost_their_row_are_removed_and_others_stay(in_home: InHome) -> None:
    async def scenario(home: Home) -> None:
        jobs = await home.run_jobs(120)
        lost = [home.log(new_id(), n) for n in range(1, 100)]
        stranger = lost[0].parent / "notes.txt"
        stranger.write_text("mine")
        await home.janitor().maintain(force_vacuum=False)
        assert home.logs_left() == {(job_id, 1) for job_id in jobs}
        assert stranger.read_text() == "mine"

    in_home(scenario)


class Dies(Exception):
    pass


class DyingFiles(AttemptFiles):
    """The daemon is killed between the delete of the rows and the unlink of the logs."""

    def remove_logs(self, jobs: Iterable[Key]) -> None:
        raise Dies


def test_a_crash_between_delete_and_unlink_is_made_good_by_the_next_daemon(in_home: InHome, tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        await home.run_jobs(500)
        home.clock.now += 8 * DAY_MS
        whole = home.files
        home.files = DyingFiles(home.attempts, home.logs, str(tmp_path / "artifacts"))
        with pytest.raises(Dies):
            await home.janitor().clean()
        assert await home.jobs_left() == 300
        assert len(home.logs_left()) == 500
        home.files = whole
        janitor = home.janitor()
        janitor.start()
        async with asyncio.timeout(20):
            while home.logs_left() or await home.jobs_left():  # noqa: ASYNC110 - the file system announces nothing
                await asyncio.sleep(0.01)
        await janitor.stop()

    in_home(scenario)


# --- when -------------------------------------------------------------------------------------------------------------


def test_it_sleeps_without_history_and_passes_soon_after_many_ends(
    in_home: InHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "ENDS_PER_PASS", 50)

    async def scenario(home: Home) -> None:
        passes, pauses = asyncio.Queue[int](), asyncio.Queue[float | None]()
        janitor = home.janitor(max_jobs=10)
        clean, wait = janitor.clean, janitor._wait

        async def counted() -> int:
            deleted = await clean()
            passes.put_nowait(deleted)
            return deleted

        async def announced(seconds: float | None) -> None:
            pauses.put_nowait(seconds)
            await wait(seconds)

        monkeypatch.setattr(janitor, "clean", counted)
        monkeypatch.setattr(janitor, "_wait", announced)
        janitor.start()
        assert await passes.get() == 0
        assert await pauses.get() is None  # it has looked for history before there is any

        async def run_jobs(count: int) -> None:
            home.opened.commits.clear()
            await home.run_jobs(count)
            for commit in commits:
                janitor.on_changes(commit)
            commits.clear()

        commits = home.opened.commits
        home.store._writer._on_commit = lambda changes: commits.append(list(changes))
        await run_jobs(1)
        assert await passes.get() == 0  # the first history
        await run_jobs(49)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await passes.get()
        await run_jobs(1)
        assert await passes.get() == 41
        await janitor.stop()

    in_home(scenario)


def test_it_passes_every_hour_while_there_is_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_INTERVAL_S", 0.01)
    loop = ImpatientLoop("_on_timeout")

    async def main() -> None:
        async with opened_home(tmp_path / "home") as home:
            await home.run_jobs(1)
            janitor = home.janitor()
            janitor.start()
            await until(lambda: len(loop.pauses) >= 2, "two passes")
            await janitor.stop()

    loop.run(main())
    assert set(loop.pauses) == {3600}


def test_a_pass_that_the_database_refuses_is_made_later(in_home: InHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)

    async def scenario(home: Home) -> None:
        await home.run_jobs(1)
        home.clock.now += 8 * DAY_MS
        purge, refusals = home.store.purge, [DatabaseError("the disk is full")] * 2

        async def refusing(request: Purge) -> Purged:
            if refusals:
                raise refusals.pop()
            return await purge(request)

        monkeypatch.setattr(home.store, "purge", refusing)
        janitor = home.janitor()
        janitor.start()
        async with asyncio.timeout(20):
            while await home.jobs_left():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        await janitor.stop()

    in_home(scenario)


def test_empty_logs_go_and_others_stay(tmp_path: Path) -> None:
    logs = LogFiles(tmp_path / "logs")
    files = AttemptFiles(AttemptsDir(tmp_path / "attempts"), logs, str(tmp_path / "artifacts"))
    job_id = new_id()
    out, err = logs.path(job_id, 1), logs.path(job_id, 1, "stderr")
    out.parent.mkdir(parents=True)
    out.write_text("")
    err.write_text("said\n")
    files.remove_empty_logs(job_id, 1)
    assert (out.exists(), err.exists()) == (False, True)
    files.remove_empty_logs(job_id, 1)
    files.remove_empty_logs(new_id(), 1)
