"""Names that lead elsewhere, and links in the places of files: what is read and written stays in its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from semtask.host.filesystem import open_beneath
from semtask.protocol.frames import ArtifactInfo, Ended
from semtask.workers.task_outcome import of_frame
from tests.api.running import JOB_ID
from tests.daemon.rig import RpcFailed, eventually, running_daemon

SECRET = "not for everybody"
OUTSIDE = [
    "../secret",
    "a/../../secret",
    "a/..",
    "..",
    ".",
    "",
    "/",
    "//secret",
    "a//secret",
    "a/./secret",
    "link",
    "folder/link",
    "linked/secret",
    "folder/linked/secret",
    "up/home/secret",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    outside.mkdir()
    for place in (outside / "secret", tmp_path / "secret"):
        place.write_text(SECRET)
    for folder in (root, root / "folder"):
        (folder / "link").symlink_to(outside / "secret")
        (folder / "linked").symlink_to(outside)
    (root / "up").symlink_to("..")
    return root


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT])
def test_nothing_outside_of_a_folder_is_opened(root: Path, path: str, flags: int) -> None:
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(OSError, match=r"leads out|symbolic|directory"):
        open_beneath(str(root), path, flags)
    assert sorted(root.parent.rglob("*")) == before
    assert (root.parent / "secret").read_text() == (root.parent / "outside" / "secret").read_text() == SECRET


@pytest.mark.parametrize("path", [str(Path("/etc/passwd")), "a\0b", "x" * 300, "x/" * 3000 + "y"])
def test_what_can_be_no_name_is_not_opened(root: Path, path: str) -> None:
    with pytest.raises((OSError, ValueError)):
        os.close(open_beneath(str(root), path, os.O_RDONLY))


def test_what_lies_in_the_folder_is_opened(root: Path) -> None:
    (root / "folder" / "file").write_text("mine")
    with os.fdopen(open_beneath(str(root), "folder/file", os.O_RDONLY)) as file:
        assert file.read() == "mine"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("passwd", "/etc/passwd"),
        ("../x", f"{JOB_ID}/../x"),
        ("x", f"{JOB_ID}/../x"),
        ("x", f"../{JOB_ID}/x"),
        ("x", "018f0000-0000-7000-8000-000000000002/x"),  # another job's
        ("..", f"{JOB_ID}/.."),
        (".x", f"{JOB_ID}/.x"),
        ("a/b", f"{JOB_ID}/a/b"),
        ("a\0b", f"{JOB_ID}/a\0b"),
        ("x" * 300, f"{JOB_ID}/{'x' * 300}"),
        ("\uff0e\uff0e", f"{JOB_ID}/\uff0e\uff0e"),
        ("a\u202eb", f"{JOB_ID}/a\u202eb"),
        ("", f"{JOB_ID}/"),
    ],
)
def test_a_worker_cannot_pass_off_a_file_as_an_artifact(name: str, path: str) -> None:
    good = ArtifactInfo(name="good", size=1, sha256="00", path=f"{JOB_ID}/good")
    bad = ArtifactInfo(name=name, size=1, sha256="00", path=path)
    ended = Ended(job_id=JOB_ID, claim_no=1, end="done", ran_us=1, artifacts=[bad, good])
    artifacts = of_frame(ended, told_to_stop=False).artifacts
    assert artifacts is not None
    assert artifacts.count('"name"') == 1
    assert '"good"' in artifacts


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_job_that_replaces_its_log_by_a_link_shows_nothing(tmp_path: Path, place: str) -> None:
    secret = tmp_path / "secrets"
    secret.mkdir()
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sh", "-c", "echo mine; exec sleep 60")
        eventually(lambda: daemon.log(job_id) == "mine\n")
        log = Path(daemon.job(job_id)["log_path"])
        (secret / log.name).write_text(SECRET)
        if place == "file":
            log.unlink()
            log.symlink_to(secret / log.name)
        else:
            log.parent.rename(log.parent.with_name("away"))
            log.parent.symlink_to(secret)
        for params in ({"offset": 0}, {"lines": 5}):
            with pytest.raises(RpcFailed) as refused:
                daemon.rpc("logs.tail.v1", job_id=job_id, **params)
            assert refused.value.code == 5002
            assert SECRET not in refused.value.message
        daemon.rpc("dev.cancel.v1", job_id=job_id, grace_ms=0)
        daemon.wait(job_id)
        # Nor is what lies behind the link written to or deleted.
        assert (secret / log.name).read_text() == SECRET
