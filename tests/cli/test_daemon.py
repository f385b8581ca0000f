"""Starting and stopping the daemon: by hand, and by the first client that needs it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from semtask.cli.failure import Failure, describe
from semtask.cli.session import Session
from semtask.errors import SemtaskError
from tests.cli.rig import COMMAND, LIMIT_S, Shell, alive, eventually, processes_of


def test_the_first_command_starts_the_daemon_and_says_so(shell: Shell) -> None:
    ran = shell("run", "echo", "hello")
    assert (ran.code, ran.out) == (0, "hello\n")
    first, last = ran.err.splitlines()
    pid = shell.daemon_pid()
    assert first == f"semtask: started the daemon (pid {pid})"
    assert "succeeded" in last
    again = shell("run", "echo", "hello")
    assert "started" not in again.err


def test_twenty_clients_start_one_daemon(shell: Shell) -> None:
    clients = [
        subprocess.Popen([*COMMAND, "run", "-d", "true"], env=shell.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(20)
    ]
    said = [client.communicate(timeout=60) for client in clients]
    assert [client.returncode for client in clients] == [0] * 20, said
    assert len({out for out, _ in said}) == 20
    assert sum(err.count(b"started the daemon") for _, err in said) == 1
    daemons = [pid for pid, line in processes_of(shell.home).items() if "semtask daemon" in line]
    assert daemons == [shell.daemon_pid()]
    # Not only one that stayed: a second one would have found the home taken, and said so.
    assert "already owns" not in (shell.home / "logs" / "daemon.out").read_text()


def test_what_a_started_daemon_inherits(shell: Shell, tmp_path: Path) -> None:
    secret = {"SECRET_TOKEN": "x", "SEMANTICA_JOB_ID": "j", "SEMANTICA_ATTEMPT": "a", "LC_TIME": "C"}
    leak = os.open(tmp_path / "leak", os.O_CREAT | os.O_RDWR)
    try:
        up = shell("up", env=secret, pass_fds=(leak,))
        assert up.code == 0, up
        pid = shell.daemon_pid()
        environ = dict(
            pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in pair
        )
        assert environ["SEMANTICA_HOME"] == str(shell.home)
        assert environ["SEMANTICA_MAX_PROCESSES"] == "8"
        assert environ["LC_TIME"] == "C"
        assert not {"SECRET_TOKEN", "SEMANTICA_JOB_ID", "SEMANTICA_ATTEMPT"} & set(environ)
        assert os.readlink(f"/proc/{pid}/cwd") == str(shell.home)
        targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert str(tmp_path / "leak") not in targets
        assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
        assert os.readlink(f"/proc/{pid}/fd/2") == str(shell.home / "logs" / "daemon.out")
        assert os.getsid(pid) == pid
    finally:
        os.close(leak)


def test_up_and_down_tell_what_they_do(shell: Shell) -> None:
    down = shell("down")
    assert (down.code, down.err) == (
        3,
        f"semtask: no daemon answers at {shell.home}/run/rpc.sock; there is nothing to stop\n",
    )
    assert shell("status").code == 3
    up = shell("up")
    assert up.out.startswith("daemon: running (pid ")
    pid = shell.daemon_pid()
    assert shell("up").out.startswith(f"daemon: running (pid {pid},")
    shell("run", "-d", "--in", "1h", "true")
    with shell.start("run", "sh", "-c", "echo on; sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        down = shell("down", "--now")
        assert down.code == 0
        assert "1 running job is stopped now" in down.err
        assert "1 waiting job will go on" in down.err
        assert f"(pid {pid}) has stopped" in down.err
    assert not alive(pid)
    assert shell("status").code == 3
    assert not processes_of(shell.home)


def test_down_lets_jobs_finish_first(shell: Shell) -> None:
    shell("up")
    job_id = shell("run", "-d", "sh", "-c", "sleep 0.7; echo finished").id
    shell.until(job_id, "RUNNING")
    assert shell("down").code == 0
    assert shell("up").code == 0
    assert shell.job(job_id)["state"] == "DONE"


def test_a_dead_daemon_comes_back_for_the_next_command(shell: Shell) -> None:
    shell("run", "true")
    pid = shell.daemon_pid()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    listed = shell("ls", "-q")
    assert (listed.code, len(listed.out.splitlines())) == (0, 1)
    assert shell.daemon_pid() != pid


def test_looking_does_not_make_a_home(shell: Shell) -> None:
    for argv in (["ls"], ["show", "last"], ["queues"], ["wait", "last"]):
        said = shell(*argv)
        assert said.code == 3
        assert "semtask up" in said.err
    assert not shell.home.exists()


def test_autostart_off(shell: Shell) -> None:
    said = shell("run", "true", env={"SEMANTICA_AUTOSTART": "off"})
    assert (said.code, said.out) == (3, "")
    assert "`semtask up`" in said.err
    assert not shell.home.exists()


def test_the_second_daemon_of_a_home(shell: Shell) -> None:
    shell("up")
    pid = shell.daemon_pid()
    second = shell("daemon")
    assert second.code == 100
    assert str(pid) in second.err
    assert shell.daemon_pid() == pid


def test_a_daemon_that_cannot_start_says_why_through_the_client(shell: Shell) -> None:
    shell.home.mkdir(mode=0o700)
    (shell.home / "meta.db").write_bytes(b"this is no database" * 100)
    said = shell("run", "true")
    assert said.code not in {0, 3}
    assert said.err.startswith("semtask: the daemon did not start (exit code ")
    assert "meta.db" in said.err
    assert len(said.err.splitlines()) == 1
    as_json = shell("run", "--json", "true")
    assert (as_json.code, as_json.err) == (said.code, "")
    assert as_json.json["error"]["kind"] == "STARTUP_ERROR"


def test_a_home_that_cannot_be_made(shell: Shell) -> None:
    shell.home.write_text("a file is in the way")
    said = shell("run", "true")
    assert said.code == 1
    assert "SEMANTICA_HOME" in said.err
    shell.home.unlink()


def test_a_home_that_is_closed_to_us() -> None:
    """In this process, as somebody else where root tests: another one might not even be able to read the package."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o000)
        session = Session()
        session.flags["home"] = str(home)
        root = os.geteuid() == 0
        if root:
            os.seteuid(12345)
        try:
            for name in ("stored", "daemon"):
                with pytest.raises(SemtaskError) as caught:
                    getattr(session, name)
                failure = describe(caught.value)
                assert isinstance(failure, Failure)
                assert failure.exit_code == 6
                assert failure.message.startswith(f"cannot connect to {home}/run/rpc.sock: Permission denied; ")
                assert failure.message.endswith("choose a home of your own with SEMANTICA_HOME")
        finally:
            if root:
                os.seteuid(0)


def test_on_another_system_the_daemon_refuses_to_start_with_one_line(tmp_path: Path) -> None:
    """What it is made of cannot be imported there, so it must say so before."""
    program = (
        "import sys; sys.platform, sys.modules['semtask.daemon'] = 'darwin', None;"
        " sys.argv = ['semtask', 'daemon', '--home', sys.argv[1]];"
        " from semtask.cli.main import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "home")], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr == "semtask: semtask runs its daemon on Linux only for now, and this is darwin\n"
    assert not (tmp_path / "home").exists()


def test_the_daemons_output_file_is_kept_small(shell: Shell) -> None:
    (shell.home / "logs").mkdir(parents=True, mode=0o700)
    shell.home.chmod(0o700)
    output = shell.home / "logs" / "daemon.out"
    output.write_bytes(b"x" * 2_000_000)
    assert shell("up").code == 0
    assert output.stat().st_size < 100_000


def test_a_home_with_a_very_long_path(shell: Shell) -> None:
    deep = Shell(shell.home.joinpath(*["d" * 50] * 4))
    try:
        ran = deep("run", "echo", "deep")
        assert (ran.code, ran.out) == (0, "deep\n"), ran
    finally:
        deep.stop()
        shutil.rmtree(shell.home)


def test_down_does_not_believe_a_stranger(shell: Shell) -> None:
    """A server in the daemon's place that names another process: nothing is signalled."""
    from semtask import __version__
    from tests.client.fake import answer, serving

    with subprocess.Popen(["sleep", "60"]) as innocent:
        stats = {"pid": innocent.pid, "running_jobs": 0, "queued_jobs": 0, "scheduled_jobs": 0, "version": __version__}
        with serving(shell.home / "run") as fake:
            fake.script = [answer(stats)]
            said = shell("down")
        assert said.code == 1
        assert "does not confirm" in said.err
        time.sleep(0.1)
        assert innocent.poll() is None
        innocent.kill()
    shutil.rmtree(shell.home)


def test_over_tcp(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert shell("up", env={"SEMANTICA_TCP": "on", "SEMANTICA_RPC_PORT": str(port)}).code == 0
    tcp = {"SEMANTICA_RPC_URL": f"http://127.0.0.1:{port}"}
    ran = shell("run", "sh", "-c", "echo out; exit 4", env=tcp)
    assert (ran.code, ran.out) == (4, "out\n"), ran
    elsewhere = {"SEMANTICA_TOKEN_FILE": str(shell.home / "run" / "token"), "SEMANTICA_HOME": str(shell.home / "not")}
    for command in ("status", "up"):  # they name the home of the daemon that answers
        assert f"home {shell.home}\n" in shell(command, env=tcp | elsewhere).out
        assert shell(command, "--json", env=tcp | elsewhere).json["home"] == str(shell.home)
    down = shell("down", env=tcp)
    assert down.code == 1
    assert "does not confirm" in down.err
    stranger = shell("--home", str(shell.home.parent), "ls", env=tcp)
    assert (stranger.code, stranger.out) == (6, "")
    nobody = shell("up", env={"SEMANTICA_RPC_URL": "http://127.0.0.1:1"})
    assert (nobody.code, "SEMANTICA_TCP=on" in nobody.err) == (3, True), nobody
    wrong = shell("ls", env={"SEMANTICA_RPC_URL": "ftp://x"})
    assert wrong.code == 2
    assert "SEMANTICA_RPC_URL must be like http://127.0.0.1:9527" in wrong.err


@pytest.mark.parametrize("variable", ["SEMANTICA_HOME", "SEMANTICA_DB_PATH", "HOME"])
def test_a_home_that_is_no_utf8_is_refused_and_not_called_damaged(shell: Shell, tmp_path: Path, variable: str) -> None:
    env = dict.fromkeys(["SEMANTICA_HOME"], "") | {variable: os.fsdecode(os.fsencode(tmp_path) + b"/h\xe9")}
    for argv in (["up"], ["run", "true"], ["status"], ["config", "validate"]):
        said = shell(*argv, env=env)
        assert (said.code, "must be a path in UTF-8" in said.err) == (2, True), said
        assert "damaged" not in said.err
    found = shell("doctor", env=env)
    assert (found.code, "must be a path in UTF-8" in found.out) == (1, True), found
    assert os.listdir(os.fsencode(tmp_path)) == []


def test_looking_starts_no_daemon_and_makes_no_home(shell: Shell, tmp_path: Path) -> None:
    """In the default home, where nobody has named one: every command that only looks, or takes something away."""
    user = tmp_path / "user"
    user.mkdir()
    env = {"HOME": str(user), "SEMANTICA_HOME": "", "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
    looks = """
        | --help | version | status | doctor | config show | config validate | config schema | completion bash
        | install-service --print | ls | queues | apps | tasks | workers | show last | logs last | logs --daemon
        | wait last | result last | artifacts ls last | cancel last | retry --failed | down | gc
        | db status | db check | token ls | token rm x | token rotate x | policy show | policy check true | apps rm x
    """
    for words in looks.split("|")[1:]:
        said = shell(*words.split(), env=env)
        assert "Traceback" not in said.err, said
        assert os.listdir(user) == [], words
    completed = shell(
        env={**env, "_SEMTASK_COMPLETE": "bash_complete", "COMP_WORDS": "semtask show ", "COMP_CWORD": "2"}
    )
    assert "last" in completed.out
    for code in ("from semtask import Semantica; Semantica()", "from semtask import Client; Client().close()"):
        subprocess.run([COMMAND[0], "-c", code], env={**shell.env, **env}, check=True, timeout=LIMIT_S)
    assert os.listdir(user) == []


def test_the_settings_file_of_the_user_holds_for_the_daemon_too(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "xdg" / "semtask").mkdir(parents=True)
    (tmp_path / "xdg" / "semtask" / "config.toml").write_text("queue_concurrency = 17\n")
    shell.env["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    shell("run", "true")
    (queue,) = shell("queues", "--json").json_lines
    assert queue["concurrency"] == 17


def test_the_file_of_the_home_holds_for_the_daemon_and_its_clients(shell: Shell) -> None:
    shell.home.mkdir(mode=0o700)
    (shell.home / "config.toml").write_bytes(
        b"\xef\xbb\xbfqueue_concurrency = 17\r\nenv_allowlist = ['PATH', 'OF_HOME']\r\n"
    )
    said = shell("run", "sh", "-c", "echo $OF_HOME", env={"OF_HOME": "allowed"})
    assert said.out == "allowed\n", said
    (queue,) = shell("queues", "--json").json_lines
    assert queue["concurrency"] == 17


def test_a_variable_without_effect_is_reported_at_start(shell: Shell) -> None:
    slip = {"SEMANTICA_MAX_PROCESES": "4"}
    problem = "SEMANTICA_MAX_PROCESES is read by nothing (did you mean 'SEMANTICA_MAX_PROCESSES'?)"
    started, running = shell("up", env=slip), shell("up", env=slip)
    for up in (started, running):
        assert up.err.count(f"semtask: {problem}\n") == 1, up
    assert shell("up").err == ""
    log = (shell.home / "logs" / "daemon.log").read_text()
    assert [line.split(": ", 1)[1] for line in log.splitlines() if "WARNING" in line] == [problem]
    assert f"{problem}\n" in shell("config", "validate", env=slip).err
    assert problem in shell("doctor", env=slip).out


def test_the_python_client_starts_it_too(shell: Shell) -> None:
    code = (
        "from semtask import Client\n"
        "with Client() as c:\n"
        "    job = c.enqueue('x', {'command': 'true'})\n"
        "    print(c.wait([job.job_id]).jobs[0].state, c.stats().pid)\n"
    )
    done = subprocess.run(
        [COMMAND[0], "-c", code], env=shell.env, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert done.stdout.split() == ["DONE", str(shell.daemon_pid())]
    assert done.stderr.startswith("semtask: started the daemon (pid ")


def test_status_and_down_work_with_broken_settings_and_report_them(shell: Shell) -> None:
    file = shell.home.parent / ".config" / "semtask" / "config.toml"
    shell.env["XDG_CONFIG_HOME"] = ""
    assert shell("up").code == 0
    file.parent.mkdir(parents=True)
    file.write_text("max_processes = \n")
    refused = shell("ls")
    assert (refused.code, str(file) in refused.err) == (2, True)
    for words in (["status"], ["status", "--json"], ["down", "--now"]):
        said = shell(*words)
        assert said.code == 0, said
        assert said.err.count(f"cannot read the settings in {file}") == 1
    assert shell("status").code == 3
    file.write_text('max_processes = \nhome = "/elsewhere"\n')
    assert shell("down").code == 3, "the home is known from the environment"
    assert shell("down", env={"SEMANTICA_HOME": ""}).code == 2, "another home must not be taken for it"
    file.unlink()
    (shell.home / "config.toml").mkdir()
    assert f"{shell.home / 'config.toml'}: it is a folder" in shell("ls").err
    (shell.home / "config.toml").rmdir()
