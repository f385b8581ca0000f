"""An artifact is a copy of a regular file and of a limited size: no task blocks on one or fills the disk with it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from semtask.tasks import artifacts
from semtask.tasks.artifacts import ArtifactFolder, ArtifactLimits
from tests.daemon.rig import Daemon, running_daemon
from tests.daemon.test_isolation import enqueue, write_apps
from tests.mounts import small_disk

KIB = 1024


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("artifacts")
    write_apps(folder / "home")
    (folder / "semtask").mkdir()
    limits = f"max_artifact_bytes = {64 * KIB}\nmax_job_artifact_bytes = {100 * KIB}\nmax_job_artifacts = 5\n"
    (folder / "semtask" / "config.toml").write_text(limits)
    with running_daemon(folder / "home", XDG_CONFIG_HOME=str(folder)) as running:
        yield running


def end_of(daemon: Daemon, name: str, **arguments: object) -> tuple[str, str | None]:
    """(state, error) of a task that is run; nothing half kept stays in its folder."""
    job_id = enqueue(daemon, name, arguments, max_attempts=1)
    [job] = daemon.wait(job_id)
    folder = daemon.home / "artifacts" / job_id
    kept = {file.name: file.stat().st_size for file in folder.iterdir()} if folder.exists() else {}
    assert kept == {info["name"]: info["size"] for info in job["artifacts"] or []}
    return job["state"], job["error"]


def test_only_regular_files_are_kept_and_nothing_blocks(daemon: Daemon, tmp_path: Path) -> None:
    plain, fifo, sock, link = (tmp_path / name for name in ("plain", "fifo", "socket", "link"))
    plain.write_bytes(b"x" * 1000)
    os.mkfifo(fifo)
    link.symlink_to(plain)
    (tmp_path / "link-to-fifo").symlink_to(fifo)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
        for path, text in (
            (fifo, f"ValueError: {str(fifo)!r} is a named pipe, and an artifact is a copy of a regular file"),
            (tmp_path / "link-to-fifo", "is a named pipe"),
            (sock, "is a socket"),
            ("/dev/zero", "ValueError: '/dev/zero' is a device"),
            ("/dev/stdin", "is a device"),  # /dev/null
            (tmp_path, "IsADirectoryError: [Errno 21] is a folder, and an artifact is one file; pack it first"),
            (tmp_path / "missing", "FileNotFoundError"),
        ):
            state, error = end_of(daemon, "keep_file", path=str(path))
            assert (state, text in (error or "")) == ("FAILED", True), (path, error)
    for path in (plain, link, "/proc/self/status"):
        assert end_of(daemon, "keep_file", path=str(path)) == ("DONE", None)


def test_limits_of_one_artifact_and_of_all(daemon: Daemon, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    for sizes, text in (
        ([64 * KIB], None),
        ([64 * KIB + 1], "ValueError: artifact 'kept-0' has more than 65,536 bytes (max_artifact_bytes): keep less"),
        ([64 * KIB, 36 * KIB], None),
        ([64 * KIB, 36 * KIB + 1], "artifact 'kept-1' would bring those of this job above 102,400 bytes"),
        ([0] * 5, None),
        ([0] * 6, "artifact 'kept-5' would be one more than the 5 that a job may keep (max_job_artifacts)"),
    ):
        state, error = end_of(daemon, "keep_many", sizes=sizes)
        assert (state, (text or "") in (error or "")) == ("FAILED" if text else "DONE", True), (sizes, error)
    state, error = end_of(daemon, "keep_file", path=str(sparse))
    assert (state, "has more than 65,536 bytes" in (error or "")) == ("FAILED", True), error
    assert end_of(daemon, "huge", size=300 * KIB)[0] == "DONE"  # a result has a limit of its own


def test_a_replaced_artifact_counts_once_and_the_result_not_at_all(tmp_path: Path) -> None:
    folder = ArtifactFolder(str(tmp_path), "job", ArtifactLimits(100, 150, 2))
    folder.keep_result(b"x" * 1000)
    for _ in range(3):
        folder.keep("one", b"x" * 100)
    folder.keep("two", b"x" * 50)
    with pytest.raises(ValueError, match="max_job_artifacts"):
        folder.keep("three", b"")
    # Also those that a former attempt has kept: they are on the disk.
    again = ArtifactFolder(str(tmp_path), "job", ArtifactLimits(100, 150, 3))
    with pytest.raises(ValueError, match="max_job_artifact_bytes"):
        again.keep("three", b"x")


def test_a_file_that_grows_is_kept_as_long_as_it_was_when_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "log"
    source.write_bytes(b"x" * (3 << 20))
    read = os.read

    def read_while_it_grows(fd: int, size: int) -> bytes:
        with source.open("ab") as file:
            file.write(b"y" * size)
        return read(fd, size)

    monkeypatch.setattr(os, "read", read_while_it_grows)
    limits = ArtifactLimits(max_artifact_bytes=8 << 20)
    assert ArtifactFolder(str(tmp_path), "job", limits).keep("log", source).size == 3 << 20


def test_without_room_on_the_disk_nothing_is_left_and_the_error_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        folder = ArtifactFolder(str(disk), "job")
        for foreseen in (True, False):
            if not foreseen:
                monkeypatch.setattr(artifacts, "_require_space", lambda _folder, _size: None)
            with pytest.raises(
                OSError, match=r"there is no room for artifact 'big' on the disk of .*make room"
            ) as caught:
                folder.keep("big", b"x" * (2 << 20))
            assert caught.value.errno == errno.ENOSPC
            assert list((disk / "job").iterdir()) == []
        folder.keep("small", b"x")
