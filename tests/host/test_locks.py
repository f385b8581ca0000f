"""One owner for a folder: held as long as its process lives, whatever happens to files and paths."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from semtask.host import locks
from semtask.host.locks import FolderBusy, FolderLocks, holder, verified_holder

HOLD = """
import sys, pathlib
from semtask.host.locks import FolderLocks
locks = FolderLocks()
locks.take(pathlib.Path(sys.argv[1]))
print("taken", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_holds(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_of_another_process_is_busy_and_its_pid_is_told(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as owner:
        with pytest.raises(FolderBusy, match=f"{tmp_path.name} is in use by process {owner.pid}") as caught:
            FolderLocks().take(tmp_path)
        assert (caught.value.pid, caught.value.path) == (owner.pid, tmp_path)
        assert holder(tmp_path.stat().st_ino) == owner.pid


def test_the_lock_goes_with_its_owner_however_that_ends(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as owner:
        owner.kill()
        owner.wait()
        locks = FolderLocks()
        locks.take(tmp_path)
        locks.release()


def test_the_lock_is_on_the_folder_and_not_on_its_path_or_content(tmp_path: Path) -> None:
    home, moved = tmp_path / "home", tmp_path / "moved"
    home.mkdir()
    (home / "file").touch()
    with another_process_holds(home):
        (home / "file").unlink()
        home.rename(moved)
        with pytest.raises(FolderBusy):
            FolderLocks().take(moved)


def test_one_folder_under_two_names_is_locked_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    locks = FolderLocks()
    locks.take(tmp_path)
    locks.take(tmp_path / "link")
    with pytest.raises(FolderBusy) as caught:
        FolderLocks().take(tmp_path)
    assert caught.value.pid == os.getpid()
    locks.release()
    again = FolderLocks()
    again.take(tmp_path)
    again.release()


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    locks = FolderLocks()
    locks.take(tmp_path)
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
        assert child.stdout is not None
        child.stdout.readline()  # its exec, which closes the descriptor, is over
        locks.release()
        again = FolderLocks()
        try:
            again.take(tmp_path)
        finally:
            child.communicate(b"\n")
        again.release()


def test_nobody_holds_what_nobody_locked(tmp_path: Path) -> None:
    assert holder(tmp_path.stat().st_ino) is None


def test_the_holder_of_a_lock_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lists inodes without their file system: a pid that is listed for another folder is not taken."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    held = FolderLocks()
    held.take(mine)
    try:
        found = verified_holder(mine)
        assert found is not None
        assert found[0] == os.getpid()
        os.close(found[1])
        assert verified_holder(other) is None
        monkeypatch.setattr(locks, "_holders", lambda _inode: iter([1, os.getpid()]))
        assert verified_holder(other) is None
    finally:
        held.release()
    assert verified_holder(mine) is None
