"""What semtask asks of a file system: that it is local, that a folder is private, and holes in files."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shlex
import stat
from pathlib import Path
from typing import NamedTuple

from semtask.errors import StartupError

# Locks, shared memory and fsync of these are promises of another machine, and SQLite's WAL needs all three.
_NETWORK_TYPES = frozenset(
    {
        *("9p", "afs", "cifs", "coda", "davfs", "ncp", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"),
        *("beegfs", "ceph", "fhgfs", "gfs2", "glusterfs", "gpfs", "lustre", "ocfs2", "orangefs", "panfs", "pvfs2"),
    }
)
_NETWORK_FUSE = frozenset(
    {
        *("blobfuse", "blobfuse2", "gcsfuse", "goofys", "mount-s3", "mountpoint-s3", "rclone", "s3fs"),
        *("ceph-fuse", "glusterfs", "hdfs", "juicefs", "lizardfs", "mfs", "seaweedfs"),
        *("curlftpfs", "davfs", "gvfsd-fuse", "kio-fuse", "portal", "smbnetfs", "sshfs"),
        *("grpcfuse", "osxfs", "vmhgfs-fuse"),  # folders of the host of a virtual machine
    }
)
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
# glibc has a fallocate with 64-bit offsets everywhere under this name; musl's offsets always have 64 bits.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo."""

    point: str
    type: str
    source: str

    @property
    def is_network(self) -> bool:
        kind, _, subtype = self.type.partition(".")
        if kind != "fuse":
            return kind in _NETWORK_TYPES
        return subtype in _NETWORK_FUSE or ":" in self.source or self.source.startswith("//")


def mount_of(path: Path, mountinfo: str) -> Mount | None:
    """The mount that holds `path`, by the text of /proc/self/mountinfo."""
    resolved = os.path.realpath(path)
    found: Mount | None = None
    for line in mountinfo.split("\n"):
        before, separator, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(types) < 2:
            continue
        mount = Mount(_unescaped(fields[4]), types[0], _unescaped(types[1]))
        # Of several mounts at one point the last one is on top.
        if _is_below(resolved, mount.point) and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def require_local(path: Path, mountinfo: str | None = None) -> None:
    """Raises StartupError if `path` is on a network file system."""
    if mountinfo is None:
        mountinfo = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    mount = mount_of(path, mountinfo)
    if mount is not None and mount.is_network:
        raise StartupError(
            f"{path} is on a network file system ({mount.type}, mounted at {mount.point}), where a database can be"
            " corrupted; use a local disk: SEMANTICA_HOME=/path/on/a/local/disk semtask up (or, for the database alone,"
            " SEMANTICA_DB_PATH=/path/on/a/local/disk/meta.db)"
        )


def make_private(path: Path) -> None:
    """Make the folder, and those above it, for this user alone; or check that the one that is there is safe to use.

    It may be a symbolic link if this user or root made it. Others may be able to read an existing folder, as every
    file that semtask makes in it is closed to them, but not to write to it. Raises StartupError.
    """
    try:
        _make_folders(path)
        link, folder = path.lstat(), path.stat()
    except OSError as error:
        raise StartupError(f"cannot make the folder {path}: {error.strerror}") from error
    me = os.geteuid()
    mode = stat.S_IMODE(folder.st_mode)
    if not stat.S_ISDIR(folder.st_mode):
        raise StartupError(f"{path} is not a folder")
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in {me, 0}:
        raise StartupError(
            f"{path} is a symbolic link of another user (uid {link.st_uid}); remove it or use another path"
        )
    if folder.st_uid != me:
        raise StartupError(f"{path} belongs to another user (uid {folder.st_uid}, you are {me}); use a folder of yours")
    if mode & 0o022:
        raise StartupError(
            f"others can write to {path} (mode {mode:04o}); close it: chmod go-w {shlex.quote(str(path))}"
        )
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise StartupError(f"{path} cannot be written to (read-only file system, or mode {mode:04o})")


def free_bytes(path: Path) -> int:
    """The disk space that this user may still fill, in the file system of `path`."""
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize


def total_bytes(path: Path) -> int:
    """The size of the file system of `path`."""
    usage = os.statvfs(path)
    return usage.f_blocks * usage.f_frsize


def punch_hole(fd: int, start: int, length: int) -> None:
    """Give the disk space of these bytes back; they read as NUL, and size and offsets stay as they are.

    Raises OSError: EOPNOTSUPP where the file system cannot do it.
    """
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _fallocate(fd, mode, start, length) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _make_folders(path: Path) -> None:
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)


def _is_below(path: str, folder: str) -> bool:
    return folder in {"/", path} or path.startswith(folder + "/")


def _unescaped(field: str) -> str:
    """mountinfo writes blanks, tabs, newlines and backslashes as octal numbers of bytes."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), os.fsencode(field)))


def open_beneath(root: str, path: str, flags: int, mode: int = 0o600) -> int:
    """Open what lies at `path` in the folder `root`; no link on the way from there is followed.

    Raises OSError: EXDEV for a path that leads out, ELOOP or ENOTDIR where there is a link.
    """
    *folders, name = path.split("/")
    if not {"", ".", ".."}.isdisjoint((*folders, name)):
        raise OSError(errno.EXDEV, "it leads out of its folder", path)
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
    finally:
        os.close(folder)
