"""`db`, `gc` and `doctor`: what keeps a home in order, and finds out what is wrong with it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from semtask.host.open_files import LEAST_OPEN_FILES
from tests.cli.rig import LIMIT_S, Shell, alive, eventually, kill
from tests.client.fake import answer, serving


@pytest.fixture
def stopped(shell: Shell) -> Shell:
    """A home with a job in its database, and no daemon."""
    assert shell("run", "-q", "-t", "kept", "true").code == 0
    assert shell("down", "-q").code == 0
    return shell


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.backup")}


# --- db --------------------------------------------------------------------------------------------------------------


def test_the_schema_goes_down_and_up_with_a_backup_each_time(stopped: Shell) -> None:
    newest = stopped("db", "status", "--json").json
    assert newest["pending"] == []
    assert newest["version"] == newest["applied"][-1]["version"] > 0
    down = stopped("db", "rollback", "--to", str(newest["version"] - 1), "--json").json
    assert (down["before"], down["after"]) == (newest["version"], newest["version"] - 1)
    assert Path(down["backup"]).stat().st_mode & 0o777 == 0o600
    behind = stopped("db", "status", "--json").json
    assert [m["version"] for m in behind["pending"]] == [newest["version"]]
    text = stopped("db", "status").out
    assert "not up to date" in text
    assert "`semtask db migrate`" in text
    up = stopped("db", "migrate")
    assert f"went from version {newest['version'] - 1} to {newest['version']}" in up.err
    again = stopped("db", "migrate")
    assert (again.code, "nothing was changed" in again.err) == (0, True)
    assert stopped("db", "rollback", "--to", "999").code == 0
    assert stopped("db", "status", "--json").json["version"] == newest["version"]
    assert stopped("run", "true").code == 0


def test_the_backup_has_what_was_there(stopped: Shell) -> None:
    down = stopped("db", "rollback", "--to", "0", "--json").json
    backup = Path(down["backup"])
    with apsw.Connection(str(backup)) as db:
        assert db.execute("SELECT tag FROM jobs").fetchall() == [("kept",)]
    os.replace(backup, stopped.home / "meta.db")
    assert len(stopped("ls", "-q", "-t", "kept").out.split()) == 1


@pytest.mark.parametrize("argv", [["migrate"], ["rollback", "--to", "0"]])
def test_nothing_is_changed_under_a_daemon(shell: Shell, argv: list[str]) -> None:
    shell("up")
    pid = shell.daemon_pid()
    said = shell("db", *argv)
    assert (said.code, said.out) == (100, "")
    assert f"pid {pid}" in said.err
    assert "`semtask down`" in said.err
    assert files(shell.home) == set()
    assert shell("run", "true").code == 0


def test_a_daemon_of_another_home_owns_the_folder_of_the_database(shell: Shell, tmp_path: Path) -> None:
    shell("up")
    other = {"SEMANTICA_HOME": str(tmp_path / "other"), "SEMANTICA_DB_PATH": str(shell.home / "meta.db")}
    said = shell("db", "migrate", env=other)
    assert said.code == 100
    assert "database folder" in said.err


def test_no_daemon_starts_while_the_schema_is_changed(stopped: Shell) -> None:
    held = (
        "import sys; from semtask.config.loading import load; from semtask.host.ownership import owned_folders\n"
        "with owned_folders(load()): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held], env=stopped.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert stopped("daemon").code == 100
        assert stopped("db", "migrate").code == 100
        holder.communicate(timeout=LIMIT_S)
    assert stopped("db", "migrate").code == 0


def test_looking_is_allowed_while_the_daemon_works(shell: Shell) -> None:
    shell("run", "-q", "true")
    assert shell("db", "status").out.startswith(f"database: {shell.home / 'meta.db'}, ")
    assert shell("db", "status", "-q").out.strip().isdigit()
    for argv in (["db", "check"], ["db", "check", "--thorough"]):
        assert shell(*argv).out == f"{shell.home / 'meta.db'} is sound\n"
    assert shell("db", "check", "--json").json == {"schema": "db_check.v1", "sound": True, "damages": []}
    assert shell("run", "-q", "true").code == 0


@pytest.mark.parametrize("table", ["jobs", "queues"])
def test_damage_is_found(stopped: Shell, table: str) -> None:
    path = stopped.home / "meta.db"
    with apsw.Connection(str(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        root: Any
        ((root,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchall()
        page = int(db.pragma("page_size"))
    with path.open("r+b") as file:
        file.seek((root - 1) * page)
        file.write(b"\xff" * page)
    said = stopped("db", "check")
    assert said.code == 1
    assert said.out
    assert not stopped("db", "check", "--json").json["sound"]
    (finding,) = [f for f in doctor(stopped) if f["name"] == "database"]
    assert finding["verdict"] == "fail"
    assert "damaged" in finding["text"]


@pytest.mark.parametrize("argv", [["status"], ["check"], ["migrate"], ["rollback", "--to", "0"]])
def test_no_database_yet(shell: Shell, argv: list[str]) -> None:
    said = shell("db", *argv)
    assert (said.code, said.out) == (4, "")
    assert "the first start of the daemon makes it" in said.err
    assert not shell.home.exists()


@pytest.mark.parametrize("content", [b"this is no database" * 100, None])
def test_a_database_of_somebody_else(shell: Shell, content: bytes | None) -> None:
    shell.home.mkdir(mode=0o700)
    path = shell.home / "meta.db"
    if content is not None:
        path.write_bytes(content)
    else:
        with apsw.Connection(str(path)) as db:
            db.execute("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    before = path.read_bytes()
    for argv in (["status"], ["migrate"], ["rollback", "--to", "0"]):
        said = shell("db", *argv)
        assert said.code == 1
        assert "meta.db" in said.err
    assert path.read_bytes() == before


def test_a_newer_database_is_left_alone(stopped: Shell) -> None:
    with apsw.Connection(str(stopped.home / "meta.db")) as db:
        db.execute("INSERT INTO schema_versions VALUES (999, 'later', 0, '')")
    for argv in (["status"], ["migrate"], ["rollback", "--to", "1"]):
        said = stopped("db", *argv)
        assert said.code == 1
        assert "newer semtask" in said.err


# --- gc --------------------------------------------------------------------------------------------------------------


def test_gc_deletes_what_is_over_its_retention(shell: Shell) -> None:
    shell.env["XDG_CONFIG_HOME"] = str(shell.home.parent / "xdg")
    (shell.home.parent / "xdg" / "semtask").mkdir(parents=True)
    (shell.home.parent / "xdg" / "semtask" / "config.toml").write_text("max_finished_jobs = 2\n")
    ids = [shell("run", "-d", "true").id for _ in range(4)]
    shell("wait", *ids)
    said = shell("gc", "--vacuum", "--json").json
    assert said["schema"] == "maintained.v1"
    assert set(said) == {
        "schema", "vacuum_run", "jobs_deleted", "artifacts_deleted", "db_size_before", "db_size_after",
    }  # fmt: skip
    assert eventually(lambda: shell("gc").code == 0 and shell("ls", "-q").out.split()) == [ids[3], ids[2]]
    text = shell("gc")
    assert (text.code, text.err) == (0, "")
    assert text.out.startswith("deleted 0 jobs with their logs; the database has ")
    assert shell("gc", "-q").out == ""


def test_gc_waits_for_the_vacuum_that_it_asks_for(shell: Shell) -> None:
    done = {
        "vacuum_run": True,
        "jobs_deleted": 1,
        "artifacts_deleted": 2,
        "db_size_before": 4096,
        "db_size_after": 1024,
    }
    with serving(shell.home / "run") as fake:
        fake.script = [answer(done), answer(done)]
        assert shell("gc").code == 0
        assert shell("gc", "--vacuum").out == (
            "deleted 1 job with its logs; the database has 1.0 KiB, before 4.0 KiB\n"
        )
    assert [r["params"] for r in fake.requests] == [{"force_vacuum": False}, {"force_vacuum": True}]
    shutil.rmtree(shell.home)


# --- doctor ----------------------------------------------------------------------------------------------------------


def doctor(shell: Shell, **options: Any) -> list[dict[str, Any]]:
    said = shell("doctor", "--json", **options)
    assert said.err == ""
    report = said.json
    assert report["schema"] == "doctor.v1"
    assert report["healthy"] == all(f["verdict"] != "fail" for f in report["checks"])
    assert said.code == (0 if report["healthy"] else 1)
    return list(report["checks"])


def of(findings: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (finding,) = [f for f in findings if f["name"] == name]
    return finding


def test_a_healthy_home(shell: Shell) -> None:
    before = doctor(shell)
    assert {f["verdict"] for f in before} == {"ok"}
    assert not shell.home.exists()  # looking makes nothing
    shell("up")
    shell("run", "-q", "true")
    after = doctor(shell)
    assert [f["name"] for f in after] == [f["name"] for f in before]
    assert {f["verdict"] for f in after} == {"ok"}, after
    assert f"pid {shell.daemon_pid()}" in of(after, "daemon")["text"]
    text = shell("doctor")
    assert text.code == 0
    assert len(text.out.splitlines()) == len(after)
    assert shell("doctor", "-q").out == ""


def test_a_finding_says_what_to_do(shell: Shell) -> None:
    shell("up")
    shell.home.chmod(0o777)
    said = shell("doctor")
    assert said.code == 1
    assert "fail  home" in said.out
    assert f"chmod 755 {shell.home}" in said.out
    assert "fail" in shell("doctor", "-q").out
    shell.home.chmod(0o700)


def test_a_home_that_cannot_be_written_to() -> None:
    """In this process, as somebody else where root tests: another one might not even be able to read the package."""
    from semtask.cli.doctor import checks
    from semtask.config.loading import load
    from semtask.host import command_policy, tokens  # noqa: F401 - while this user can still read their imports

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(12345)
        try:
            for home, what in (
                (folder, "cannot be written to"),
                (f"{folder}/not/there", f"cannot be made, as you may not write to {folder}"),
            ):
                found = [f for f in checks.examine(load({}, {"home": home}, cwd="/")) if f.name == "home"]
                assert [(f.verdict, f.text) for f in found] == [("fail", f"{home} {what}")]
                assert "SEMANTICA_HOME" in str(found[0].fix)
        finally:
            if root:
                os.seteuid(0)
        Path(folder).chmod(0o700)


def test_open_files_of_the_home(shell: Shell) -> None:
    shell("up")
    for path in (shell.home / "run" / "rpc.sock", shell.home / "meta.db"):
        path.chmod(0o660)
        finding = of(doctor(shell), "home")
        assert (finding["verdict"], finding["fix"]) == ("fail", f"chmod 600 {path}")
        path.chmod(0o600)


def test_settings_without_effect_and_wrong_ones(shell: Shell, tmp_path: Path) -> None:
    misspelt = of(doctor(shell, env={"SEMANTICA_MAX_PROCESES": "3"}), "settings")
    assert misspelt["verdict"] == "warn"
    assert "did you mean 'SEMANTICA_MAX_PROCESSES'" in misspelt["text"]
    project = tmp_path / "project"
    project.mkdir()
    (project / "semantica.toml").write_text("queue_concurrency = 3\nautostart = true\n")
    finding = of(doctor(shell, cwd=project), "settings")
    assert finding["verdict"] == "warn"
    assert f"queue_concurrency in {project / 'semantica.toml'} has no effect" in finding["text"]
    (project / "semantica.toml").write_text("nonsense = 3\n")
    (only,) = doctor(shell, cwd=project)
    assert (only["name"], only["verdict"]) == ("settings", "fail")
    assert "nonsense" in only["text"]


def test_a_daemon_that_does_not_answer(shell: Shell) -> None:
    shell("up")
    pid = shell.daemon_pid()
    kill(pid, signal.SIGSTOP)
    try:
        findings = doctor(shell)
        assert of(findings, "daemon")["verdict"] == "fail"
        assert of(findings, "disk")["verdict"] == "ok"
    finally:
        kill(pid, signal.SIGCONT)


def test_what_a_killed_daemon_leaves(shell: Shell) -> None:
    with shell.start("run", "--on-interrupt", "requeue", "sh", "-c", "echo on; sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        pid = shell.daemon_pid()
        process.kill()
    kill(pid)
    eventually(lambda: not alive(pid))
    findings = doctor(shell)
    assert (of(findings, "attempts")["verdict"], of(findings, "attempts")["fix"]) == ("warn", "semtask up")
    assert "left of a daemon that was killed" in of(findings, "socket")["text"]
    off = of(doctor(shell, env={"SEMANTICA_AUTOSTART": "off"}), "daemon")
    assert (off["verdict"], off["fix"]) == ("warn", "semtask up")


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def test_the_port(shell: Shell) -> None:
    with taken_port() as port:
        env = {"SEMANTICA_RPC_PORT": port}
        assert "matters only with TCP on" in of(doctor(shell, env=env), "port")["text"]
        finding = of(doctor(shell, env={**env, "SEMANTICA_TCP": "on"}), "port")
        assert finding["verdict"] == "fail"
        assert "SEMANTICA_RPC_PORT=0" in finding["fix"]
    env = {"SEMANTICA_RPC_PORT": port, "SEMANTICA_TCP": "on"}
    assert "is free" in of(doctor(shell, env=env), "port")["text"]
    shell("up", env=env)
    assert of(doctor(shell, env=env), "port")["text"] == f"{port} of 127.0.0.1 is the daemon's"


def test_tasks_run_with_the_fewest_open_files_and_no_daemon_starts_with_less(shell: Shell) -> None:
    (shell.home.parent / "few.py").write_text(
        "from semtask import Semantica\napp = Semantica()\n@app.task\ndef plus(x: int) -> int:\n    return x + 1\n"
    )

    def with_files(number: int, line: str) -> tuple[int, str, str]:
        line = f'semtask() {{ {sys.executable} -m semtask "$@"; }}; ulimit -n {number}; {line}'
        done = subprocess.run(
            ["bash", "-c", line],
            env=shell.env,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
            cwd=shell.home.parent,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    code, _, err = with_files(LEAST_OPEN_FILES - 1, "semtask daemon")
    assert (code, len(err.splitlines())) == (1, 1)
    assert f"a process may open {LEAST_OPEN_FILES - 1} files here, and a daemon needs {LEAST_OPEN_FILES}" in err
    code, _, err = with_files(LEAST_OPEN_FILES - 1, "semtask up")
    assert code != 0
    assert f"a daemon needs {LEAST_OPEN_FILES}" in err
    _, out, _ = with_files(LEAST_OPEN_FILES - 1, "semtask doctor --json")
    assert f'"limits","verdict":"fail","text":"open files (nofile): {LEAST_OPEN_FILES - 1}' in out
    for number in (LEAST_OPEN_FILES, 64, 128):
        task = "semtask result -w $(semtask enqueue few:plus -a x=1)"
        line = f"semtask up -q --app few:app && semtask run -q -- true && {task}"
        code, out, err = with_files(number, line)
        assert (code, out.splitlines()[-1:]) == (0, ["2"]), err
        shell.stop()


def test_few_open_files(shell: Shell) -> None:
    line = f"ulimit -n 256; {sys.executable} -m semtask doctor --json"
    done = subprocess.run(["sh", "-c", line], env=shell.env, capture_output=True, timeout=LIMIT_S, check=True)
    assert b'"limits","verdict":"warn","text":"open files (nofile): 256' in done.stdout
    shell("up")  # with enough of them: its own limit counts now
    done = subprocess.run(["sh", "-c", line], env=shell.env, capture_output=True, timeout=LIMIT_S, check=True)
    assert b'"limits","verdict":"ok"' in done.stdout


def test_another_program_of_the_name(shell: Shell, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("semtask", "semantica"):
            (tmp_path / folder / name).write_text("#!/bin/sh\n")
            (tmp_path / folder / name).chmod(0o755)
    env = {"PATH": f"{tmp_path / 'a'}:{tmp_path / 'b'}:/usr/bin:/bin"}
    texts = [f["text"] for f in doctor(shell, env=env) if f["name"] == "programs"]
    assert texts[0] == f"`semtask` is {tmp_path}/a/semtask, but there is {tmp_path}/b/semtask too"
    assert texts[1].startswith(f"{tmp_path}/a/semantica is another program")


def test_a_home_on_a_network_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such a mount cannot be had in a test, so the check is called with what the kernel would say."""
    from semtask.cli.doctor import checks, home
    from semtask.config.loading import load
    from semtask.errors import StartupError

    def refuse(path: Path) -> None:
        raise StartupError(f"{path} is on a network file system")

    monkeypatch.setattr(home, "require_local", refuse)
    settings = load({"HOME": str(tmp_path), "SEMANTICA_HOME": str(tmp_path / "home")}, cwd=str(tmp_path))
    (finding,) = [f for f in checks.examine(settings) if f.name == "file system"]
    assert finding.verdict == "fail"


def test_little_room_slow_disk_and_wrong_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from semtask.cli.doctor import checks, disk
    from semtask.config.loading import load

    settings = load({"HOME": str(tmp_path), "SEMANTICA_HOME": str(tmp_path)}, cwd=str(tmp_path))

    def verdict(name: str) -> str:
        (finding,) = [f for f in checks.examine(settings) if f.name == name]
        return finding.verdict

    for free, wanted in ((50 << 20, "fail"), (500 << 20, "warn"), (5000 << 20, "ok")):
        monkeypatch.setattr(disk, "free_bytes", lambda _, free=free: free)
        assert verdict("disk") == wanted
    for times, wanted in (([0.2] * 5, "warn"), ([0.001, 0.001, 0.001, 9.0, 9.0], "ok")):
        monkeypatch.setattr(disk, "_sync_times", lambda _, times=times: times)
        assert verdict("sync") == wanted
    (tmp_path / "logs").mkdir()
    assert verdict("clock") == "ok"
    os.utime(tmp_path / "logs", (4_000_000_000, 4_000_000_000))
    assert verdict("clock") == "warn"
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert verdict("clock") == "fail"
    (tmp_path / "meta.db-wal").touch()
    os.truncate(tmp_path / "meta.db-wal", 300 << 20)
    assert verdict("write ahead log") == "warn"


def test_a_database_that_takes_too_long_to_check(monkeypatch: pytest.MonkeyPatch, stopped: Shell) -> None:
    from semtask import maintenance
    from semtask.config.loading import load

    monkeypatch.setattr(maintenance, "_CHECK_EVERY", 1)
    settings = load({"HOME": stopped.env["HOME"], "SEMANTICA_HOME": str(stopped.home)})
    assert maintenance.damages(settings.database, limit_s=0) is None
    assert maintenance.damages(settings.database, limit_s=60) == []
