"""Descriptors 1 and 2 inside of a task: what it leads elsewhere stays there until its end, and no longer."""

from __future__ import annotations

import io
import json
from pathlib import Path

from tests.worker.rig import until, worker

TASKS = """
import ctypes, faulthandler, io, json, logging, tempfile
libc = ctypes.CDLL(None)
handler = logging.StreamHandler(sys.stderr)

def c_print(text):
    libc.puts(text.encode())
    libc.fflush(None)

def started_processes(name):
    subprocess.run(["sh", "-c", f"echo {name} run; echo {name} err >&2"])
    os.system(f"echo {name} system")
    pid = os.fork()
    if pid == 0:
        print(name, "fork", flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    pid = os.posix_spawn("/bin/echo", ["echo", name, "spawn"], {})
    os.waitpid(pid, 0)

def everything(name):
    print(name, "print", flush=True)
    sys.stdout.buffer.write(f"{name} buffer\\n".encode())
    os.write(1, f"{name} write\\n".encode())
    c_print(f"{name} c")
    started_processes(name)
    print(name, "after", flush=True)

@app.task
def to_a_file(first: bool) -> None:
    if first:
        started_processes("before")
    saved = os.dup(1), os.dup(2)
    with open("captured", "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        everything("in")
        print("in stderr", file=sys.stderr, flush=True)
        handler.emit(logging.LogRecord("x", 20, "", 0, "in handler", None, None))
    os.dup2(saved[0], 1), os.dup2(saved[1], 2)
    os.close(saved[0]), os.close(saved[1])
    everything("out")

@app.task
def leaves_them(how: str) -> None:
    if how == "file":
        os.dup2(os.open("left", os.O_WRONLY | os.O_CREAT), 1)
    elif how == "closed":
        os.close(1), os.close(2)
        print("closed")
        os.system("true")
    elif how == "pipe":
        read, write = os.pipe()
        os.dup2(write, 1), os.dup2(write, 2)
        os.set_inheritable(1, False)
    elif how == "reopened":
        os.close(1)
        global kept
        kept = open("reopened", "w")  # a file gets the number
        print("to the file", flush=True)

@app.task
async def leaves_them_async() -> None:
    os.dup2(os.open("left", os.O_WRONLY | os.O_CREAT), 1)
    print("to the log of the job")

@app.task
async def where_async() -> str:
    return os.readlink("/proc/self/fd/1")

@app.task
def plain() -> list:
    everything("plain")
    return [len(os.read(0, 10)), os.get_inheritable(1), os.get_inheritable(2)]

@app.task
def wurlitzer() -> str:
    read, write = os.pipe()
    saved = os.dup(sys.__stdout__.fileno())
    libc.fflush(None)
    os.dup2(write, 1)
    c_print("from C")
    os.system("echo from a process")
    os.dup2(saved, 1)
    os.close(write), os.close(saved)
    return os.read(read, 1000).decode()

@app.task
def capfd() -> list:
    from _pytest.capture import FDCapture, MultiCapture, SysCapture
    capture = MultiCapture(in_=None, out=FDCapture(1), err=FDCapture(2))
    capture.start_capturing()
    print("printed")
    started_processes("in")
    c_print("c")
    out, err = capture.readouterr()
    capture.stop_capturing()
    print("after")
    return [out, err]

@app.task
def redirected() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        print("caught")
        os.system("echo from a process")
    print("out")
    return text.getvalue()

@app.task
def dumped() -> None:
    faulthandler.dump_traceback(file=sys.stderr)

@app.task
def parts() -> None:
    text = "größer €𝄞" * 20000
    libc.write(1, text.encode(), len(text.encode()))
    libc.write(1, b"\\n", 1)
    for byte in "ä€𝄞".encode() + b"\\xff\\n":
        sys.stdout.buffer.write(bytes([byte]))
    sys.stdout.buffer.write("ä".encode()[:1])
    print("x")
    sys.stdout.buffer.write("€".encode()[:2])

@app.task
def attributes() -> list:
    return [name for stream in (sys.stdout, sys.stderr) for name in dir(io.TextIOWrapper)
            if not name.startswith("_") and not hasattr(stream, name) and name not in {"newlines"}]

@app.task
def uses() -> dict:
    out = sys.stdout
    seen = {name: getattr(out, name) for name in
        ("encoding", "errors", "line_buffering", "write_through", "newlines", "name", "mode", "closed")}
    seen["calls"] = [out.fileno(), out.isatty(), out.readable(), out.writable(), out.seekable(), sys.stderr.fileno()]
    seen["is"] = [isinstance(out, io.TextIOWrapper), isinstance(out.buffer, io.BufferedIOBase),
        out.buffer.raw.fileno(), out.buffer.mode, out.buffer.isatty(), out.buffer.closed]
    for name in ("read", "readline", "seek", "tell", "truncate"):
        try:
            getattr(out, name)(*([0] if name == "seek" else []))
        except OSError as error:
            seen[name] = type(error).__name__
    out.writelines(["writelines\\n"])
    with out:
        print("in with")
    print("with is over")
    out.reconfigure(encoding="latin-1", errors="strict", line_buffering=False, write_through=False, newline="")
    seen["reconfigured"] = [out.encoding, out.errors, out.line_buffering, out.write_through]
    print("ü")
    wrapped = io.TextIOWrapper(out.detach(), encoding="utf-8", line_buffering=True)
    print("detached ü", file=wrapped)
    sys.stdout = wrapped
    print("replaced")
    open(1, "w", closefd=False).write("fd 1\\n")
    return seen
"""

ALL = ["print", "buffer", "write", "c", "run", "err", "system", "fork", "spawn", "after"]


def texts(lines: list[str]) -> list[str]:
    """Without the level of those that Python wrote."""
    return [line.removeprefix("OUT ").removeprefix("ERR ") for line in lines]


def whole(path: Path) -> list[str]:
    """The lines of a job's log; those of processes have no time."""
    return [line.partition(" ")[2] if line[:2] == "20" else line for line in path.read_text().splitlines()]


def test_what_a_task_leads_to_a_file_goes_there_and_nowhere_else(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        for first in (False, True):
            ended = rig.run("to_a_file", first=first)
            assert ended.exception is None
            captured = (rig.cwd / "captured").read_text().splitlines()
            assert captured == [*(f"in {what}" for what in ALL), "in stderr", "in handler"]
            lines = texts(whole(rig.log_path(ended)))
            assert sorted(line for line in lines if line.startswith("out ")) == sorted(f"out {what}" for what in ALL)
            assert [line for line in lines if line.startswith("in ")] == []


def test_what_a_task_leaves_is_put_right_for_the_next_one(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        for how in ("file", "closed", "pipe", "reopened"):
            assert rig.run("leaves_them", how=how).exception is None
            ended = rig.run("plain")
            assert ended.result == "[0,true,true]", how
            lines = texts(whole(rig.log_path(ended)))
            assert sorted(lines) == sorted(f"plain {what}" for what in ALL), how
        assert (rig.cwd / "left").read_text() == ""
        assert (rig.cwd / "reopened").read_text() == "to the file\n"


def test_async_jobs_share_descriptors_until_none_of_them_runs(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        assert texts(rig.log(rig.run("leaves_them_async"))) == ["to the log of the job"]
        assert rig.run("where_async").result == f'"{rig.own_log}"'


def test_what_the_app_leads_elsewhere_in_its_import_ends_with_that(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS + "os.dup2(os.open('left', os.O_WRONLY | os.O_CREAT), 1)\n") as rig:
        lines = texts(whole(rig.log_path(rig.run("plain"))))
        assert sorted(lines) == sorted(f"plain {what}" for what in ALL)


def test_tools_that_capture_descriptors(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        for _ in range(2):
            assert rig.run("wurlitzer").result == '"from C\\nfrom a process\\n"'
            ended = rig.run("capfd")
            inside = "printed\\nin run\\nin system\\nin fork\\nin spawn\\nc\\n"
            assert ended.result == f'["{inside}","in err\\n"]'
            assert texts(rig.log(ended)) == ["after"]
            ended = rig.run("redirected")
            assert ended.result == '"caught\\n"'
            assert texts(whole(rig.log_path(ended))) == ["from a process", "out"]
        ended = rig.run("dumped")
        assert any("in dumped" in line for line in rig.log_path(ended).read_text().splitlines())


def test_characters_are_not_cut(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        lines = texts(rig.log(rig.run("parts")))
        assert lines[:3] == ["ä€𝄞\\xff", "\\xc3x", "\\xe2\\x82"]
        assert "".join(lines[3:]) == "größer €𝄞" * 20000  # it came by descriptor 1; a long line is more than one here


def test_the_streams_have_what_a_text_stream_has(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        assert rig.run("attributes").result == "[]"
        for _ in range(2):  # the second job finds the streams as the first one did
            ended = rig.run("uses")
            assert ended.exception is None, ended.exception
            assert ended.result is not None
            seen = json.loads(ended.result)
            assert seen == {
                "encoding": "utf-8",
                "errors": "backslashreplace",
                "line_buffering": True,
                "write_through": True,
                "newlines": None,
                "name": "<stdout>",
                "mode": "w",
                "closed": False,
                "calls": [1, False, False, True, False, 2],
                "is": [True, True, 1, "wb", False, False],
                **dict.fromkeys(("read", "readline", "seek", "tell", "truncate"), io.UnsupportedOperation.__name__),
                "reconfigured": ["latin-1", "strict", False, False],
            }
            lines = texts(rig.log(ended))
            assert lines == ["writelines", "in with", "with is over", "ü", "detached ü", "replaced", "fd 1"]


def test_the_position_of_the_log_where_a_job_began_outlives_it(tmp_path: Path) -> None:
    with worker(tmp_path, TASKS) as rig:
        rig.run("plain")
        size = rig.own_log.stat().st_size
        assert size > 0
        rig.run("plain")
        until(lambda: int.from_bytes(rig.mark.read_bytes()[8:], "little") == size, "the second one's position")
