"""Where semtask may put its files: local disks, and folders that are closed to others."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

import pytest

from semtask.errors import StartupError
from semtask.host.filesystem import free_bytes, make_private, mount_of, punch_hole, require_local

MOUNTINFO = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:40 / /home rw,relatime shared:1 master:2 - nfs4 server:/export/home rw,vers=4.2
41 40 0:41 / /home/local rw,relatime - xfs /dev/vdb rw
42 27 0:42 / /mnt/with\040blank\134and\011tab rw - cifs //server/share rw
43 27 0:43 / /mnt/ssh rw - fuse.sshfs me@server:/dir rw
44 27 0:44 / /mnt/bucket rw - fuse.s3fs s3fs rw
45 27 0:45 / /mnt/unknown rw - fuse.newfs server:/volume rw
46 27 0:46 / /mnt/ntfs rw - fuseblk /dev/sdb1 rw
47 27 0:47 / /mnt/overlay rw - fuse.fuse-overlayfs fuse-overlayfs rw
48 27 0:48 / /mnt/c rw - 9p C:\134 rw
49 27 0:49 / /mnt/twice rw - nfs server:/below rw
50 27 0:50 / /mnt/twice rw - tmpfs tmpfs rw
51 27 0:51 / /mnt/bücher rw - ceph 10.0.0.1:/ rw
52 27 0:52 / /homestead rw - btrfs /dev/vdc rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("/home", "nfs4"),
        ("/home/me/.local/share/semtask", "nfs4"),
        ("/mnt/with blank\\and\ttab/x", "cifs"),
        ("/mnt/ssh/x", "fuse.sshfs"),
        ("/mnt/bucket/x", "fuse.s3fs"),
        ("/mnt/unknown/x", "fuse.newfs"),
        ("/mnt/c/Users", "9p"),
        ("/mnt/bücher/x", "ceph"),
    ],
)
def test_a_network_file_system_is_refused_with_the_line_to_type(path: str, type_: str) -> None:
    with pytest.raises(StartupError) as caught:
        require_local(Path(path), MOUNTINFO)
    message = str(caught.value)
    mount = mount_of(Path(path), MOUNTINFO)
    assert mount is not None
    assert message.startswith(f"{path} is on a network file system ({type_}, mounted at {mount.point})")
    assert "SEMANTICA_HOME=/" in message
    assert "SEMANTICA_DB_PATH=/" in message


@pytest.mark.parametrize(
    "path", ["/", "/home/local/x", "/homestead", "/homes", "/mnt/ntfs/x", "/mnt/overlay/x", "/mnt/twice/x", "/proc/x"]
)
def test_a_local_file_system_is_fine(path: str) -> None:
    require_local(Path(path), MOUNTINFO)


def test_a_symbolic_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/home/me")
    with pytest.raises(StartupError, match="nfs4"):
        require_local(tmp_path / "link" / "semtask", MOUNTINFO)


def test_the_mounts_of_this_machine_are_read(tmp_path: Path) -> None:
    mountinfo = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    mount = mount_of(tmp_path, mountinfo)
    assert mount is not None
    assert os.path.ismount(mount.point)
    assert os.stat(mount.point).st_dev == tmp_path.stat().st_dev or mount.type == "btrfs"
    if not mount.is_network:
        require_local(tmp_path)


# --- private folders -------------------------------------------------------------------------------------------------


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_missing_folders_are_made_for_the_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert [mode_of(tmp_path / p) for p in ("a", "a/b", "a/b/c")] == [0o700] * 3
    make_private(tmp_path / "a" / "b" / "c")


def test_an_existing_folder_that_others_may_read_is_left_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    make_private(home)
    assert mode_of(home) == 0o755


@pytest.mark.parametrize("mode", [0o770, 0o775, 0o777, 0o1777, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(StartupError) as caught:
        make_private(home)
    assert str(caught.value) == f"others can write to {home} (mode {mode:04o}); close it: chmod go-w {home}"


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StartupError, match=rf"belongs to another user \(uid {owner}, you are {owner + 1}\)"):
        make_private(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that belongs to somebody else")
def test_root_uses_no_folder_of_another_user_either(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(StartupError, match=r"belongs to another user \(uid 12345, you are 0\)"):
        make_private(tmp_path)


def test_a_symbolic_link_is_followed_if_it_is_ours(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("target")
    make_private(link)
    make_private(link / "below")
    assert mode_of(tmp_path / "target" / "below") == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link that belongs to somebody else")
def test_a_symbolic_link_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("target")
    os.lchown(link, 12345, -1)
    with pytest.raises(StartupError, match="symbolic link of another user"):
        make_private(link)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=f"^{re.escape(str(tmp_path))}/file is not a folder$"):
        make_private(tmp_path / "file")
    with pytest.raises(StartupError, match=r"cannot make the folder .*/file/below: Not a directory"):
        make_private(tmp_path / "file" / "below")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(StartupError, match=r"cannot make the folder .*/dangling: No such file"):
        make_private(tmp_path / "dangling")


def test_a_folder_that_cannot_be_written_to_is_refused() -> None:
    nobody = 12345
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        root = os.geteuid() == 0  # root may write anywhere, so it plays somebody else
        if root:
            os.chown(home, nobody, -1)
        home.chmod(0o500)
        if root:
            os.seteuid(nobody)
        try:
            with pytest.raises(StartupError) as caught:
                make_private(home)
            with pytest.raises(StartupError, match=r"cannot make the folder .*/below: Permission denied"):
                make_private(home / "below")
        finally:
            if root:
                os.seteuid(0)
            home.chmod(0o700)
    assert str(caught.value) == f"{home} cannot be written to (read-only file system, or mode 0500)"


# --- files -----------------------------------------------------------------------------------------------------------


def test_free_bytes_shrinks_when_the_disk_fills(tmp_path: Path) -> None:
    usage = os.statvfs(tmp_path)
    assert 0 < free_bytes(tmp_path) <= usage.f_blocks * usage.f_frsize


def test_a_hole_frees_disk_and_keeps_size_and_offsets_beyond_4_gb(tmp_path: Path) -> None:
    far = 5 * 2**30
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        fd = file.fileno()
        os.pwrite(fd, b"x" * (1 << 20), far)
        before = os.fstat(fd).st_blocks
        try:
            punch_hole(fd, far + (1 << 18), 1 << 19)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("the file system of the temporary folder punches no holes")
            raise
        assert os.fstat(fd).st_size == far + (1 << 20)
        assert os.fstat(fd).st_blocks <= before - (1 << 19) // 512
        assert os.pread(fd, 2, far + (1 << 18) - 1) == b"x\0"


def test_a_hole_in_what_cannot_have_one_is_an_error() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match=r"Illegal seek|not supported|No such device") as caught:
            punch_hole(write_end, 0, 4096)
        assert caught.value.errno
    finally:
        os.close(read_end)
        os.close(write_end)
