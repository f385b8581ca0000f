"""The state that all jobs of a process share, and whether one of them has changed it.

The table goes through the modules of the standard library. It is compared after each job, so reading it must cost
microseconds. A module that a job was the first to import is compared with what it has when nobody has touched it.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found] # without the enums of signal, which cost more than all the rest here
import contextvars
import faulthandler
import functools
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

from semtask.worker.audit import ENVIRONMENT_CHANGES, LIMIT_CHANGES, Audit
from semtask.worker.lazy_state import LazyState

_SIGNALS = tuple(sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})))
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_NO_TIMER = (0.0, 0.0)
_STDIN = 0


class _Trait(NamedTuple):
    """`read` names an attribute of `module`, or a function without arguments if it ends in "()", or is a function that
    takes the module.

    `untouched` is the value in a module that was just imported; `...` where it is not known, then it is what a job has
    left there. `by_imports`: libraries change it while they are imported, and what they have set is to stay.
    """

    module: str
    read: str | Callable[[Any], object]
    name: str
    untouched: object = ...
    by_imports: bool = False


def _traceback_limit(module: Any) -> object:
    return vars(module).get("tracebacklimit")


def _stack_size(module: Any) -> object:
    size = module.stack_size()  # to read it is to set it to its default
    if size:
        module.stack_size(size)
    return size


def _monitoring_tools(module: Any) -> object:
    get_tool = module.monitoring.get_tool  # Python 3.12
    return [get_tool(tool) for tool in range(6)]


_CONTEXT = attrgetter("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "traps")


def _decimal_context(module: Any) -> object:
    """That of the app. To ask for it makes one, which jobs then would share."""
    return _CONTEXT(contextvars.copy_context().run(module.getcontext))


def _default_decimal_context(module: Any) -> object:
    return _CONTEXT(module.DefaultContext)


def _temporary_folder(module: Any) -> object:
    """None also if tempfile has looked for it itself."""
    folder = module.tempdir
    return None if folder is None or folder == _default_temporary_folder(module) else folder


@functools.cache
def _default_temporary_folder(module: Any) -> str:
    return str(module._get_default_tempdir())


def _start_method(module: Any) -> object:
    """None also if multiprocessing has chosen it itself."""
    chosen, default = module._default_context._actual_context, module._default_context._default_context
    return None if chosen is None or chosen is default else chosen._name


def _makes_unverified_connections(module: Any) -> bool:
    return module._create_default_https_context is not module.create_default_context


def _current_loop(module: Any) -> object:
    return getattr(getattr(module._event_loop_policy, "_local", None), "_loop", None)


_TRAITS = (
    _Trait("sys", "path", "sys.path"),
    _Trait("sys", "argv", "sys.argv"),
    _Trait("sys", "stdin", "sys.stdin"),
    _Trait("sys", "stdin.closed", "sys.stdin"),
    _Trait("sys", "warnoptions", "sys.warnoptions"),
    _Trait("sys", "dont_write_bytecode", "sys.dont_write_bytecode"),
    _Trait("sys", "pycache_prefix", "sys.pycache_prefix"),
    _Trait("sys", _traceback_limit, "sys.tracebacklimit"),
    _Trait("sys", "displayhook", "sys.displayhook", by_imports=True),
    _Trait("sys", "excepthook", "sys.excepthook", by_imports=True),
    _Trait("sys", "unraisablehook", "sys.unraisablehook", by_imports=True),
    _Trait("sys", "breakpointhook", "sys.breakpointhook", by_imports=True),
    _Trait("sys", "meta_path", "sys.meta_path", by_imports=True),
    _Trait("sys", "path_hooks", "sys.path_hooks", by_imports=True),
    _Trait("sys", "getrecursionlimit()", "the recursion limit"),
    _Trait("sys", "getswitchinterval()", "the switch interval of threads"),
    _Trait("sys", "getdlopenflags()", "the flags of dlopen"),
    _Trait("sys", "get_int_max_str_digits()", "the most digits of an integer"),
    _Trait("sys", "get_asyncgen_hooks()", "the hooks of asynchronous generators"),
    _Trait("sys", "get_coroutine_origin_tracking_depth()", "the tracking of coroutines"),
    _Trait("sys", "is_stack_trampoline_active()", "the trampoline of perf"),
    _Trait("sys", _monitoring_tools, "the tools of sys.monitoring"),
    _Trait("builtins", "__import__", "the built-in functions"),
    _Trait("builtins", "__build_class__", "the built-in functions"),
    _Trait("builtins", "open", "the built-in functions"),
    _Trait("builtins", "print", "the built-in functions"),
    _Trait("builtins", "input", "the built-in functions"),
    _Trait("builtins", "__dict__.__len__()", "the built-in functions", by_imports=True),
    _Trait("gc", "isenabled()", "whether garbage is collected"),
    _Trait("gc", "get_threshold()", "when garbage is collected"),
    _Trait("gc", "get_debug()", "the debugging of garbage collection"),
    _Trait("gc", "callbacks", "gc.callbacks", by_imports=True),
    _Trait("faulthandler", "is_enabled()", "faulthandler"),
    _Trait("time", "tzname", "the time zone"),
    _Trait("time", "timezone", "the time zone"),
    _Trait("threading", _stack_size, "the stack size of threads"),
    _Trait("threading", "gettrace()", "the trace function of threads"),
    _Trait("threading", "getprofile()", "the profile function of threads"),
    _Trait("threading", "excepthook", "threading.excepthook", by_imports=True),
    _Trait("warnings", "filters", "the filters of warnings", by_imports=True),
    _Trait("warnings", "showwarning", "warnings.showwarning", by_imports=True),
    _Trait("warnings", "formatwarning", "warnings.formatwarning", by_imports=True),
    _Trait("logging", "root.handlers", "the handlers of the root logger"),
    _Trait("logging", "root.filters", "the filters of the root logger"),
    _Trait("logging", "root.level", "the level of the root logger"),
    _Trait("logging", "root.disabled", "the root logger"),
    _Trait("logging", "root.manager.disable", "what logging.disable sets"),
    _Trait("logging", "raiseExceptions", "logging.raiseExceptions"),
    _Trait("logging", "lastResort", "logging.lastResort"),
    _Trait("logging", "_levelToName", "the names of log levels", by_imports=True),
    _Trait("logging", "getLogRecordFactory()", "the factory of log records", by_imports=True),
    _Trait("logging", "getLoggerClass()", "the class of loggers", by_imports=True),
    _Trait("copyreg", "dispatch_table", "copyreg.dispatch_table", by_imports=True),
    _Trait("_tracemalloc", "is_tracing()", "tracemalloc", untouched=False),
    _Trait("socket", "getdefaulttimeout()", "the default timeout of sockets", untouched=None),
    _Trait("decimal", _default_decimal_context, "the default context of decimal"),
    _Trait("decimal", _decimal_context, "the context of decimal"),
    _Trait("ssl", _makes_unverified_connections, "how https checks certificates", untouched=False),
    _Trait("http.client", "HTTPConnection.debuglevel", "the debug level of http.client", untouched=0),
    _Trait("urllib.request", "_opener", "the opener of urllib", untouched=None),
    _Trait("csv", "field_size_limit()", "the field size limit of csv", untouched=128 * 1024),
    _Trait("sqlite3", "adapters", "the adapters of sqlite3", by_imports=True),
    _Trait("sqlite3", "converters", "the converters of sqlite3", by_imports=True),
    _Trait("calendar", "firstweekday()", "the first day of the week", untouched=0),
    _Trait("gettext", "_current_domain", "the domain of gettext", untouched="messages"),
    _Trait("zoneinfo", "TZPATH", "the path of zoneinfo"),
    _Trait("subprocess", "_USE_POSIX_SPAWN", "how subprocess starts programs"),
    _Trait("subprocess", "_USE_VFORK", "how subprocess starts programs", untouched=True),
    _Trait("tempfile", _temporary_folder, "the folder of tempfile", untouched=None),
    _Trait("tempfile", "template", "the template of tempfile", untouched="tmp"),
    _Trait("multiprocessing.context", _start_method, "how multiprocessing starts processes", untouched=None),
    _Trait("asyncio.events", "_event_loop_policy", "the event loop policy", untouched=None),
    _Trait("asyncio.events", _current_loop, "the current event loop", untouched=None),
)

_UNSEEN = ("dump_traceback_later", "enable", "register", "unregister")  # of faulthandler: nothing shows their calls
_SETTERS = (
    *("nice", "setpriority", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "dup2"),
    *("setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid", "setregid", "setresgid", "setgroups"),
    *("initgroups", "setpgid", "setpgrp", "setsid"),
)

_CHANGES = (  # in the order of _process
    "changed what happens at a signal",
    "blocked signals",
    "left an alarm behind",
    "changed the locale",
    "closed the standard input",
)
_RARE_CHANGES = (  # in the order of _rare
    "changed the priority of the process",
    "changed the CPU affinity of the process",
    "changed the scheduler of the process",
    "changed the user of the process",
    "changed the group of the process",
    "changed the groups of the process",
    "changed the process group",
    "changed the standard input",
)


class ProcessState:
    """Made when the app is imported: what is set by then is the app's."""

    def __init__(self, audit: Audit) -> None:
        self._seen: str | None = None  # what a job has done that shows nowhere
        self._setter_called = False
        self._trace, self._profile = sys.gettrace(), sys.getprofile()
        self._folder = os.getcwd()
        self._environ = os.environ
        self._environment = dict(os.environ)
        self._environment_touched = False
        self._limits = _limits()
        self._limits_touched = False
        self._unused_timers = tuple(timer for timer in _TIMERS if signal.getitimer(timer) == _NO_TIMER)
        self._umask = _umask()
        self._lazy = LazyState()
        self._values: dict[_Trait, object] = {}
        for name in _UNSEEN:
            _tell(faulthandler, name, self._note)
        for name in _SETTERS:
            _tell(os, name, self._note_setter)
        _tell(signal, "siginterrupt", self._note_interrupt)
        audit.on(ENVIRONMENT_CHANGES, self._touch_environment)
        audit.on(LIMIT_CHANGES, self._touch_limits)
        self.settle()

    def settle(self) -> None:
        """What the worker itself has set by now is no job's doing."""
        self._process = _process(self._unused_timers)
        self._rare = _rare()
        self._user, self._group = os.getresuid(), os.getresgid()
        self._handlers = dict(zip(_SIGNALS, [*map(_signal.getsignal, _SIGNALS)], strict=True))
        self._values.clear()
        self._learn(by_app=True)
        self._lazy.settle()

    def untrace(self) -> None:
        """The code of a job has ended: a trace function of it must not meet ours."""
        if sys.gettrace() is not self._trace:
            sys.settrace(self._trace)
            self._note("a job left a trace function")
        if sys.getprofile() is not self._profile:
            sys.setprofile(self._profile)
            self._note("a job left a profile function")

    def change(self, *, thorough: bool) -> str | None:
        """What a job has changed, as a sentence; the first that is found. Its timers are stopped: they could kill.

        `thorough`: look also at what is changed by few functions, though none of them was called from Python.
        """
        self._lazy.put_back()
        change = self.glance(thorough=thorough)
        if change is not None:
            self._regain_user()
            self._stop_timers()
        return change

    def glance(self, *, thorough: bool) -> str | None:
        """As `change`, and nothing is put back: jobs run that may be about to do so."""
        return self._seen or self._change_of_process(thorough=thorough) or self._change_of_interpreter()

    # --- the process --------------------------------------------------------------------------------------------------

    def _change_of_process(self, *, thorough: bool) -> str | None:
        try:
            folder = os.getcwd()
        except FileNotFoundError:
            return f"a job has removed the working directory {self._folder}"
        if folder != self._folder:
            return f"a job changed the working directory to {folder}"
        if os.environ is not self._environ or (self._environment_touched and self._environment_differs()):
            return "a job changed the environment"
        now = _process(self._unused_timers)
        if now != self._process:
            return _difference(_CHANGES, now, self._process)
        if thorough or self._setter_called:
            self._setter_called = False
            rare = _rare()
            if rare != self._rare:
                return _difference(_RARE_CHANGES, rare, self._rare)
        if os.umask(self._umask) != self._umask:
            return "a job changed the umask"
        if self._limits_touched and self._limits_differ():
            return "a job changed a limit of the process"
        return None

    def _regain_user(self) -> None:
        """As far as it is allowed: the end of the job is still to be written down, in files of the user."""
        with suppress(OSError):
            os.setresuid(*self._user)
            os.setresgid(*self._group)

    def _note(self, what: str, *_args: object) -> None:
        self._seen = self._seen or what

    def _note_interrupt(self, what: str, number: int, *_args: object) -> None:
        """For a handler of the worker or the app; the one of a job goes with it."""
        handler = _signal.getsignal(number)
        if callable(handler) and handler is self._handlers.get(number):
            self._note(what)

    def _note_setter(self, *_args: object) -> None:
        self._setter_called = True

    def _touch_environment(self) -> None:
        self._environment_touched = True

    def _touch_limits(self) -> None:
        self._limits_touched = True

    def _environment_differs(self) -> bool:
        self._environment_touched = dict(os.environ) != self._environment
        return self._environment_touched

    def _limits_differ(self) -> bool:
        self._limits_touched = _limits() != self._limits
        return self._limits_touched

    def _stop_timers(self) -> None:
        for timer in self._unused_timers:
            signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()

    # --- the interpreter ----------------------------------------------------------------------------------------------

    def _learn(self, *, by_app: bool = False) -> str | None:
        """Take modules into the comparison that were imported since. What a job has changed in one of them, if any."""
        self._imported = len(sys.modules)
        change = None
        for trait in _TRAITS:
            module = sys.modules.get(trait.module)
            if trait in self._values or module is None:
                continue
            try:
                value = _frozen(_read(trait, module))
            except AttributeError:  # not in this version of Python
                continue
            if by_app or trait.untouched is ... or value == trait.untouched:
                self._values[trait] = value
            else:
                change = f"a job changed {trait.name}"
        self._prepare()
        return change

    def _prepare(self) -> None:
        """Few calls that read all: of each module its attributes are read by one."""
        attributes: dict[str, list[_Trait]] = {}
        self._reads: list[Callable[[], object]] = []
        self._expected: list[object] = []
        for trait, value in self._values.items():
            module = sys.modules[trait.module]
            if isinstance(trait.read, str) and not trait.read.endswith("()"):
                attributes.setdefault(trait.module, []).append(trait)
                continue
            self._expected.append(value)
            self._reads.append(
                attrgetter(trait.read[:-2])(module)
                if isinstance(trait.read, str)
                else functools.partial(trait.read, module)
            )
        for name, traits in attributes.items():
            values = [self._values[trait] for trait in traits]
            self._expected.append(tuple(values) if len(values) > 1 else values[0])
            self._reads.append(functools.partial(attrgetter(*[str(trait.read) for trait in traits]), sys.modules[name]))

    def _change_of_interpreter(self) -> str | None:
        imports = len(sys.modules) != self._imported
        try:
            if [read() for read in self._reads] == self._expected and not imports:
                return None
        except Exception:  # noqa: BLE001, S110 - it reads what a job has put there; the slow way finds out what it is
            pass
        for trait, before in self._values.items():
            if not _equals(trait, before):
                if not (imports and trait.by_imports):
                    return f"a job changed {trait.name}"
                self._values[trait] = _frozen(_read(trait, sys.modules[trait.module]))
        return self._learn() if imports else None


def _read(trait: _Trait, module: Any) -> object:
    if not isinstance(trait.read, str):
        return trait.read(module)
    if trait.read.endswith("()"):
        return attrgetter(trait.read[:-2])(module)()
    return attrgetter(trait.read)(module)


def _equals(trait: _Trait, before: object) -> bool:
    try:
        return bool(_read(trait, sys.modules[trait.module]) == before)
    except Exception:  # noqa: BLE001 - whatever the job has put there
        return False


def _frozen(value: object) -> object:
    """A copy that compares equal until the value is changed."""
    if isinstance(value, tuple):
        return value if hasattr(value, "_fields") else tuple(map(_frozen, value))
    if isinstance(value, list):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _tell(module: Any, name: str, note: Callable[..., None]) -> None:
    """Let calls of a function be noted, with their arguments."""
    function = getattr(module, name)
    what = f"a job called {module.__name__}.{name}"

    @functools.wraps(function)
    def noted(*args: Any, **options: Any) -> Any:
        note(what, *args)
        return function(*args, **options)

    setattr(module, name, noted)


def _process(timers: Sequence[int]) -> tuple[object, ...]:
    return (
        [*map(_signal.getsignal, _SIGNALS)],
        _signal.pthread_sigmask(_signal.SIG_BLOCK, ()),
        [*map(_signal.getitimer, timers)],
        _locale.setlocale(_locale.LC_ALL, None),
        _is_open(_STDIN),
    )


def _rare() -> tuple[object, ...]:
    return (
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getaffinity(0),
        os.sched_getscheduler(0),
        os.getresuid(),
        os.getresgid(),
        os.getgroups(),
        os.getpgid(0),
        _file(_STDIN),
    )


def _difference(changes: Sequence[str], now: Sequence[object], before: Sequence[object]) -> str:
    return f"a job {next(what for what, a, b in zip(changes, now, before, strict=True) if a != b)}"


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True


def _file(fd: int) -> object:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _limits() -> object:
    kinds = {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
    return {kind: resource.getrlimit(kind) for kind in kinds}


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
