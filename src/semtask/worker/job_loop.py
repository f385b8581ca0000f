"""What async jobs make on the event loop, and that it ends with them.

A task, a timer, a watched descriptor, a server or a process belongs to the job whose code makes it: that of the
context, or of the coroutine that runs. Connections stay: they run no code of their own, and pools of them serve others.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import math
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

from semtask.tasks.context import JobContext, whose
from semtask.worker.coroutines import Marked
from semtask.worker.mark import NOBODY, Mark
from semtask.worker.threads import ThreadWork

_POLL_S = 0.01
_ROUND_S = 0.5
_MAX_NAMED = 10
_SERVING = ("create_server", "create_unix_server", "create_datagram_endpoint")
_STARTING = ("subprocess_exec", "subprocess_shell", "connect_read_pipe", "connect_write_pipe")
_LOOPS_OWN = ("asyncio", "_asyncio", "uvloop")
_GENERATOR_ENDS = ("async_generator_athrow", "async_generator_asend")

Task = asyncio.Task[Any]


class Belongings:
    """What one job has made. `until` is the time of the loop at which what is left is ended by force."""

    def __init__(self, label: bytes) -> None:
        self.label = label
        self.tasks: set[Task] = set()
        self.things: list[Any] = []  # servers and transports
        self.until = math.inf


class JobLoop:
    """`loop` with its methods replaced: all that jobs call goes through here."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        mark: Mark,
        threads: ThreadWork,
        warn: Callable[[JobContext, str], None],
    ) -> None:
        self._loop = loop
        self._warn = warn
        self._mark = mark
        self._threads = threads
        self._outside = contextvars.copy_context()
        self._of: dict[JobContext, Belongings] = {}
        self._by_label: dict[bytes, JobContext] = {}
        self._watched: dict[tuple[str, int], JobContext] = {}
        loop.set_task_factory(self._make_task)  # type: ignore[arg-type]
        for name in ("call_soon", "call_soon_threadsafe"):
            setattr(loop, name, functools.partial(self._soon, getattr(loop, name)))
        for name in ("call_later", "call_at"):
            setattr(loop, name, functools.partial(self._in_time, getattr(loop, name)))
        for kind in ("reader", "writer"):
            for verb, watch in (("add", self._watch), ("remove", self._unwatch)):
                name = f"{verb}_{kind}"
                setattr(loop, name, functools.partial(watch, getattr(loop, name), kind))
        for name in (*_SERVING, *_STARTING):
            setattr(loop, name, functools.partial(self._make, getattr(loop, name)))

    # --- whose it is --------------------------------------------------------------------------------------------------

    def begin(self, job: JobContext, label: bytes) -> Belongings:
        self._by_label[label] = job
        belongings = self._of[job] = Belongings(label)
        return belongings

    def forget(self, job: JobContext) -> None:
        self._threads.forget(job)
        del self._by_label[self._of.pop(job).label]

    def _maker(self, context: contextvars.Context | None = None) -> JobContext | None:
        """The job whose code runs now, also if that runs in a context that knows no job."""
        job = whose()
        if job is ... and context is not None:
            job = whose(context)
        return self._by_label.get(self._mark.now) if job is ... else job

    # --- what jobs call -----------------------------------------------------------------------------------------------

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> Task:
        if isinstance(coroutine, Marked):  # the job itself
            return asyncio.Task(coroutine, loop=loop, **options)
        context = options.pop("context", None)
        job = self._maker(context)
        belongings = None if job is None else self._of.get(job)
        if context is None:
            context = contextvars.copy_context()
        if asyncio.iscoroutine(coroutine):
            label = NOBODY if belongings is None else belongings.label
            coroutine = Marked(coroutine, self._mark, label, context)
        task: Task = asyncio.Task(coroutine, loop=loop, context=context, **options)
        if belongings is not None:
            belongings.tasks.add(task)
            task.add_done_callback(belongings.tasks.discard, context=self._outside)
        elif job is not None:  # it has ended
            task.cancel()
        return task

    def _soon(
        self,
        call: Callable[..., asyncio.Handle],
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        job = whose(context)
        if isinstance(job, JobContext) and callback is not _unless_ended and not _is_loops_own(callback):
            return call(_unless_ended, job, callback, *args, context=context)
        return call(callback, *args, context=context)

    def _in_time(
        self,
        call: Callable[..., asyncio.TimerHandle],
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        # Of these two methods one calls the other: in asyncio the first, in uvloop the second.
        if callback is not _unless_ended and not _is_loops_own(callback):
            job = self._maker(context)
            if job is not None:
                return call(when, _unless_ended, job, callback, *args, context=context)
        return call(when, callback, *args, context=context)

    def _watch(self, call: Callable[..., Any], kind: str, fd: Any, callback: Callable[..., object], *args: Any) -> Any:
        watched = call(fd, callback, *args)
        job = self._maker()
        if job is None:
            self._watched.pop((kind, _number(fd)), None)
        else:
            self._watched[kind, _number(fd)] = job
        return watched

    def _unwatch(self, call: Callable[..., Any], kind: str, fd: Any) -> Any:
        self._watched.pop((kind, _number(fd)), None)
        return call(fd)

    async def _make(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        made = await call(*args, **options)
        job = self._maker()
        belongings = None if job is None else self._of.get(job)
        if belongings is not None:
            belongings.things.append(made[0] if isinstance(made, tuple) else made)
        return made

    # --- the end of a job ---------------------------------------------------------------------------------------------

    def has_left(self, job: JobContext) -> bool:
        """Whether anything of the job goes on though its code has ended."""
        return bool(self._tasks(job) or self._others(job))

    def _others(self, job: JobContext) -> list[str]:
        """In words, what goes on besides tasks."""
        return [
            *(f"{kind} of descriptor {fd}" for (kind, fd), owner in self._watched.items() if owner is job),
            *(_shown(thing) for thing in self._of[job].things if _is_open(thing)),
            *self._threads.left_by(job),
        ]

    def limit(self, job: JobContext, until: float) -> None:
        """What the job leaves is ended by force at this time of the loop, if not before."""
        belongings = self._of[job]
        belongings.until = min(belongings.until, until)

    async def end(self, job: JobContext) -> list[str]:
        """Cancel and close what the job has left, say so in its log, and wait for it; what could not be ended.

        Code that cleans up makes tasks, too: what is made meanwhile is cancelled in the next round.
        """
        things = self._of[job].things
        cancelled: set[Task] = set()
        next_round = -math.inf
        while True:
            if self._loop.time() >= next_round:
                next_round = self._loop.time() + _ROUND_S
                self._end_round(job, cancelled)
            for _ in range(2):  # for what is cancelled, and for callbacks of what has ended
                await asyncio.sleep(0)
            if not (self._tasks(job) or self._threads.left_by(job) or any(map(_is_running, things))):
                return []
            if self._loop.time() >= self._of[job].until:
                break
            await asyncio.sleep(_POLL_S)
        processes = [_shown(thing) for thing in things if _is_running(thing)]
        return [*self._force(job), *self._threads.left_by(job), *processes]

    def _end_round(self, job: JobContext, cancelled: set[Task]) -> None:
        tasks = [task for task in self._tasks(job) if task not in cancelled and not _ends_generator(task)]
        others = [] if cancelled else self._others(job)
        if tasks or others:
            left = name_all([*(f"task {_name(task)}" for task in tasks), *others])
            self._warn(job, f"the job has ended and left these, which are ended now: {left}")
        for (kind, fd), owner in list(self._watched.items()):
            if owner is job:
                getattr(self._loop, f"remove_{kind}")(fd)
        for thing in self._of[job].things:
            _close(thing)
        for task in tasks:
            task.cancel("its job has ended")
        cancelled.update(tasks)

    def _force(self, job: JobContext) -> list[str]:
        """Let no code of its tasks run any more."""
        tasks = self._tasks(job)
        names = [f"task {_name(task)}" for task in tasks]
        for task in tasks:
            coroutine = task.get_coro()
            if isinstance(coroutine, Marked):
                coroutine.end()
            task.cancel("its job has ended")
        return names

    def _tasks(self, job: JobContext) -> list[Task]:
        return [task for task in (*self._of[job].tasks, *self._strays(job)) if not task.done()]

    def _strays(self, job: JobContext) -> Iterator[Task]:
        """Its tasks that were made past the event loop: `asyncio.Task(...)`."""
        for task in asyncio.all_tasks(self._loop):
            if not isinstance(task.get_coro(), Marked) and whose(_context_of(task)) is job:
                yield task


def name_all(what: list[str]) -> str:
    """For a line of a log."""
    more = len(what) - _MAX_NAMED
    return ", ".join(what[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _unless_ended(job: JobContext, callback: Callable[..., object], *args: Any) -> None:
    if not job.ended:
        callback(*args)


def _is_loops_own(callback: Callable[..., object]) -> bool:
    """Whether it is a step of a task or a transport: that is for whom they belong to."""
    owner = getattr(callback, "__self__", None)
    if owner is None:
        while isinstance(callback, functools.partial):
            callback = callback.func
        owner = getattr(callback, "__self__", None)
    module = getattr(callback if owner is None else type(owner), "__module__", None) or ""
    return module.partition(".")[0] in _LOOPS_OWN or isinstance(owner, asyncio.Task)


def _context_of(task: Task) -> contextvars.Context | None:
    get_context = getattr(task, "get_context", None)  # Python 3.12
    if get_context is not None:
        return get_context()  # type: ignore[no-any-return]
    return next((found for found in gc.get_referents(task) if isinstance(found, contextvars.Context)), None)


def _name(task: Task) -> str:
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", type(coroutine).__qualname__)
    return f"{name} ({task.get_name()})"


def _ends_generator(task: Task) -> bool:
    """Whether the loop itself made it, for an asynchronous generator that nobody iterates to its end."""
    coroutine: Any = task.get_coro()
    inner = coroutine.inner if isinstance(coroutine, Marked) else coroutine
    return type(inner).__name__ in _GENERATOR_ENDS


def _number(fd: Any) -> int:
    return fd if isinstance(fd, int) else int(fd.fileno())


def _is_running(thing: Any) -> bool:
    """Whether it is a process that has not ended."""
    get_returncode = getattr(thing, "get_returncode", None)
    return get_returncode is not None and get_returncode() is None


def _is_open(thing: Any) -> bool:
    if hasattr(thing, "get_returncode"):
        return _is_running(thing)
    is_closing = getattr(thing, "is_closing", None)
    return not is_closing() if is_closing is not None else bool(thing.is_serving())


def _close(thing: Any) -> None:
    if _is_running(thing):
        with suppress(ProcessLookupError):
            thing.kill()
    elif _is_open(thing):
        thing.close()


def _shown(thing: Any) -> str:
    if hasattr(thing, "get_returncode"):
        return f"process {thing.get_pid()}"
    return "server" if hasattr(thing, "is_serving") else "transport"
