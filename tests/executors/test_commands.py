"""What a command gets from its shim, and what its end becomes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from semtask.host import identity
from semtask.launch import shim
from semtask.model import outcome
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.state import EndCause, StopReason
from tests.executors.rig import make_spec, rig

REPORT = """
import json, os, signal, sys
print(json.dumps({
    "env": dict(os.environ), "cwd": os.getcwd(), "umask": os.umask(0), "argv": sys.argv[1:],
    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")),
    "stdin": os.readlink("/proc/self/fd/0"), "sid": os.getsid(0), "pid": os.getpid(),
    "blocked": sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "ignored": [l.split()[1] for l in open("/proc/self/status") if l.startswith("SigIgn")][0],
}))
"""


@pytest.mark.parametrize("code", [0, 1, 42, 127, 255])
def test_an_exit_code_is_the_outcome(tmp_path: Path, code: int) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            assert await r.run(make_spec(["sh", "-c", f"exit {code}"])) == outcome.of_command(code << 8)

    asyncio.run(main())


def test_death_by_a_signal_is_the_outcome(tmp_path: Path) -> None:
    async def main() -> Outcome:
        async with rig(tmp_path) as r:
            return await r.run(make_spec(["sh", "-c", "kill -SEGV $$"]))

    ended = asyncio.run(main())
    assert (ended.end_cause, ended.signal, ended.failure) == (EndCause.SIGNAL, signal.SIGSEGV, FailureClass.HANDLER)


def test_a_command_gets_its_environment_folder_umask_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            spec = make_spec(
                ["env", "-u", "LC_CTYPE", "/usr/bin/python3", "-I", "-c", REPORT, "", "two words", "ü"],
                env={"JOB_VALUE": "a=b\nc", "EMPTY": ""},
                working_dir=str(tmp_path),
                umask=0o27,
            )
            assert (await r.run(spec)).failure is None
            seen = json.loads(r.output())
            seen["env"].pop("LC_CTYPE", None)  # CPython coerces it for itself
            assert seen["env"] == dict(spec.env)
            assert seen["argv"] == ["", "two words", "ü"]
            assert seen["cwd"] == str(tmp_path)
            assert seen["umask"] == 0o27
            assert [fd for fd in seen["fds"] if fd > 2] == []
            assert seen["stdin"] == "/dev/null"
            assert seen["sid"] == seen["pid"]

    asyncio.run(main())


def test_signal_state_is_clean_even_if_that_of_the_daemon_is_not(tmp_path: Path) -> None:
    """The mask is the daemon's; what it ignores is not inherited. Read from the kernel: SigBlk and SigIgn."""

    async def main() -> str:
        async with rig(tmp_path) as r:
            assert (await r.run(make_spec(["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]))).failure is None
            return r.output()

    ignored = [signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGUSR1]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        seen = dict(line.split() for line in asyncio.run(main()).splitlines())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    of_the_c_library = 1 << 31 | 1 << 32
    assert int(seen["SigIgn:"], 16) & ~of_the_c_library == 0
    assert int(seen["SigBlk:"], 16) == 1 << (signal.SIGTERM - 1)


def test_output_goes_to_one_log_or_two(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            script = ["sh", "-c", "echo to stdout; echo to stderr >&2"]
            await r.run(make_spec(script, job_id="merged"))
            await r.run(make_spec(script, job_id="split", split=True))
            assert r.output("merged") == "to stdout\nto stderr\n"
            assert (r.output("split"), r.output("split", stream="err")) == ("to stdout\n", "to stderr\n")

    asyncio.run(main())


def test_the_identity_of_the_command_is_told_while_it_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            running = r.begin(make_spec(["sleep", "60"]))
            pid = await r.command_of()
            assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
            assert r.started["job"] == identity.from_mark(shim.mark(pid))
            r.executor.stop("job", 1, StopReason.CANCEL, 0)
            await running

    asyncio.run(main())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_text("echo hi\n")
    script = tmp_path / "noexec"
    script.write_text("just text\n")
    script.chmod(0o755)
    orphan = tmp_path / "orphan"
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "working_dir", "message"),
    [
        (["no-such-program"], "/", "there is no program 'no-such-program' in PATH='/usr/local/bin:/usr/bin:/bin'"),
        (["/no/such/program"], "/", "the program '/no/such/program' does not exist"),
        (["./plain"], "{files}", "'./plain' may not be executed: permission denied"),
        (["./noexec"], "{files}", "'./noexec' is no program: a script needs a first line"),
        (["./orphan"], "{files}", "'./orphan' exists, but the interpreter"),
        (["./folder"], "{files}", "'./folder' is a folder, not a program"),
        (["true"], "/no/such/folder", "the working directory '/no/such/folder' does not exist"),
        (["true"], "{files}/plain", "plain' cannot be entered: Not a directory"),
        (["true", "x" * 200_000], "/", "too long for Linux"),
        (["true", *["y" * 100_000] * 100], "/", "too long for Linux"),
        ([""], "/", "no program is given"),
        (["true", "a\0b"], "/", "'a\\x00b' cannot be given to a process: it holds a NUL"),
        (["true", "\ud800"], "/", "no text that UTF-8 can hold"),
    ],
)
def test_what_can_never_be_started_fails_for_good_and_says_why(
    files: Path, argv: list[str], working_dir: str, message: str
) -> None:
    async def main() -> Outcome:
        async with rig(files / "home") as r:
            return await r.run(make_spec(argv, working_dir=working_dir.format(files=files)))

    ended = asyncio.run(main())
    assert (ended.end_cause, ended.failure) == (EndCause.SPAWN_FAILED, FailureClass.PERMANENT)
    assert ended.error is not None
    assert message in ended.error
    assert len(ended.error) < 4000


def test_the_program_is_searched_in_the_path_of_the_job(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "mytool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho found $0\n")
    tool.chmod(0o755)

    async def main() -> None:
        async with rig(tmp_path / "home") as r:
            ended = await r.run(make_spec(["mytool"], env={"PATH": f"/nowhere:{tool.parent}:/usr/bin:/bin"}))
            assert ended.failure is None
            assert r.output() == f"found {tool}\n"

    asyncio.run(main())


def test_a_megabyte_of_arguments(tmp_path: Path) -> None:
    words = [f"{i:07}" * 100 for i in range(1500)]

    async def main() -> None:
        async with rig(tmp_path) as r:
            ended = await r.python("import sys; print(len(sys.argv), sum(map(len, sys.argv[1:])))", *words)
            assert ended.failure is None
            assert r.output() == f"{len(words) + 1} {sum(map(len, words))}\n"

    asyncio.run(main())


def test_no_room_for_the_files_of_an_attempt_gives_it_back(tmp_path: Path) -> None:
    """Without descriptors neither folder nor log can be opened: that is not the job's fault."""
    import resource

    async def main() -> Outcome:
        async with rig(tmp_path) as r:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                return await r.run(make_spec(["true"]))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    ended = asyncio.run(main())
    assert ended.failure is FailureClass.INFRA
    assert not ended.executed


def test_many_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            ended = await asyncio.gather(
                *(r.run(make_spec(["sh", "-c", f"exit {i % 7}"], job_id=f"job{i}")) for i in range(60))
            )
            assert [e.exit_code for e in ended] == [i % 7 for i in range(60)]
            for i in range(60):
                r.executor.forget(f"job{i}", 1)
            assert [n for n in os.listdir(r.attempts.path) if not n.startswith(".")] == []

    asyncio.run(main())
