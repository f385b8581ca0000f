"""`db backup`, `db restore`, `db check`, and the way back after an upgrade that went wrong: real daemons and files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

import semtask
from tests.cli.rig import LIMIT_S, Shell, eventually, kill

SLEEPER = ("sh", "-c", 'echo "$SEMANTICA_ATTEMPT"; sleep 600')


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


def sound(path: Path) -> bool:
    """By another SQLite than the daemon's."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return db.execute(sql).fetchall()


# --- backup ----------------------------------------------------------------------------------------------------------


def test_a_backup_while_jobs_come_in_is_whole_and_holds_nobody_up(shell: Shell, copy: Path) -> None:
    """As large as takes a while to copy; the counts of its queues are those of its rows, so it is of one moment."""
    fill = (
        "import sys, time, threading; from semtask.config.loading import load\n"
        "from semtask.client.autostart import open_transport\n"
        "client = open_transport(load(), autostart=False)\n"
        "job = dict(job_type='wait', execution_mode='IN_PROCESS', payload={'text': 'x' * 3000})\n"
        "for _ in range(8): client.call('dev.enqueue_many.v1', {'jobs': [job] * 1000})\n"
        "print('filled', flush=True)\n"
        "took = []\n"
        "threading.Thread(target=sys.stdin.read).start(); alive = threading.enumerate()[-1]\n"
        "while alive.is_alive():\n"
        "    began = time.monotonic(); client.call('dev.enqueue.v1', job); took.append(time.monotonic() - began)\n"
        "print(*took)\n"
    )
    shell("up")
    with subprocess.Popen(
        [sys.executable, "-c", fill], env=shell.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as producer:
        assert producer.stdout is not None
        assert producer.stdout.readline() == "filled\n"
        said = shell("db", "backup", str(copy), "--json")
        took = [float(number) for number in producer.communicate(timeout=LIMIT_S)[0].split()]
    assert said.code == 0, said
    assert said.json == {"schema": "db_backup.v1", "path": str(copy), "size_bytes": copy.stat().st_size}
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.stat().st_size > 20_000_000
    assert sound(copy)
    ((jobs,),) = rows(copy, "SELECT count(*) FROM jobs")
    assert 8000 <= jobs <= 8000 + len(took)
    assert rows(copy, "SELECT sum(queued) FROM queues") == [(jobs,)]
    assert shell("db", "check", "--thorough", str(copy)).out == f"{copy} is sound\n"
    assert statistics.median(took) < 0.1
    assert {path.name for path in copy.parent.iterdir()} == {copy.name, shell.home.name}


def test_a_backup_to_a_pipe(shell: Shell, copy: Path) -> None:
    shell("run", "-q", "-t", "kept", "true")
    with copy.open("wb") as file:
        argv = [sys.executable, "-m", "semtask", "db", "backup", "-"]
        subprocess.run(argv, env=shell.env, stdout=file, timeout=LIMIT_S, check=True)
    assert sound(copy)
    assert rows(copy, "SELECT tag FROM jobs") == [("kept",)]


def test_nothing_is_overwritten_unasked(shell: Shell, copy: Path) -> None:
    shell("run", "-q", "true")
    copy.write_text("precious")
    said = shell("db", "backup", str(copy))
    assert (said.code, copy.read_text()) == (1, "precious")
    assert "--force" in said.err
    beside = copy.with_name(f"{copy.name}-wal")
    beside.touch()
    assert "would take for a part" in shell("db", "backup", "--force", str(copy)).err
    beside.unlink()
    assert shell("db", "backup", "--force", str(copy)).code == 0
    assert sound(copy)
    assert "the database itself" in shell("db", "backup", "--force", str(shell.home / "meta.db")).err
    assert shell("run", "-q", "true").code == 0


def test_a_damaged_database_makes_no_backup(shell: Shell, copy: Path) -> None:
    shell("run", "-q", "true")
    shell("down", "-q")
    damage(shell.home / "meta.db")
    said = shell("db", "backup", str(copy))
    assert (said.code, copy.exists()) == (1, False)
    assert "damaged" in said.err
    assert [path.name for path in copy.parent.iterdir()] == [shell.home.name]


def damage(path: Path) -> None:
    with apsw.Connection(str(path)) as db:
        root: Any
        ((root,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'jobs'").fetchall()
        size = int(db.pragma("page_size"))
    with path.open("r+b") as file:
        file.seek((int(root) - 1) * size)
        file.write(b"\xff" * size)


def test_counts_that_are_wrong_are_found(shell: Shell) -> None:
    shell("run", "-q", "true")
    shell("down", "-q")
    with apsw.Connection(str(shell.home / "meta.db")) as db:
        db.execute("UPDATE queues SET done = 7, failed = -6")
    assert shell("db", "check").code == 0
    said = shell("db", "check", "--thorough")
    assert said.code == 1
    assert "the queue 'default' says that 7 of its jobs are DONE, and 1 are" in said.out


# --- restore ---------------------------------------------------------------------------------------------------------


def test_what_ran_and_what_waited_runs_again(shell: Shell, tmp_path: Path, copy: Path) -> None:
    """Jobs at the time of the backup: one has ended, one waits, one of each kind runs. All have ended since."""
    done = shell("run", "-q", "-d", "true").id
    shell("wait", done)
    on, off = tmp_path / "on", tmp_path / "off"
    line = f"echo $SEMANTICA_ATTEMPT >> {tmp_path}/starts; test -e {off} || {{ touch {on}; sleep 600; }}"
    again = shell("run", "-q", "-d", "--on-interrupt", "requeue", "sh", "-c", line).id
    once = shell("run", "-q", "-d", "sh", "-c", f"echo once >> {tmp_path}/starts; sleep 600").id
    eventually(on.exists)
    shell.until(once, "RUNNING")
    shell("pause", "later")
    waits = shell("run", "-q", "-d", "--queue", "later", "sh", "-c", f"echo waited >> {tmp_path}/starts").id
    assert shell("db", "backup", str(copy)).code == 0

    newer = shell("run", "-q", "-d", "--queue", "later", "true").id
    shell("resume", "later")
    shell("wait", waits, newer)
    shell("cancel", again, once)
    shell("wait", again, once)
    off.touch()
    assert shell("db", "restore", str(copy)).code == 100
    shell("down", "-q")
    said = shell("db", "restore", str(copy), "--json").json
    assert (said["running_jobs"], said["waiting_jobs"]) == (2, 1)
    kept = Path(said["kept"])
    assert kept.name.startswith("meta.db.before-restore-")
    assert kept.stat().st_mode & 0o777 == 0o600
    ((count,),) = rows(kept, "SELECT count(*) FROM jobs")
    assert count == 5

    assert shell("up").code == 0
    shell("resume", "later")
    for job_id in (again, waits, once):
        shell("wait", job_id)
    assert shell("show", newer).code != 0
    assert shell.job(done)["state"] == "DONE"
    assert (shell.job(once)["state"], shell.job(once)["end_cause"]) == ("FAILED", "interrupted")
    assert [shell.job(job_id)["state"] for job_id in (again, waits)] == ["DONE", "DONE"]
    starts = (tmp_path / "starts").read_text().split()
    assert starts.count("once") == 1
    assert starts.count("waited") == 2
    attempts = [start for start in starts if start.startswith(again)]
    assert len(attempts) == 2


def test_no_number_of_a_claim_is_used_twice(shell: Shell, tmp_path: Path, copy: Path) -> None:
    """The log of an attempt that ran after the backup stays what it is: the restored job claims above it."""
    shell("pause", "default")
    job = shell("run", "-q", "-d", "sh", "-c", f"echo once more; test -e {tmp_path}/off").id
    assert shell("db", "backup", str(copy)).code == 0
    shell("resume", "default")
    shell("wait", job)
    log = Path(shell.job(job)["log_path"])
    assert log.name.endswith(".1.log")
    before = log.stat()
    with apsw.Connection(str(shell.home / "meta.db")) as db:
        ((epoch,),) = db.execute("SELECT daemon_epoch FROM meta").fetchall()
    (tmp_path / "off").touch()
    shell("down", "-q")
    assert shell("db", "restore", str(copy)).code == 0
    shell("resume", "default")
    shell("wait", job)
    assert (shell.job(job)["state"], shell.job(job)["claim_no"]) == ("DONE", 2)
    assert log.stat().st_ino == before.st_ino
    assert log.stat().st_mtime_ns == before.st_mtime_ns
    with apsw.Connection(str(shell.home / "meta.db")) as db:
        assert db.execute("SELECT daemon_epoch FROM meta").fetchall() == [(int(str(epoch)) + 1,)]


def test_what_a_killed_daemon_left_has_ended_before_the_database_is_replaced(shell: Shell, copy: Path) -> None:
    with shell.start("run", "--on-interrupt", "requeue", *SLEEPER) as client:
        assert client.stdout is not None
        nonce = client.stdout.readline().strip()
        assert shell("db", "backup", str(copy)).code == 0
        pid = shell.daemon_pid()
        client.kill()
    kill(pid)
    assert shell("db", "restore", str(copy)).code == 0
    assert nonce not in environments()
    assert not (shell.home / "attempts" / ".id").exists()


def environments() -> bytes:
    found = b""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
    return found


def test_paused_nothing_runs_before_it_was_looked_at(shell: Shell, copy: Path, tmp_path: Path) -> None:
    """No queue is paused in the backup: what waits there waits behind a job that runs."""
    go_on, ran = tmp_path / "go-on", tmp_path / "ran"
    assert shell("queues", "set", "narrow", "--concurrency", "1").code == 0
    first = shell("run", "-q", "-d", "-Q", "narrow", "sh", "-c", f"until [ -e {go_on} ]; do sleep 0.02; done").id
    shell.until(first, "RUNNING")
    job = shell("run", "-q", "-d", "-Q", "narrow", "sh", "-c", f"echo ran >> {ran}").id
    assert shell("db", "backup", str(copy)).code == 0
    go_on.touch()
    shell("wait", first, job)
    assert ran.read_text() == "ran\n"
    shell("down", "-q")
    said = shell("db", "restore", "--paused", str(copy))
    assert "1 job that waited" in said.err
    assert "semtask resume" in said.err
    probe = shell(
        "run", "-q", "-d", "-Q", "new", "true"
    ).id  # claimed by the same daemon, so the others were passed over
    shell("wait", probe)
    assert shell.job(probe)["state"] == "DONE"
    assert shell.job(job)["state"] == "QUEUED"
    assert ran.read_text() == "ran\n"
    shell("resume", "narrow")
    assert shell.until(job, "DONE")["attempts"] == 1
    assert ran.read_text() == "ran\nran\n"


@pytest.mark.parametrize("what", ["damaged", "text", "newer", "itself"])
def test_what_is_no_good_backup_changes_nothing(shell: Shell, copy: Path, what: str) -> None:
    shell("run", "-q", "-t", "kept", "true")
    assert shell("db", "backup", str(copy)).code == 0
    shell("down", "-q")
    match what:
        case "damaged":
            damage(copy)
        case "text":
            copy.write_text("not a database " * 1000)
        case "newer":
            with apsw.Connection(str(copy)) as db:
                db.execute("INSERT INTO schema_versions VALUES (99, 'later', 0, '')")
        case _:
            copy = shell.home / "meta.db"
    before = {path.name: path.stat().st_ino for path in shell.home.iterdir()}
    said = shell("db", "restore", str(copy))
    assert said.code == 1, said
    assert said.err.count("\n") == 1
    assert {path.name: path.stat().st_ino for path in shell.home.iterdir()} == before
    assert len(shell("ls", "-q", "-t", "kept").out.split()) == 1


def test_a_damaged_database_is_replaced_and_kept(shell: Shell, copy: Path) -> None:
    shell("run", "-q", "-t", "kept", "true")
    assert shell("db", "backup", str(copy)).code == 0
    shell("down", "-q")
    database = shell.home / "meta.db"
    database.write_bytes(b"\xff" * 8192)
    Path(f"{database}-wal").write_bytes(b"\xff" * 8192)
    kept = Path(shell("db", "restore", str(copy), "--json").json["kept"])
    assert kept.read_bytes() == b"\xff" * 8192
    assert not Path(f"{database}-wal").exists()
    assert len(shell("ls", "-q", "-t", "kept").out.split()) == 1


def test_into_an_empty_home(shell: Shell, tmp_path: Path, copy: Path) -> None:
    """As on a new machine."""
    job = shell("run", "-q", "-d", "true").id
    shell("wait", job)
    assert shell("db", "backup", str(copy)).code == 0
    moved = Shell(tmp_path / "moved" / "home")
    moved.home.parent.mkdir()
    try:
        assert moved("db", "restore", str(copy)).code == 0
        assert moved.job(job)["state"] == "DONE"
    finally:
        moved.stop()


# --- an upgrade that goes wrong --------------------------------------------------------------------------------------


@pytest.fixture
def upgrade(shell: Shell, tmp_path: Path) -> Iterator[tuple[Shell, Path]]:
    """The same home with a made-up newer release, and the folder of its migrations."""
    release = tmp_path / "newer"
    shutil.copytree(Path(semtask.__file__).parent, release / "semtask", ignore=shutil.ignore_patterns("__pycache__"))
    # A daemon that is started passes on no more than this.
    settings = shell.home.parent / ".config" / "semtask" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('env_allowlist = ["PATH", "HOME", "PYTHONPATH"]')
    newer = Shell(shell.home, PYTHONPATH=str(release))
    yield newer, release / "semtask" / "store" / "sql" / "sqlite" / "migrations"
    newer.stop()


UP = "ALTER TABLE meta ADD COLUMN colour TEXT; UPDATE meta SET colour = 'green'"
DOWN = "ALTER TABLE meta DROP COLUMN colour"


def newest(folder: Path) -> int:
    return max(int(path.name[:3]) for path in folder.glob("*.up.sql"))


def test_an_upgrade_that_fails_leaves_all_as_it_was(shell: Shell, upgrade: tuple[Shell, Path]) -> None:
    newer, migrations = upgrade
    version = newest(migrations)
    (migrations / f"{version + 1:03}_colour.up.sql").write_text(f"{UP}; INSERT INTO nowhere VALUES (1)")
    (migrations / f"{version + 1:03}_colour.down.sql").write_text(DOWN)
    shell("pause", "default")
    job = shell("run", "-q", "-d", "true").id
    shell("down", "-q")
    said = newer("up")
    assert said.code == 1
    assert f"migration {version + 1:03}_colour failed and changed nothing" in said.err
    (backup,) = shell.home.glob("*.backup")
    assert str(backup) in said.err
    assert sound(backup)
    # The old release goes on with the database as it is, and with the backup.
    assert shell("db", "status", "--json").json["version"] == version
    assert shell.job(job)["state"] == "QUEUED"
    shell("down", "-q")
    assert shell("db", "restore", str(backup)).code == 0
    shell("resume", "default")
    assert shell.until(job, "DONE")


@pytest.mark.parametrize("way", ["rollback", "restore"])
def test_the_way_back_from_an_upgrade(shell: Shell, upgrade: tuple[Shell, Path], way: str) -> None:
    """By the newer release, which knows how, with all that was done since; or by the backup, without it."""
    newer, migrations = upgrade
    version = newest(migrations)
    (migrations / f"{version + 1:03}_colour.up.sql").write_text(UP)
    (migrations / f"{version + 1:03}_colour.down.sql").write_text(DOWN)
    before = shell("run", "-q", "-d", "true").id
    shell("wait", before)
    shell("down", "-q")
    since = newer("run", "-q", "-d", "true").id
    newer("wait", since)
    newer("down", "-q")
    assert rows(shell.home / "meta.db", "SELECT colour FROM meta") == [("green",)]
    (backup,) = shell.home.glob("*.backup")
    refused = shell("up")
    assert refused.code == 1
    assert "newer semtask" in refused.err
    if way == "rollback":
        assert newer("db", "rollback", "--to", str(version)).code == 0
    else:
        assert shell("db", "restore", str(backup)).code == 0
    assert shell.job(before)["state"] == "DONE"
    assert (shell("show", since).code == 0) == (way == "rollback")
    assert shell("run", "true").code == 0


def test_a_backup_of_before_an_upgrade_is_brought_up_to_date(
    shell: Shell, upgrade: tuple[Shell, Path], copy: Path
) -> None:
    newer, migrations = upgrade
    version = newest(migrations)
    (migrations / f"{version + 1:03}_colour.up.sql").write_text(UP)
    (migrations / f"{version + 1:03}_colour.down.sql").write_text(DOWN)
    job = shell("run", "-q", "-d", "true").id
    shell("wait", job)
    assert shell("db", "backup", str(copy)).code == 0
    shell("down", "-q")
    assert newer("db", "restore", str(copy), "--json").json["version"] == version + 1
    assert rows(shell.home / "meta.db", "SELECT colour FROM meta") == [("green",)]
    assert newer.job(job)["state"] == "DONE"


def test_a_large_backup_says_how_far_it_is(shell: Shell, copy: Path) -> None:
    """On a terminal, and only there."""
    from semtask.cli import upkeep
    from semtask.cli.session import Session

    shell("run", "-q", "true")
    assert shell("db", "backup", str(copy)).err == ""
    session = Session()
    written: list[str] = []

    class Terminal:
        isatty = staticmethod(lambda: True)
        flush = staticmethod(lambda: None)
        write = staticmethod(written.append)

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(sys, "stderr", Terminal)
        now = [100.0]
        patched.setattr(time, "monotonic", lambda: now[0])
        tell = upkeep._progress(session, "copied")
        for done in (1, 2, 3, 4):
            tell(done << 20, 4 << 20)
            now[0] += 0.6
    assert [text.strip("\r\n") for text in written] == [
        "semtask: copied 3.0 MiB of 4.0 MiB\x1b[K",
        "semtask: copied 4.0 MiB of 4.0 MiB\x1b[K",
    ]
