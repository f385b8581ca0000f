"""Tries to get out of a sandbox, and prints what came of each attempt as JSON: `ok`, or the name of the error.

Standard library only; it is run as the command of a job, with what it shall try as a JSON object.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any


def tried(attempt: Callable[[], Any]) -> Any:
    try:
        said = attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except (ValueError, MemoryError) as error:
        return type(error).__name__
    return "ok" if said is None else said


def read(path: str) -> None:
    with open(path, "rb") as file:
        file.read()


def write(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write("here I was")


def send(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", port))


def connect(family: int, address: Any, protocol: int = 0) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(5)
        sock.connect(address)


def enqueue(path: str) -> Any:
    """The status of HTTP that the daemon answers a job without a sandbox with."""
    body = json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "dev.enqueue.v1",
            "params": {"job_type": "escaped", "execution_mode": "SUBPROCESS", "payload": {"command": "true"}},
        }
    )
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        head = "POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        return int(sock.recv(65536).split()[1])


def own_temporary_file() -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")


def status(field: str) -> str:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{field}:"))


def lift_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def limit(pid: int) -> None:
    """With its own limit, and as it is: whoever can do this can set one that ends it."""
    resource.prlimit(pid, resource.RLIMIT_CPU, resource.prlimit(pid, resource.RLIMIT_CPU))


def open_to_write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def effective_uid(program: str) -> int:
    return int(subprocess.run([program, "-u"], capture_output=True, check=True).stdout)


def main(given: dict[str, Any]) -> None:
    home, daemon = given["home"], given["daemon"]
    attempts: dict[str, Callable[[], Any]] = {
        "read the token": lambda: read(f"{home}/run/token"),
        "read the database": lambda: read(f"{home}/meta.db"),
        "list the home": lambda: os.listdir(home) and None,
        "write outside": lambda: write(f"{given['outside']}/by-{given['level']}"),
        "write inside": lambda: write("by-me"),
        "own temporary file": own_temporary_file,
        "connect by TCP": lambda: connect(socket.AF_INET, ("127.0.0.1", given["port"])),
        "connect by MPTCP": lambda: connect(socket.AF_INET, ("127.0.0.1", given["port"]), protocol=262),
        "send by UDP": lambda: send(given["port"]),
        "connect to an abstract socket": lambda: connect(socket.AF_UNIX, f"\0{given['abstract']}"),
        "signal the daemon": lambda: os.kill(daemon, signal.SIGCONT),
        "end the daemon by a limit": lambda: limit(daemon),
        "switch the machine": lambda: open_to_write("/proc/sys/kernel/core_pattern"),
        "look into the daemon": lambda: read(f"/proc/{daemon}/environ"),
        "lift a limit": lift_limit,
        "no_new_privs": lambda: status("NoNewPrivs"),
        "capabilities": lambda: int(status("CapEff"), 16),
        "enqueue": lambda: enqueue(f"{home}/run/rpc.sock"),
        "user of a set-uid program": lambda: effective_uid("./set-uid"),
    }
    print(json.dumps({name: tried(attempt) for name, attempt in attempts.items()}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
