"""What jobs leave behind, and what forked children may not do. Rows of FAULTS B8."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.worker.rig import Rig, alive, until, worker

TASKS = """
import multiprocessing

@app.task
def ok() -> int:
    return 1

@app.task
def anything(code: str):
    scope = dict(globals())
    exec(code, scope)
    return scope.get("result")

@app.task
def fork_returns() -> str:
    pid = os.fork()
    if pid == 0:
        return "child"
    return f"parent of {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"

@app.task
def fork_raises(what: str) -> int:
    pid = os.fork()
    if pid == 0:
        exec(what)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@app.task
def pool() -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])

@app.task
def spawned() -> int:
    process = multiprocessing.get_context("spawn").Process(target=abs, args=(-1,))
    process.start()
    process.join()
    return process.exitcode

@app.task
def runs_a_process() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            open("begun", "w").close()
            process.wait()
        except BaseException:
            process.kill()
            raise

@app.task
def leave_plain() -> int:
    return subprocess.Popen(["sleep", "60"]).pid

@app.task
def leave_detached() -> int:
    found = subprocess.run(["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
    return int(found.stdout)

@app.task
def leave_ended() -> None:
    global kept  # else subprocess would reap it
    process = kept = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Rig:  # type: ignore[misc]
    with worker(tmp_path_factory.mktemp("worker"), TASKS, shim=True) as rig:
        yield rig


def is_clean(rig: Rig) -> None:
    """No second result came, and the worker goes on."""
    ended = rig.run("ok")
    assert (ended.result, ended.leftovers, ended.recycle) == ("1", False, None)
    assert rig._received == []


def test_a_forked_child_does_not_answer_for_its_job(shared: Rig) -> None:
    ended = shared.run("fork_returns")
    assert (ended.result, ended.leftovers, ended.recycle) == ('"parent of 0"', False, None)
    is_clean(shared)


UNGUARDED = """
import os
from semtask.worker.channel import Channel
own = os.getpid()
os.getpid = lambda: own
Channel._close = lambda self: None
"""


def test_without_its_guards_a_forked_child_answers_for_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is put in on purpose: the test above finds it."""
    (tmp_path / "sitecustomize.py").write_text(UNGUARDED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with worker(tmp_path, TASKS) as rig:
        assert rig.run("fork_returns").result == '"child"'


@pytest.mark.parametrize(("what", "code"), [("sys.exit(4)", 4), ("sys.exit('text')", 1), ("raise KeyError", 1)])
def test_a_forked_child_that_raises_ends_as_a_program(shared: Rig, what: str, code: int) -> None:
    ended = shared.run("fork_raises", what=what)
    assert ended.result == str(code)
    if "KeyError" in what:
        assert "ERR KeyError" in shared.log(ended)
    is_clean(shared)


def test_a_forked_child_cannot_speak_for_its_job(shared: Rig) -> None:
    ended = shared.run("fork_raises", what="current_job().progress(1)")
    assert ended.result == "1"
    assert any("only the process of a job can speak for it" in line for line in shared.log(ended))
    is_clean(shared)


def test_multiprocessing_inside_a_task(shared: Rig) -> None:
    assert shared.run("pool").result == "[1,2,3]"
    is_clean(shared)


def test_a_spawned_process_works_and_its_helper_is_a_leftover(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS, shim=True) as rig:
        ended = rig.run("spawned")
        assert ended.result == "0"
        assert ended.leftovers  # the resource tracker of multiprocessing stays as long as its parent


def test_an_ended_child_is_no_leftover(shared: Rig) -> None:
    ended = shared.run("leave_ended")
    assert not ended.leftovers
    is_clean(shared)


@pytest.mark.parametrize("task", ["leave_plain", "leave_detached"])
def test_processes_left_are_told_and_nothing_more_is_begun(tmp_path: Path, task: str) -> None:
    with worker(tmp_path, TASKS, shim=True) as rig:
        call, after = rig.call(task), rig.call("ok")
        rig.give(call, after)
        ended = rig.ended(call)
        pid = int(ended.result or "")
        assert ended.end == "done"
        assert alive(pid)
        assert ended.leftovers
        assert rig.recall(after) == 1
        os.kill(pid, signal.SIGKILL)
        rig.daemon.shutdown(1)
        assert rig.rest() == []


DRIFT = {
    "threading.Thread(target=time.sleep, args=(5,), name='left', daemon=True).start()": "left threads running: left",
    "os.chdir('/')": "changed the working directory to /",
    "os.mkdir('x'); os.chdir('x'); os.rmdir('../x')": "removed the working directory",
    "os.environ['X'] = '1'": "changed the environment",
    "del os.environ['PATH']": "changed the environment",
    "os.environ = dict(os.environ)": "changed the environment",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)": "changed what happens at a signal",
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)": "changed what happens at a signal",
    "signal.alarm(30)": "left an alarm behind",
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])": "blocked signals",
    "os.umask(0o777)": "changed the umask",
    "os.nice(1)": "changed the priority of the process",
    "sys.setrecursionlimit(50)": "changed the recursion limit",
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 20_000))": "changed a limit of the process",
    "name = os.fsencode('x') + b'\\xff'; os.mkdir(name); os.chdir(name)": "changed the working directory to",
    "threading.Thread(target=time.sleep, args=(5,), name='\\ud800', daemon=True).start()": "threads running: \\ud800",
}


@pytest.mark.parametrize("code", DRIFT)
def test_a_changed_process_is_replaced(tmp_path: Path, code: str) -> None:
    with worker(tmp_path, TASKS) as rig:
        call, after = rig.call("anything", code=code), rig.call("ok")
        rig.give(call, after)
        ended = rig.ended(call)
        assert ended.end == "done"
        assert DRIFT[code] in (ended.recycle or "")
        assert not ended.leftovers
        assert rig.recall(after) == 1
        assert rig.hang_up() == 0


def test_what_a_job_puts_back_is_no_change(shared: Rig) -> None:
    for code in (
        "os.chdir('/'); os.chdir(sys.path[0])",
        "os.environ['X'] = '1'; del os.environ['X']",
        "h = signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGTERM, h)",
        "t = threading.Thread(target=time.sleep, args=(0.005,)); t.start()",
        "signal.alarm(30); signal.alarm(0)",
    ):
        assert shared.run("anything", code=code).recycle is None
    is_clean(shared)


def test_is_replaced_after_so_many_jobs(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS, max_jobs=3) as rig:
        assert [rig.run("ok").recycle for _ in range(3)] == [None, None, "it has run 3 jobs"]


@pytest.mark.parametrize("pause", ["", "; time.sleep(0.02)"])
def test_is_replaced_when_it_has_grown(tmp_path: Path, pause: str) -> None:
    """A long job is looked at at once, short ones after 50 of them."""
    with worker(tmp_path, TASKS, max_memory_bytes=150_000_000) as rig:
        ended = rig.run("anything", code="globals()['kept'] = sys.modules['jobs'].kept = b'x' * 200_000_000" + pause)
        jobs = 1
        while ended.recycle is None:
            ended = rig.run("ok")
            jobs += 1
        assert "MiB of memory, more than 143" in ended.recycle
        assert jobs <= 50


@pytest.mark.parametrize("per_job", [1, 300])
def test_is_replaced_before_a_job_finds_no_descriptor(tmp_path: Path, per_job: int) -> None:
    tasks = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (400, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
kept = []

@app.task
def leak(count: int):
    kept.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(count))
    print("its log can be opened")
"""
    with worker(tmp_path, tasks) as rig:
        ended = rig.run("leak", count=per_job)
        while ended.recycle is None:
            ended = rig.run("leak", count=per_job)
        assert ended.end == "done"
        assert "left so many files open" in ended.recycle


def test_a_job_that_leaves_no_descriptor_to_look_with_may_have_left_processes(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS, shim=True) as rig:
        code = """
import resource
subprocess.Popen(["sleep", "60"])
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))"""
        ended = rig.run("anything", code=code)
        assert (ended.end, ended.leftovers) == ("done", True)


def test_children_of_the_app_itself_are_no_leftovers(tmp_path: Path) -> None:
    app = "helper = subprocess.Popen(['sleep', '60'])\n"
    with worker(tmp_path, app + "@app.task\ndef pid() -> int: return helper.pid\n", shim=True) as rig:
        ended = rig.run("pid")
        assert not ended.leftovers
        os.kill(int(ended.result or ""), signal.SIGKILL)


def test_a_process_that_the_app_itself_has_detached_is_no_leftover(tmp_path: Path) -> None:
    app = """
def leave_detached() -> int:
    found = subprocess.run(["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
    return int(found.stdout)

helper = leave_detached()

@app.task
def pid() -> int:
    return helper

@app.task
def leave_another() -> int:
    return leave_detached()
"""
    with worker(tmp_path, app, shim=True) as rig:
        ended = rig.run("pid")
        assert not ended.leftovers
        another = rig.run("leave_another")
        assert another.leftovers
        for pid in (ended.result, another.result):
            os.kill(int(pid or ""), signal.SIGKILL)


def test_an_interrupted_job_leaves_a_worker_that_goes_on(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS, shim=True) as rig:
        call = rig.call("runs_a_process")
        rig.give(call)
        until((rig.cwd / "begun").exists, "the process runs")
        stat = Path(f"/proc/{rig.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "it waits for that")
        rig.stop(call)
        ended = rig.ended(call)
        assert (ended.end, ended.leftovers, ended.recycle) == ("stopped", False, None)
        is_clean(rig)
