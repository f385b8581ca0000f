"""The app of test_shared_state.py: jobs that change what the jobs of a process share, and one that looks."""

from __future__ import annotations

import asyncio
import builtins
import decimal
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zoneinfo
from typing import Any

from semtask import Semantica

app = Semantica()
task = app.task(queue="shared")
changes: list[str] = []


decimal.getcontext()  # as an app that has set its own, which all jobs share
used = (subprocess, sqlite3, zoneinfo, asyncio)  # by the code of `change`


@task
def change(code: str) -> int:
    changes.append(code)
    exec(code, globals().copy())
    return os.getpid()


@task
def look() -> dict[str, Any]:
    return {"pid": os.getpid(), "changes": changes, **_state(), **_state_of_modules()}


@task
def work() -> int:
    """What an innocent job may do: use the CPU, write to a pipe that nobody reads, wait."""
    end = time.process_time() + 0.15
    while time.process_time() < end:
        pass
    reader, writer = os.pipe()
    os.close(reader)
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        os.close(writer)
    time.sleep(0.25)
    return os.getpid()


def _state() -> dict[str, Any]:
    root = logging.getLogger()
    facts: dict[str, object] = {
        "cwd": os.getcwd(),
        "environ": sorted(pair for pair in os.environ.items() if pair[0] != "SEMANTICA_ATTEMPT"),
        "umask": _umask(),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "ignored": _line_of_status("SigIgn"),
        "blocked": _line_of_status("SigBlk"),
        "timers": [signal.getitimer(timer) for timer in (0, 1, 2)],
        "ids": (os.getresuid(), os.getresgid(), os.getgroups(), os.getpgid(0) == os.getpid(), os.getsid(0) != 0),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "scheduler": os.sched_getscheduler(0),
        "limits": [resource.getrlimit(kind) for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)],
        "stdin": (os.readlink("/proc/self/fd/0"), sys.stdin.closed),
        "path": sys.path,
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, sys.breakpointhook, threading.excepthook),
        "finders": (sys.meta_path, sys.path_hooks),
        "argv": sys.argv,
        "streams": (type(sys.stdin), type(sys.stdout), type(sys.stderr)),
        "tracing": (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()),
        "sys": (sys.getrecursionlimit(), sys.getswitchinterval(), sys.getdlopenflags(), sys.get_int_max_str_digits()),
        "flags": (sys.dont_write_bytecode, sys.pycache_prefix, vars(sys).get("tracebacklimit"), sys.warnoptions),
        "coroutines": sys.get_coroutine_origin_tracking_depth(),
        "monitoring": _tools(),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks)),
        "builtins": (open, print, input, __import__, len(vars(builtins))),
        "faulthandler": faulthandler.is_enabled(),
        "tracemalloc": tracemalloc.is_tracing(),
        "time": (time.tzname, time.timezone),
        "threads": threading.active_count(),
        "warnings": (len(warnings.filters), warnings.showwarning, warnings.formatwarning),
        "root logger": (root.handlers, root.level, root.disabled, root.filters, logging.root.manager.disable),
        "logging": (logging.raiseExceptions, logging.getLogRecordFactory(), logging.getLoggerClass()),
        "levels": logging.getLevelName(20),
        "socket": socket.getdefaulttimeout(),
    }
    return {name: _without_addresses(repr(value)) for name, value in facts.items()}


_IN_MODULES = {
    "locale": "module.setlocale(module.LC_ALL)",
    "copyreg": "len(module.dispatch_table)",
    "decimal": "module.Decimal(1) / 3, module.DefaultContext.prec",
    "ssl": "module._create_default_https_context.__name__",
    "http.client": "module.HTTPConnection.debuglevel",
    "urllib.request": "module._opener",
    "csv": "module.field_size_limit()",
    "calendar": "module.firstweekday()",
    "gettext": "module.textdomain()",
    "subprocess": "module._USE_VFORK",
    "tempfile": "module.gettempdir(), module.gettempprefix()",
    "multiprocessing": "module.get_start_method()",
    "random": "module.random() == module.Random(1).random()",
    "asyncio.events": "type(module._event_loop_policy), module._get_running_loop()",
}


def _state_of_modules() -> dict[str, Any]:
    """Of those that are loaded: to import all of them would take most of the time of the test."""
    loaded = {name: sys.modules[name] for name in _IN_MODULES if name in sys.modules}
    return {name: repr(eval(_IN_MODULES[name], {"module": module})) for name, module in loaded.items()}


@task
def get_loop() -> str:
    """What old code does, and must find as in a new process."""
    import asyncio
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = asyncio.get_event_loop_policy().get_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return "it runs"


def _without_addresses(text: str) -> str:
    return " ".join(word.partition("0x")[0] for word in text.split(" "))


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _line_of_status(name: str) -> str:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(line for line in file if line.startswith(name))


def _tools() -> list[object]:
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    return [] if monitoring is None else [monitoring.get_tool(number) for number in range(6)]
