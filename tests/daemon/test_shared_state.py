"""A job changes what the jobs of its process share: the next one finds it as it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from semtask.worker.process_state import _CHANGES, _RARE_CHANGES, _TRAITS
from tests.daemon.rig import Daemon, alive, eventually, running_daemon
from tests.daemon.test_isolation import write_apps

MODULE = "tests.daemon.shared_state"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("shared") / "home"
    write_apps(home, f"{MODULE}:app")
    with running_daemon(home, SEMANTICA_MAX_PROCESSES="2") as running:
        running.rpc("queues.configure.v1", queue="async", concurrency=100)
        yield running


def run(daemon: Daemon, task: str, **arguments: Any) -> tuple[str, Any]:
    """Run a job to its success; its id and its result."""
    answer = daemon.rpc(
        "dev.enqueue.v1", job_type=f"{MODULE}:{task}", execution_mode="IN_PROCESS", payload=arguments, max_attempts=1
    )
    job_id = str(answer["job_id"])
    [job] = daemon.wait(job_id)
    assert job["state"] == "DONE", (arguments, job)
    return job_id, daemon.job(job_id, "result")["result"]


def enqueue(daemon: Daemon, jobs: list[tuple[str, dict[str, Any]]]) -> list[str]:
    sent = [
        {"job_type": f"{MODULE}:{task}", "execution_mode": "IN_PROCESS", "payload": arguments, "max_attempts": 1}
        for task, arguments in jobs
    ]
    return [str(one["job_id"]) for one in daemon.rpc("dev.enqueue_many.v1", jobs=sent)["jobs"]]


class Row(NamedTuple):
    """A change, and what the log of the job says of it."""

    code: str
    reason: str
    needs_root: bool = False
    since: tuple[int, int] = (3, 11)


_NOTHING = "def nothing(*args): pass\n"
ROWS = [
    # the process
    Row("os.chdir('/')", "changed the working directory to /"),
    Row("os.environ['X'] = '1'", "changed the environment"),
    Row("os.putenv('X', '1'); os.environ = dict(os.environ)", "changed the environment"),
    Row("os.umask(0o123)", "changed the umask"),
    Row("signal.signal(signal.SIGHUP, signal.SIG_IGN)", "changed what happens at a signal"),
    Row("signal.signal(signal.SIGRTMIN, signal.SIG_IGN)", "changed what happens at a signal"),
    Row("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])", "blocked signals"),
    Row("signal.siginterrupt(signal.SIGUSR1, False)", "called signal.siginterrupt"),
    Row("os.nice(1)", "changed the priority of the process"),
    Row(
        "os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 1)",
        "changed the priority of the process",
    ),
    Row("os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])", "changed the CPU affinity of the process"),
    Row("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "changed the scheduler of the process"),
    Row("resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))", "changed a limit"),
    Row("os.setresuid(-1, 65534, -1)", "changed the user of the process", needs_root=True),
    Row("os.setresgid(-1, 65534, -1)", "changed the group of the process", needs_root=True),
    Row("os.setgroups([1, 2, 3])", "changed the groups of the process", needs_root=True),
    Row("os.close(0)", "closed the standard input"),
    Row("os.dup2(os.open('/dev/zero', os.O_RDONLY), 0)", "changed the standard input"),
    Row("time.sleep(0.001); os.close(0); os.open('/dev/zero', os.O_RDONLY)", "changed the standard input"),
    Row("sys.stdin.close()", "sys.stdin"),
    Row("sys.stdin = None", "sys.stdin"),
    Row("os.environ['TZ'] = 'Asia/Tokyo'; time.tzset(); del os.environ['TZ']", "changed the time zone"),
    Row(
        "import locale; locale.setlocale(locale.LC_ALL, 'C' if locale.setlocale(locale.LC_ALL) != 'C' else 'C.UTF-8')",
        "changed the locale",
    ),
    Row("threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "left threads running"),
    # what would kill or disturb the next one
    Row("signal.setitimer(signal.ITIMER_PROF, 0.05)", "left an alarm behind"),
    Row("signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)", "left an alarm behind"),
    Row("signal.setitimer(signal.ITIMER_REAL, 0.1)", "left an alarm behind"),
    Row("signal.alarm(1)", "left an alarm behind"),
    Row("signal.signal(signal.SIGPIPE, signal.SIG_DFL)", "changed what happens at a signal"),
    Row("faulthandler.dump_traceback_later(0.2, exit=True)", "called faulthandler.dump_traceback_later"),
    # the interpreter
    Row("sys.path.insert(0, '/')", "sys.path"),
    Row("sys.path = sys.path[1:]", "sys.path"),
    Row("sys.argv.append('x')", "sys.argv"),
    Row("sys.settrace(lambda *args: None)", "left a trace function"),
    Row("sys.setprofile(lambda *args: None)", "left a profile function"),
    Row("threading.settrace(lambda *args: None)", "the trace function of threads"),
    Row("threading.setprofile(lambda *args: None)", "the profile function of threads"),
    Row("sys.monitoring.use_tool_id(1, 'x')", "the tools of sys.monitoring", since=(3, 12)),
    Row("sys.excepthook = print", "sys.excepthook"),
    Row("sys.unraisablehook = print", "sys.unraisablehook"),
    Row("sys.displayhook = print", "sys.displayhook"),
    Row("sys.breakpointhook = print", "sys.breakpointhook"),
    Row("threading.excepthook = print", "threading.excepthook"),
    Row("sys.meta_path.pop()", "sys.meta_path"),
    Row("sys.path_hooks.insert(0, print)", "sys.path_hooks"),
    Row("sys.dont_write_bytecode = not sys.dont_write_bytecode", "sys.dont_write_bytecode"),
    Row("sys.pycache_prefix = '/nowhere'", "sys.pycache_prefix"),
    Row("sys.tracebacklimit = 0", "sys.tracebacklimit"),
    Row("sys.warnoptions.append('error')", "sys.warnoptions"),
    Row("sys.setrecursionlimit(1234)", "the recursion limit"),
    Row("sys.setswitchinterval(0.5)", "the switch interval of threads"),
    Row("sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)", "the flags of dlopen"),
    Row("sys.set_int_max_str_digits(0)", "the most digits of an integer"),
    Row("sys.set_asyncgen_hooks(firstiter=print)", "the hooks of asynchronous generators"),
    Row("sys.set_coroutine_origin_tracking_depth(5)", "the tracking of coroutines"),
    Row("gc.disable()", "whether garbage is collected"),
    Row("gc.set_threshold(1)", "when garbage is collected"),
    Row("gc.set_debug(gc.DEBUG_UNCOLLECTABLE)", "the debugging of garbage collection"),
    Row(_NOTHING + "gc.callbacks.append(nothing)", "gc.callbacks"),
    Row("builtins.open = None", "the built-in functions"),
    Row("del builtins.input", "the built-in functions"),
    Row("builtins.mine = 1", "the built-in functions"),
    Row("faulthandler.disable()", "faulthandler"),
    Row("faulthandler.enable(open(os.devnull))", "faulthandler"),
    Row("faulthandler.unregister(signal.SIGUSR2)", "called faulthandler.unregister"),
    Row("faulthandler.register(signal.SIGHUP)", "called faulthandler.register"),
    Row("tracemalloc.start()", "tracemalloc"),
    Row("threading.stack_size(1 << 20)", "the stack size of threads"),
    # modules of the standard library
    Row("socket.setdefaulttimeout(1)", "the default timeout of sockets"),
    Row("logging.disable()", "what logging.disable sets"),
    Row("logging.getLogger().addHandler(logging.NullHandler())", "the handlers of the root logger"),
    Row("logging.getLogger().handlers.clear()", "the handlers of the root logger"),
    Row("logging.getLogger().setLevel(1)", "the level of the root logger"),
    Row("logging.getLogger().disabled = True", "the root logger"),
    Row("logging.getLogger().addFilter(print)", "the filters of the root logger"),
    Row("logging.addLevelName(20, 'X')", "the names of log levels"),
    Row("logging.setLogRecordFactory(print)", "the factory of log records"),
    Row("logging.setLoggerClass(type('L', (logging.Logger,), {}))", "the class of loggers"),
    Row("logging.captureWarnings(False)", "warnings.showwarning"),
    Row("logging.raiseExceptions = False", "logging.raiseExceptions"),
    Row("logging.lastResort = None", "logging.lastResort"),
    Row("warnings.simplefilter('error')", "the filters of warnings"),
    Row("warnings.formatwarning = print", "warnings.formatwarning"),
    Row("import decimal; decimal.DefaultContext.prec = 5", "the default context of decimal"),
    Row("import copyreg; copyreg.pickle(type(print), print)", "copyreg.dispatch_table"),
    Row(
        "import ssl; ssl._create_default_https_context = ssl._create_unverified_context",
        "how https checks certificates",
    ),
    Row("import http.client; http.client.HTTPConnection.debuglevel = 1", "the debug level of http.client"),
    Row("import csv; csv.field_size_limit(10**9)", "the field size limit of csv"),
    Row("import calendar; calendar.setfirstweekday(3)", "the first day of the week"),
    Row("import gettext; gettext.textdomain('x')", "the domain of gettext"),
    Row("import subprocess; subprocess._USE_VFORK = False", "how subprocess starts programs"),
    Row("subprocess._USE_POSIX_SPAWN = not subprocess._USE_POSIX_SPAWN", "how subprocess starts programs"),
    Row("zoneinfo.reset_tzpath(['/nowhere'])", "the path of zoneinfo"),
    Row("sqlite3.register_adapter(complex, str)", "the adapters of sqlite3"),
    Row("sqlite3.register_converter('x', str)", "the converters of sqlite3"),
    Row("decimal.getcontext().prec = 5", "the context of decimal"),  # made when the app was imported
    Row("asyncio.set_event_loop_policy(object.__new__(asyncio.AbstractEventLoopPolicy))", "the event loop policy"),
    Row("import tempfile; tempfile.tempdir = '/nowhere'", "the folder of tempfile"),
    Row("import tempfile; tempfile.template = 'x'", "the template of tempfile"),
    Row("import multiprocessing; multiprocessing.set_start_method('spawn')", "how multiprocessing starts processes"),
    Row(
        "import asyncio; P = type('P', (asyncio.DefaultEventLoopPolicy,), {}); asyncio.set_event_loop_policy(P())",
        "event loop policy",
    ),
]
PUT_BACK = [
    "import asyncio; asyncio.run(asyncio.sleep(0))",
    "import asyncio; loop = asyncio.new_event_loop(); asyncio.set_event_loop(loop); loop.close()",
    "import urllib.request; urllib.request.install_opener(urllib.request.build_opener())",
    "import tempfile; tempfile.gettempdir()",
    "import multiprocessing; multiprocessing.get_context()",
    "import random; random.seed(1)",
    "sys.stdout = sys.stderr = None",
]
# Each of them is put back, or needs what a test cannot have.
_WITHOUT_ROW = {"changed the process group", "the current event loop", "the opener of urllib", "the trampoline of perf"}
_DANGEROUS = {"left an alarm behind", "called faulthandler.dump_traceback_later"}


def rows() -> list[Row]:
    rows = [row for row in ROWS if sys.version_info >= row.since and (os.geteuid() == 0 or not row.needs_root)]
    has_one_cpu = len(os.sched_getaffinity(0)) == 1
    return [row for row in rows if not (has_one_cpu and "affinity" in row.reason)]


def test_each_line_of_the_table_is_tried() -> None:
    tried = " ".join(row.reason for row in ROWS)
    assert [trait.name for trait in _TRAITS if trait.name not in _WITHOUT_ROW and trait.name not in tried] == []
    assert [what for what in (*_CHANGES, *_RARE_CHANGES) if what not in _WITHOUT_ROW and what not in tried] == []


def test_what_a_job_changes_is_gone_for_the_next_ones(daemon: Daemon) -> None:
    """Behind each change come jobs that look at everything, and that do what an innocent job may do."""
    tried = rows()
    jobs = []
    for row in tried:
        jobs += [("change", {"code": row.code}), ("look", {})]
        if row.reason in _DANGEROUS:
            jobs += [("work", {})]
    _, before = run(daemon, "look")
    ids = enqueue(daemon, jobs)
    ended = [daemon.wait(job_id, timeout_ms=60_000)[0] for job_id in ids]
    failed = [(jobs[at], job["error"]) for at, job in enumerate(ended) if job["state"] != "DONE"]
    assert failed == []
    results = [daemon.job(job_id, "result")["result"] for job_id in ids]
    changes = [(job_id, pid) for job_id, pid, (task, _) in zip(ids, results, jobs, strict=True) if task == "change"]
    changed = {pid for _, pid in changes}
    wrong: list[object] = []
    for row, (job_id, _) in zip(tried, changes, strict=True):
        log = daemon.log(job_id)
        if row.reason not in log or "its process is replaced" not in log:
            wrong.append((row.code, log))
    for (task, _), seen in zip(jobs, results, strict=True):
        if task == "look":
            assert seen["changes"] == []
            wrong += [(name, value) for name, value in seen.items() if differs(before, name, value)]
    assert wrong == [], "\n".join(map(str, wrong[:5]))
    assert len(changed) == len(changes)
    eventually(lambda: not any(map(alive, changed)), what="the changed processes have gone")


def differs(before: dict[str, Any], name: str, value: Any) -> bool:
    return name not in {"pid", "changes"} and before.get(name, value) != value


@pytest.mark.parametrize("code", PUT_BACK)
def test_what_only_using_a_module_changes_is_put_back(daemon: Daemon, code: str) -> None:
    """In the same process, where the job that looks must come to be."""
    _, before = run(daemon, "look")
    pid = 0
    while pid != before["pid"]:
        job_id, pid = run(daemon, "change", code=code)
    after = before
    while after is before or after["pid"] != pid:
        assert alive(pid)
        _, after = run(daemon, "look")
    assert daemon.log(job_id) == ""
    assert [name for name, value in after.items() if differs(before, name, value)] == []
    if "asyncio" in code:
        assert run(daemon, "get_loop")[1] == "it runs"
