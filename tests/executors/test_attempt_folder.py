"""The files of an attempt: torn ones, missing ones, poison and the trash."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import threading
from pathlib import Path

import pytest

from semtask.executors.attempts_dir import AttemptsDir
from semtask.host.procfs import Mark
from semtask.launch import folder
from semtask.launch.folder import Record, Stop

RECORD = Record(
    wait_status=256,
    stop="cancel",
    started_ms=1,
    ended_ms=2,
    swept=3,
    spawn_errno=2,
    spawn_error="there is no program 'x' in PATH='/bin' of the job",
)
MARK = Mark("97058fb8-8b4a-4991-a9db-49b23d835bb9", 4026531836, 17, 9000, None)


def test_a_record_is_read_as_it_was_written() -> None:
    for record in (RECORD, RECORD._replace(wait_status=None, stop="")):
        assert folder.decode_record(folder.encode_record(record)) == record


def test_no_part_and_no_change_of_a_record_passes_for_one() -> None:
    whole = folder.encode_record(RECORD)
    for length in range(len(whole)):
        assert folder.decode_record(whole[:length]) is None
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        assert folder.decode_record(bytes(changed)) is None


def test_a_torn_line_of_started_says_nothing() -> None:
    whole = f"shim {MARK}\ncommand {MARK._replace(pid=18, pidfs_inode=5)}\n".encode()
    assert folder.decode_started(whole) == (MARK, MARK._replace(pid=18, pidfs_inode=5))
    first_line = whole.index(b"\n") + 1
    for length in range(len(whole)):
        assert folder.decode_started(whole[:length]) == (MARK if length >= first_line else None, None)


@pytest.mark.parametrize("torn", [b"", b"cancel", b"cancel ", b"cancel 50", b"cancel x\n"])
def test_a_torn_stop_says_nothing(torn: bytes) -> None:
    assert folder.decode_stop(b"cancel 500\n") == Stop("cancel", 500)
    assert folder.decode_stop(torn) is None


def test_the_attempts_folder_is_private_and_keeps_its_id(tmp_path: Path) -> None:
    attempts = AttemptsDir(tmp_path / "attempts")
    assert stat.S_IMODE(os.stat(attempts.path).st_mode) == 0o700
    assert AttemptsDir(tmp_path / "attempts").attempts_id == attempts.attempts_id
    assert AttemptsDir(tmp_path / "other").attempts_id != attempts.attempts_id


def test_a_claim_number_is_used_once(tmp_path: Path) -> None:
    attempts = AttemptsDir(tmp_path)
    attempts.attempt("job", 1).create()
    with pytest.raises(FileExistsError):
        attempts.attempt("job", 1).create()
    attempts.attempt("job", 2).create()


def test_the_lock_of_another_is_seen(tmp_path: Path) -> None:
    attempt = AttemptsDir(tmp_path).attempt("job", 1)
    with attempt.locked() as free:  # without a folder nobody can hold it
        assert free
    attempt.create()
    with attempt.locked() as free:
        assert free
    with open(f"{attempt.path}/lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with attempt.locked() as free:
            assert not free


def test_remove_leaves_nothing_and_may_be_called_again(tmp_path: Path) -> None:
    attempt = AttemptsDir(tmp_path).attempt("job", 1)
    attempt.create()
    attempt.ask_to_stop(Stop("cancel", 5))
    for name in ("started", "record", "record.tmp"):
        Path(attempt.path, name).touch()
    attempt.remove()
    assert not attempt.exists()
    attempt.remove()


def test_a_poisoned_folder_goes_to_the_trash_whole_and_loses_its_poison_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = AttemptsDir(tmp_path)
    attempt = attempts.attempt("job", 1)
    attempt.create()
    Path(attempt.path, "started").touch()
    with attempt.locked():
        attempt.poison()
    attempt.remove()
    assert not attempt.exists()
    assert sorted(os.listdir(tmp_path / ".trash" / "job.1")) == ["lock", "poison", "started"]
    removed: list[str] = []
    unlink = os.unlink

    def watched(path: str) -> None:
        unlink(path)
        removed.append(os.path.basename(path))

    monkeypatch.setattr(os, "unlink", watched)
    attempts.empty_trash()
    assert (removed[0], removed[-1]) == ("lock", "poison")
    assert os.listdir(tmp_path / ".trash") == []


def test_without_room_for_poison_the_lock_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = AttemptsDir(tmp_path).attempt("job", 1)
    attempt.create()

    def no_room(path: str, flags: int, *_: int) -> int:
        raise OSError(28, "No space left on device", path)

    with attempt.locked(), monkeypatch.context() as patch:
        patch.setattr(os, "open", no_room)
        attempt.poison()
    assert not os.path.exists(f"{attempt.path}/lock")


def test_a_folder_is_used_again_only_when_its_shim_has_ended(tmp_path: Path) -> None:
    attempts = AttemptsDir(tmp_path)
    ended = attempts.attempt("ended", 1)
    ended.create()
    inode = os.stat(ended.path).st_ino
    for name in ("started", "record"):
        Path(ended.path, name).touch()
    ended.remove()
    assert not ended.exists()
    given_back = attempts.attempt("given-back", 1)
    given_back.create()
    assert os.stat(given_back.path).st_ino == inode
    assert os.listdir(given_back.path) == ["lock"]
    # It has no record: its shim may still come. So it must not be used again.
    given_back.remove()
    attempts.attempt("next", 1).create()
    assert os.listdir(tmp_path / ".spare") == []
    assert sorted(os.listdir(tmp_path)) == [".id", ".spare", ".trash", "next.1"]


def test_a_spare_folder_with_anything_but_its_lock_is_not_kept(tmp_path: Path) -> None:
    attempts = AttemptsDir(tmp_path)
    attempt = attempts.attempt("job", 1)
    attempt.create()
    attempt.ask_to_stop(Stop("cancel", 5))
    Path(attempt.path, "record").touch()
    attempt.remove()
    assert not attempt.exists()
    assert os.listdir(tmp_path / ".spare") == []


def test_a_claim_number_is_used_once_with_spares_too(tmp_path: Path) -> None:
    attempts = AttemptsDir(tmp_path)
    spare = attempts.attempt("spare", 1)
    spare.create()
    Path(spare.path, "record").touch()
    attempts.attempt("job", 1).create()
    spare.remove()
    with pytest.raises(FileExistsError):
        attempts.attempt("job", 1).create()
    assert AttemptsDir(tmp_path).attempt("job", 1).exists()
    assert os.listdir(tmp_path / ".spare") == []  # those of a former daemon are removed


def test_two_threads_that_remove_a_folder_leave_no_spare_that_is_locked_or_broken(tmp_path: Path) -> None:
    """The removal after the finish, and a janitor that has found the folder: the next shim must get its lock."""
    before = sys.getswitchinterval()
    attempts = AttemptsDir(tmp_path)
    refused = []
    sys.setswitchinterval(1e-6)
    try:
        for number in range(300):
            ended = _ended(attempts, f"ended-{number}")
            removals = [threading.Thread(target=remove) for remove in (ended.remove, ended.remove_unlocked)]
            for removal in removals:
                removal.start()
            for again in range(3):
                attempt = attempts.attempt(f"next-{number}-{again}", 1)
                attempt.create()
                with open(f"{attempt.path}/lock", "rb") as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        refused.append(attempt.path)
                Path(attempt.path, "record").touch()
                attempt.remove()
            for removal in removals:
                removal.join()
    finally:
        sys.setswitchinterval(before)
    assert refused == []


@pytest.mark.parametrize("removed", [".", ".spare", ".trash"])
def test_a_folder_is_made_though_somebody_removed_those_around_it(tmp_path: Path, removed: str) -> None:
    attempts = AttemptsDir(tmp_path / "attempts")
    _ended(attempts, "spare").remove()
    poisoned = attempts.attempt("poisoned", 1)
    shutil.rmtree(tmp_path / "attempts" / removed)
    attempts.empty_trash()
    poisoned.create()
    assert os.listdir(poisoned.path) == ["lock"]
    _ended(attempts, "another").remove()
    assert not attempts.attempt("another", 1).exists()
    if removed == ".":  # what was there is not known any more: see FormerAttempts
        assert AttemptsDir(tmp_path / "attempts").attempts_id != attempts.attempts_id


def _ended(attempts: AttemptsDir, job_id: str) -> folder.AttemptFolder:
    attempt = attempts.attempt(job_id, 1)
    attempt.create()
    for name in ("started", "record"):
        Path(attempt.path, name).touch()
    return attempt
