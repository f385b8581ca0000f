"""The command line as a user runs it: processes, real signals, real terminals, one throw-away home per test."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

COMMAND = [sys.executable, "-m", "semtask"]
LIMIT_S = 30


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def id(self) -> str:
        (line,) = self.out.splitlines()
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", line), line
        return line


class Shell:
    """Runs `semtask` in one home, with an environment that holds nothing of the tester's."""

    def __init__(self, home: Path, **env: str) -> None:
        self.home = home
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith("SEMANTICA_") and k not in {"NO_COLOR", "TERM"}
        }
        self.env = {**clean, "HOME": str(home.parent), "SEMANTICA_HOME": str(home), **env}

    def __call__(
        self, *argv: str | bytes, stdin: str = "", env: Mapping[str, str] | None = None, **options: Any
    ) -> Said:
        done = subprocess.run(
            [*COMMAND, *argv],
            env={**self.env, **(env or {})},
            input=stdin.encode(),
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
            **options,
        )
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextmanager
    def start(self, *argv: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A running command; killed at the end if it still runs."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([*COMMAND, *argv], env=self.env, **{**pipes, **options}) as process:
            try:
                yield process
            finally:
                process.kill()

    def on_terminal(self, *argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """(exit code, what a terminal received) of a command whose three streams are a terminal."""
        with Terminal([*COMMAND, *argv], {**self.env, **(env or {})}) as terminal:
            return terminal.finish()

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self("show", job_id, "--payload", "--json").json)

    def until(self, job_id: str, state: str) -> dict[str, Any]:
        job: dict[str, Any] = eventually(
            lambda: (now := self.job(job_id))["state"] == state and now, what=f"{job_id} is {state}"
        )
        return job

    def daemon_pid(self) -> int:
        return int(self("status", "--json").json["pid"])

    def stop(self) -> None:
        """End the daemon if there is one, and see that nothing of this home is left in the process table."""
        said = self("down", "--now")
        if said.code not in {0, 3}:
            raise AssertionError(said)
        eventually(lambda: not processes_of(self.home), what=f"{processes_of(self.home)} are gone")


class Terminal:
    """A process on a pseudo terminal of 100 x 30."""

    def __init__(self, argv: list[str], env: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

        # The first terminal that a session leader opens becomes its own.
        opener = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", opener, *argv],
            env={"TERM": "xterm", **env},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)
        self.hang_up()

    def hang_up(self) -> None:
        """Close the window. What runs on the terminal gets SIGHUP, and an error when it writes."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def read_until(self, text: str, *, times: int = 1) -> None:
        end = time.monotonic() + LIMIT_S
        while self.received.count(text.encode()) < times:
            assert self._read(end - time.monotonic()), f"{text!r} is not in {self.received!r}"

    def connected(self) -> bool:
        """Whether the process has a socket open."""
        folder = f"/proc/{self.process.pid}/fd"
        with suppress(FileNotFoundError):  # closed while we look
            return any(os.readlink(f"{folder}/{fd}").startswith("socket:") for fd in os.listdir(folder))
        return False

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def finish(self) -> tuple[int, str]:
        end = time.monotonic() + LIMIT_S
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(LIMIT_S), self.received.decode().replace("\r\n", "\n")

    def _read(self, seconds: float) -> bool:
        assert select.select([self._master], [], [], max(0, seconds))[0], f"silent after {self.received!r}"
        with suppress(OSError):  # EIO: nobody holds the other end any more
            more = os.read(self._master, 65536)
            self.received += more
            return more != b""
        return False


def eventually(condition: Callable[[], Any], *, what: str = "", within: float = 20.0) -> Any:
    end = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {within} s: {what}"
        time.sleep(0.02)
    return value


def processes_of(home: Path) -> dict[int, str]:
    """Living processes whose environment names this home, other than clients of the test itself."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"SEMANTICA_HOME={home}".encode() in environ:
            found[int(entry)] = line
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
