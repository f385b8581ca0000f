"""Whatever a job writes is in its own log, line by line."""

from __future__ import annotations

import re
from pathlib import Path

from semtask.executors.output import LogFiles
from tests.worker.rig import until, worker

TASKS = """
import logging, warnings, ctypes, multiprocessing, concurrent.futures

@app.task
def quiet() -> None: ...

@app.task
def speak() -> None:
    print("printed")
    print("to stderr", file=sys.stderr)
    logging.info("logged %s", "text")
    logging.getLogger("some.library").debug("not shown")
    current_job().log.error("two\\nlines")
    warnings.warn("a warning")
    sys.stdout.buffer.write(b"bytes \\xff\\n")
    print("dünn \\ud800")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("it failed")
    print("no newline", end="")

@app.task
def partial() -> None:
    print("a", end="")
    print("b", "c", sep="", end="", flush=True)
    time.sleep(0.01)
    print("d\\n\\ne", end="")
    print()
    sys.stderr.write("x" * 70000)

@app.task
def low_level() -> None:
    print("python before")
    os.write(1, b"from fd 1\\n")
    ctypes.CDLL(None).puts(b"from C")
    os.write(2, b"from fd 2\\n")
    ctypes.CDLL(None).printf(b"no newline")

@app.task
def children(gate: str) -> None:
    print("before")
    until = f"touch {gate}.began; until test -e {gate}; do sleep 0.01; done"
    subprocess.run(["sh", "-c", f"echo out; echo err >&2; {until}"])
    os.system("echo system")
    print("after")

@app.task
def forks() -> None:
    print("parent")
    print("unfinished", end="")
    process = multiprocessing.get_context("fork").Process(target=print, args=("child",), kwargs={"end": ""})
    process.start()
    process.join()
    pid = os.fork()
    if pid == 0:
        os.closerange(3, 300)
        file = open("data", "w")
        print("forked")
        file.write("only this")
        file.close()
        os._exit(0)
    os.waitpid(pid, 0)
    pid = os.fork()
    if pid == 0:
        files = [open("data") for _ in range(20)]  # they take the numbers of what is closed in a child
        pid = os.fork()
        if pid == 0:
            print("forked twice", *{file.read() for file in files}, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        os._exit(0)
    os.waitpid(pid, 0)

@app.task
def threads() -> None:
    def work(n):
        for i in range(200):
            print(n, end=" ")
            print("line", i)
    print("half a line", end=" ")
    other = threading.Thread(target=print, args=("between",)); other.start(); other.join()
    print("and its rest")
    left = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in left: thread.start()
    for thread in left: thread.join()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pool.submit(print, "from a pool").result()
    def fails(): raise ValueError("in a thread")
    thread = threading.Thread(target=fails); thread.start(); thread.join()

@app.task
def spoils() -> None:
    sys.stdout.close()
    sys.stdout = open(os.devnull, "w")
    print("gone")

@app.task
async def talk(name: str) -> None:
    def in_thread(how):
        print(name, how)
    for i in range(50):
        print(name, i)
        logging.info("%s logs", name)
        await asyncio.sleep(0)
    await asyncio.to_thread(in_thread, "to_thread")
    await asyncio.get_running_loop().run_in_executor(None, in_thread, "executor")
    thread = threading.Thread(target=in_thread, args=("thread",))
    thread.start()
    await asyncio.create_task(asyncio.sleep(0.01))
    thread.join()
    async def child(): print(name, "child")
    await asyncio.gather(child(), child())
"""


def test_streams_logging_and_warnings(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        ended = rig.run("speak")
        lines = rig.log(ended)
        assert lines[:5] == ["OUT printed", "ERR to stderr", "INFO logged text", "ERROR two", "ERROR lines"]
        assert "UserWarning: a warning" in lines[5]
        assert lines[5].startswith("WARNING ")
        rest = lines[lines.index("OUT bytes \\xff") + 1 :]
        assert rest[:3] == ["OUT dünn \\ud800", "ERROR it failed", "ERROR Traceback (most recent call last):"]
        assert rest[-2:] == ["ERROR ZeroDivisionError: division by zero", "OUT no newline"]
        path = rig.log_path(ended)
        raw = path.read_text()
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ ", line) for line in raw.splitlines())
        assert ended.log_bytes == len(raw.encode())
        assert path == LogFiles(rig.logs).path(ended.job_id, ended.claim_no)
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert rig.own_log.read_text() == ""


def test_a_job_that_writes_nothing_has_no_log(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        ended = rig.run("quiet")
        assert ended.log_bytes is None
        assert not rig.logs.exists()


def test_a_log_of_a_lost_claim_is_written_anew(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        call = rig.call("partial")
        rig.log_path(call).parent.mkdir(parents=True)
        rig.log_path(call).write_text("old")
        rig.give(call)
        rig.ended(call)
        assert "old" not in rig.log_path(call).read_text()


def test_lines_are_written_when_they_end(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        assert rig.log(rig.run("partial")) == ["OUT abcd", "OUT ", "OUT e", "ERR " + "x" * 70000]


def test_what_c_code_writes_belongs_to_the_job(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        ended = rig.run("low_level")
        assert rig.log(ended) == ["OUT python before", "OUT from fd 1", "OUT from C", "OUT from fd 2", "OUT no newline"]
        assert rig.run("quiet").log_bytes is None


def test_what_a_started_process_writes_streams_into_the_log(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        gate = rig.path("gate")
        call = rig.call("children", gate=str(gate))
        rig.give(call)
        until(rig.path("gate.began").exists, "the process runs")
        live = rig.log_path(call).read_text().splitlines()
        assert live[0].endswith("OUT before")
        assert live[1:] == ["out", "err"]
        gate.touch()
        rig.ended(call)
        after = rig.log_path(call).read_text().splitlines()
        assert after[3] == "system"
        assert after[4].endswith("OUT after")
        following = rig.run("low_level")
        assert rig.log(following)[-1] == "OUT no newline"
        assert "from fd 1" in rig.own_log.read_text()


def test_forked_children_write_to_the_log_and_to_nothing_else(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        assert rig.log(rig.run("forks")) == [
            "OUT parent",
            "OUT child",
            "OUT forked",
            "OUT forked twice only this",
            "OUT unfinished",
        ]
        assert (rig.cwd / "data").read_text() == "only this"


def test_threads_of_a_job_write_whole_lines_to_its_log(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        lines = rig.log(rig.run("threads"))
        assert {line for line in lines[2:] if "line" in line and line.startswith("OUT")} == {
            f"OUT {n} line {i}" for n in range(4) for i in range(200)
        }
        assert lines[:2] == ["OUT between", "OUT half a line and its rest"]
        assert "OUT from a pool" in lines
        assert lines[-1] == "ERR ValueError: in a thread"
        assert rig.own_log.read_text() == ""


def test_a_job_that_closes_or_replaces_its_streams_spoils_no_other(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        assert rig.run("spoils").recycle is None
        assert rig.log(rig.run("partial"))[0] == "OUT abcd"


def test_threads_that_the_app_had_before_write_to_the_workers_log(tmp_path: Path) -> None:
    background = """
    go = threading.Event()
    done = threading.Event()
    def background():
        go.wait()
        print("from the background")
        done.set()
    threading.Thread(target=background, daemon=True).start()

    @app.task
    def rouse() -> None:
        go.set()
        done.wait()
    """
    with worker(tmp_path, background) as rig:
        ended = rig.run("rouse")
        assert ended.recycle is None
        assert "from the background\n" in rig.own_log.read_text()


def test_async_jobs_side_by_side_write_to_their_own_logs(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        calls = [rig.call("talk", name=name) for name in ("one", "two", "three")]
        rig.give(*calls)
        for call, name in zip(calls, ("one", "two", "three"), strict=True):
            assert rig.ended(call).recycle is None
            lines = rig.log(call)
            assert [line for line in lines if re.fullmatch(rf"OUT {name} \d+", line)] == [
                f"OUT {name} {i}" for i in range(50)
            ]
            assert lines.count(f"INFO {name} logs") == 50
            assert sorted(lines[100:]) == sorted(
                f"OUT {name} {how}" for how in ("to_thread", "executor", "thread", "child", "child")
            )
        assert rig.own_log.read_text() == ""


def test_an_app_that_has_set_up_logging_keeps_it(tmp_path: Path) -> None:
    setup = "import logging\nlogging.basicConfig(format='%(levelname)s own %(message)s', level=logging.DEBUG)\n"
    with worker(tmp_path, setup + "@app.task\ndef log() -> None: logging.debug('text')\n") as rig:
        assert rig.log(rig.run("log")) == ["ERR DEBUG own text"]
