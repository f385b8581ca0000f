"""`app.embedded()` in real programs, and the fixture `semantica_daemon`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest

from semtask.testing import private_daemon
from tests.daemon.rig import eventually, processes_of
from tests.testing.test_plugin import APP, run_pytest

TASKS = """
    import os, time
    from semtask import Semantica
    app = Semantica()

    @app.task
    def where() -> tuple[str, int]:
        return os.getcwd(), os.getpid()

    @app.task
    def sleep(seconds: float) -> str:
        time.sleep(seconds)
        return "slept"
"""


def start(folder: Path, *argv: str, stdin: str | None = None, **env: str) -> subprocess.Popen[str]:
    # TMPDIR: what the program makes for a moment is looked for there in the end.
    (folder / "tmp").mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SEMANTICA_")}
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", *argv],
        cwd=folder,
        env={**clean, "HOME": str(folder), "TMPDIR": str(folder / "tmp"), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if stdin is not None:
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
    return process


def run(folder: Path, *argv: str, stdin: str | None = None, **env: str) -> tuple[int, str, str]:
    process = start(folder, *argv, stdin=stdin, **env)
    try:
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, out, err


def write(folder: Path, name: str, *texts: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(dedent(text) for text in texts))


def test_a_script_runs_its_own_tasks_and_leaves_nothing(tmp_path: Path) -> None:
    main = """
        if __name__ == "__main__":
            with app.embedded() as daemon:
                folder, pid = where.enqueue().result(timeout=30)
                assert folder == os.path.dirname(os.path.abspath(__file__)), folder
                assert pid not in (os.getpid(), daemon.pid)
                assert app.run("true").result(timeout=30).exit_code == 0
                assert str(daemon.home).startswith(os.environ["TMPDIR"])
            print("done")
    """
    write(tmp_path, "script.py", TASKS, main)
    # Neither the user's own daemon nor its port is looked at.
    code, out, err = run(tmp_path, "script.py", SEMANTICA_RPC_URL="http://127.0.0.1:1", SEMANTICA_TCP="on")
    assert (code, out, err) == (0, "done\n", "")
    assert os.listdir(tmp_path / "tmp") == []
    assert not (tmp_path / ".local").exists()
    assert not processes_of(tmp_path)


def test_a_module_of_a_package_that_is_run(tmp_path: Path) -> None:
    main = """
        if __name__ == "__main__":
            with app.embedded():
                assert where.name == "pkg.jobs:where", where.name
                print(where.enqueue().result(timeout=30)[0])
    """
    write(tmp_path, "pkg/__init__.py")
    write(tmp_path, "pkg/jobs.py", TASKS, main)
    assert run(tmp_path, "-m", "pkg.jobs")[:2] == (0, f"{tmp_path}\n")


def test_the_app_of_a_module_that_is_imported(tmp_path: Path) -> None:
    """As a notebook does it."""
    write(tmp_path, "lib/jobs.py", TASKS)
    lines = """
        import sys
        sys.path.insert(0, "lib")
        from jobs import app, where
        daemon = app.embedded("state").start()
        print(where.enqueue().result(timeout=30)[0], flush=True)
        daemon.stop()
    """
    code, out, err = run(tmp_path, "-", stdin=dedent(lines))
    assert (code, out) == (0, f"{tmp_path / 'lib'}\n"), err
    assert (tmp_path / "state" / "meta.db").exists()
    assert not processes_of(tmp_path)


def test_an_app_without_a_file_is_told_to_have_one(tmp_path: Path) -> None:
    lines = """
        from semtask import Semantica
        app = Semantica()

        @app.task(name="t")
        def t() -> None: ...

        with app.embedded():
            pass
    """
    code, _, err = run(tmp_path, "-", stdin=dedent(lines))
    assert code == 1
    assert "ValueError: no worker can import the app: it is defined in no file (a notebook" in err
    assert not processes_of(tmp_path)


def test_a_script_without_its_guard_is_told_so(tmp_path: Path) -> None:
    write(tmp_path, "script.py", TASKS, "with app.embedded():\n    print('never')\n")
    code, out, err = run(tmp_path, "script.py")
    assert (code, out) == (1, "")
    assert "AppFailed: the module script of the app script:app cannot be imported: RuntimeError" in err
    assert "below `if __name__ == '__main__':`" in err
    assert os.listdir(tmp_path / "tmp") == []
    assert not processes_of(tmp_path)


def test_tasks_that_a_worker_would_not_find_are_named(tmp_path: Path) -> None:
    write(tmp_path, "jobs.py", TASKS)
    write(tmp_path, "more.py", "from jobs import app\n\n@app.task\ndef extra() -> int:\n    return 7\n")
    write(tmp_path, "everything.py", "from jobs import app\nimport more\n")
    main = "import more\nfrom jobs import app\nwith app.embedded({}):\n    print(more.extra.enqueue().result(30))\n"
    write(tmp_path, "script.py", main.format("module='jobs:app'"))
    code, _, err = run(tmp_path, "script.py")
    assert code == 1
    assert "a worker that imports jobs:app does not get the tasks more:extra; name the module" in err
    write(tmp_path, "script.py", main.format("module='everything:app'"))
    assert run(tmp_path, "script.py")[:2] == (0, "7\n")


def test_jobs_of_a_folder_that_is_kept_go_on_the_next_time(tmp_path: Path) -> None:
    first = """
        if __name__ == "__main__":
            with app.embedded("state") as daemon:
                print(where.using(delay=0.5).enqueue().id)
                print(sleep.enqueue(600).id)
                daemon.stop(at_once=True)
    """
    write(tmp_path, "script.py", TASKS, first)
    code, out, err = run(tmp_path, "script.py")
    assert code == 0, err
    waiting, running = out.split()
    second = f"""
        if __name__ == "__main__":
            with app.embedded("state"):
                print(where.handle("{waiting}").result(timeout=30)[0])
                job = app.job("{running}")
                print(job.state())
                job.cancel()
                print(job.wait(30))
    """
    write(tmp_path, "script.py", TASKS, second)
    code, out, err = run(tmp_path, "script.py")
    assert code == 0, err
    folder, before, after = out.split()
    assert (folder, after) == (str(tmp_path), "CANCELLED")
    assert before in {"QUEUED", "RUNNING"}


def test_a_second_program_cannot_have_the_same_folder(tmp_path: Path) -> None:
    main = """
        if __name__ == "__main__":
            with app.embedded("state"):
                print("in", flush=True)
                input()
    """
    write(tmp_path, "script.py", TASKS, main)
    first = start(tmp_path, "script.py")
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "in\n"
        code, _, err = run(tmp_path, "script.py", stdin="\n")
        assert code == 1
        assert "StartupError" in err
        assert "another daemon" in err
    finally:
        _, err = first.communicate("\n", timeout=60)
    assert (first.returncode, err) == (0, "")
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_program(tmp_path: Path, end: signal.Signals) -> None:
    main = """
        if __name__ == "__main__":
            with app.embedded("state") as daemon:
                job, command = sleep.enqueue(600), app.run("sleep", "600")
                while {job.state(), command.state()} != {"RUNNING"}:
                    time.sleep(0.01)
                if not os.fork():
                    os.setsid()
                    time.sleep(600)  # a child that outlives the program does not keep the daemon alive
                print(daemon.pid, flush=True)
                time.sleep(600)
    """
    write(tmp_path, "script.py", TASKS, main)
    program = start(tmp_path, "script.py", PYTHONWARNINGS="ignore")
    assert program.stdout is not None
    daemon = os.pidfd_open(int(program.stdout.readline()))
    family = [pid for pid, line in processes_of(tmp_path).items() if "script.py" in line]
    [child] = [pid for pid in family if pid != program.pid]
    try:
        program.send_signal(end)
        eventually(lambda: set(processes_of(tmp_path)) <= {child, program.pid}, within=30, what="all of it is gone")
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)  # only where the test has failed
        os.close(daemon)
        os.kill(child, signal.SIGKILL)
        program.kill()
        program.communicate()


# --- in tests --------------------------------------------------------------------------------------------------------


def test_the_plugin_offers_a_real_daemon(tmp_path: Path) -> None:
    test_it = """
        import os
        import pytest
        import jobs
        from semtask import Semantica

        here = Semantica()

        @here.task
        def pid() -> int:
            return os.getpid()

        def test_two_apps(semantica_daemon):
            assert semantica_daemon(jobs.app) is jobs.app
            semantica_daemon(here)
            assert jobs.double.enqueue(4).result(timeout=30) == 8
            assert pid.enqueue().result(timeout=30) not in (os.getpid(), semantica_daemon.pid)
            assert semantica_daemon.client.stats().done_jobs == 2
            assert jobs.app.run("true").result(timeout=30).exit_code == 0
    """
    (tmp_path / "t").mkdir()
    assert "1 passed" in run_pytest(tmp_path, jobs=APP, test_it=test_it)
    assert not processes_of(tmp_path)


def test_a_daemon_for_a_fixture_of_another_scope(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with private_daemon(home) as daemon:
        assert daemon.client.stats().pid == daemon.pid
    assert home.is_dir()
    assert not processes_of(home)
