"""current_job(): what it knows, and what it says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from semtask.protocol.frames import Blocked, Call, Ended, Progress, ProgressInfo
from semtask.tasks.context import JobContext, context_of, current_job, current_or_none
from tests.worker.rig import worker

CALL = Call(
    job_id="01890a5d-ac96-774b-bcce-b302099a80fe",
    claim_no=1,
    task="jobs:work",
    payload="{}",
    attempt=1,
    max_attempts=3,
)


class Heard:
    def __init__(self) -> None:
        self.progressed: list[ProgressInfo] = []
        self.waits: list[list[str]] = []

    def progress(self, job: JobContext, progress: ProgressInfo) -> None:
        self.progressed.append(progress)

    def blocked(self, job: JobContext, on: Sequence[str]) -> None:
        self.waits.append(list(on))

    def look_for_stop(self, job: JobContext) -> None: ...


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_sent_four_times_a_second_and_the_last_one_is_kept() -> None:
    heard, clock = Heard(), Clock()
    job = JobContext(CALL, heard, "/nowhere", clock)
    for step in range(1001):
        clock.now = 100 + step / 1000
        job.progress(step, 1000, f"step {step}")
    assert [progress.done for progress in heard.progressed] == [0, 250, 500, 750, 1000]
    clock.now += 0.01
    job.progress(1001)
    assert len(heard.progressed) == 5
    assert job.last_progress == ProgressInfo(done=1001)


@pytest.mark.parametrize("numbers", [(float("nan"), None), (1, float("inf"))])
def test_progress_is_a_number(numbers: tuple[float, float | None]) -> None:
    with pytest.raises(ValueError, match="finite"):
        JobContext(CALL, Heard(), "/nowhere").progress(*numbers)


def test_waits_that_overlap_are_told_together() -> None:
    heard = Heard()
    job = JobContext(CALL, heard, "/nowhere")
    with job.blocked(["a"]):
        with job.blocked(["b", "a"]):
            assert heard.waits[-1] == ["a", "b"]
        assert heard.waits[-1] == ["a"]
    assert heard.waits == [["a"], ["a", "b"], ["a"], []]


def test_nobody_speaks_for_a_job_that_has_ended(tmp_path: Path) -> None:
    job = JobContext(CALL, Heard(), str(tmp_path))
    job.end()
    for speak in (lambda: job.progress(1), lambda: job.artifact("a", b"")):
        with pytest.raises(RuntimeError, match="has ended"):
            speak()


def test_there_is_a_current_job_only_inside_of_one() -> None:
    assert current_or_none() is None
    with pytest.raises(RuntimeError, match="only inside a task"):
        current_job()
    job = JobContext(CALL, Heard(), "/nowhere")
    assert context_of(job).run(current_job) is job
    assert current_or_none() is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", ".hidden", "a b", "ä", "a\0", "a\n", "x" * 129])
def test_an_artifact_has_a_plain_name(tmp_path: Path, name: str) -> None:
    job = JobContext(CALL, Heard(), str(tmp_path / "artifacts"))
    with pytest.raises(ValueError, match="cannot name an artifact"):
        job.artifact(name, b"")
    assert not (tmp_path / "artifacts").exists()


def test_the_result_of_a_job_is_no_artifact_to_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'result\.json' is the name of the job's result"):
        JobContext(CALL, Heard(), str(tmp_path)).artifact("result.json", b"")


def test_artifacts_are_copied_whole_with_size_and_hash(tmp_path: Path) -> None:
    job = JobContext(CALL, Heard(), str(tmp_path / "artifacts"))
    source = tmp_path / "source"
    data = bytes(range(256)) * 10_000
    source.write_bytes(data)
    info = job.artifact("copy.bin", source)
    path = tmp_path / "artifacts" / info.path
    assert info.path == f"{CALL.job_id}/copy.bin"
    assert (info.size, info.sha256, info.is_result) == (len(data), hashlib.sha256(data).hexdigest(), False)
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    job.artifact("text", "größer")
    assert (path.parent / "text").read_text(encoding="utf-8") == "größer"


def test_an_artifact_is_synced_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave an empty file where the job's row names a whole one."""
    steps: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(fd: int) -> None:
        steps.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    def noted_rename(source: str, target: str) -> None:
        steps.append(("rename", os.path.basename(source)))
        steps.append(("name", os.path.basename(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    job = JobContext(CALL, Heard(), str(tmp_path / "artifacts"))
    info = job.artifact("report", "text")
    folder = Path(info.path).parent.name
    begun = steps.index(("name", "report"))
    draft = steps[begun - 1][1]
    assert steps[begun - 2 :] == [("sync", draft), ("rename", draft), ("name", "report"), ("sync", folder)]
    assert ("sync", "artifacts") in steps[: begun - 2]


def test_an_artifact_given_twice_is_replaced(tmp_path: Path) -> None:
    job = JobContext(CALL, Heard(), str(tmp_path))
    job.artifact("report", "first")
    job.artifact("report", "second")
    assert [info.size for info in job.artifacts.values()] == [6]
    folder = tmp_path / CALL.job_id
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("report", "second")]


def test_an_artifact_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    job = JobContext(CALL, Heard(), str(tmp_path / "artifacts"))
    with pytest.raises(FileNotFoundError):
        job.artifact("report", tmp_path / "missing")
    with pytest.raises(TypeError, match="not of int"):
        job.artifact("report", 5)  # type: ignore[arg-type]
    with pytest.raises(IsADirectoryError):
        job.artifact("report", tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        job.artifact("report", Path("/proc/self/mem"))
    assert not list(tmp_path.rglob("*report*"))
    assert job.artifacts == {}


TASKS = """
@app.task
def work() -> list:
    job = current_job()
    for n in range(1000):
        job.progress(n, 1000, "x")
    job.artifact("report.txt", "text")
    with job.blocked(["another"]):
        pass
    return [job.job_id, job.claim_no, job.task, job.attempt, job.max_attempts, job.queue, job.deadline, job.log.name]

@app.task
def fails() -> None:
    current_job().progress(3)
    current_job().artifact("report.txt", "text")
    raise ValueError
"""


def test_a_worker_tells_all_of_it(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = rig.call("work")
        rig.give(call)
        assert rig.expect(Progress).progress == ProgressInfo(done=0, total=1000, text="x")
        assert rig.expect(Blocked).on == ["another"]
        assert rig.expect(Blocked).on == []
        ended = rig.ended(call)
        assert ended.progress == ProgressInfo(done=999, total=1000, text="x")
        assert ended.result == f'["{call.job_id}",1,"jobs:work",1,1,"default",null,"jobs"]'
        assert (rig.artifacts / ended.artifacts[0].path).read_text() == "text"


def test_a_failed_job_keeps_what_it_has_said(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        ended: Ended = rig.run("fails")
        assert ended.end == "failed"
        assert ended.progress == ProgressInfo(done=3)
        assert [info.name for info in ended.artifacts] == ["report.txt"]
