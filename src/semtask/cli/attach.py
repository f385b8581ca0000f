"""`run` in the foreground: the job's output is ours, and so is its end.

Whoever presses Ctrl-C expects what the command alone would do: it ends. So the first one cancels, with the grace of the
job; a second one, from somebody who does not want to wait, kills; a third one leaves, as a process may survive SIGKILL
for as long as a disk hangs. To leave a job running is the exception, and has to be asked for: `--ctrl-c=detach`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from semtask.cli import render
from semtask.cli.arguments import now_ms
from semtask.cli.exit_codes import exit_code
from semtask.cli.failure import Ended
from semtask.cli.follow import Explanation, Sink
from semtask.cli.question import ask, open_terminal
from semtask.cli.streams import BROKEN_PIPE, let_go_of_broken
from semtask.client.address import address_of
from semtask.client.logs import AttemptFollows, LogReader, Piece, follow
from semtask.client.messages import CANCEL, GET_JOB
from semtask.client.patience import send_patiently
from semtask.client.transport import Transport
from semtask.client.waiting import wait_for_ends
from semtask.errors import DaemonUnavailable, SemtaskError
from semtask.model.state import EndCause, State

if TYPE_CHECKING:
    from semtask.cli.session import Session
    from semtask.protocol.jobs import JobView

_CANCEL_S = 3.0
_QUESTION = "stop {name}, detach from it and leave it running, or continue? [s/d/c] "


class _Signal(NamedTuple):
    number: int


class _Output(NamedTuple):
    """A stream has been read to its end, or nobody takes it any more."""

    error: OSError | None


class _End(NamedTuple):
    job: JobView


class _Answer(NamedTuple):
    text: str


class _Lost(NamedTuple):
    error: Exception


_Event = _Signal | _Answer | _Output | _End | _Lost


class Attachment:
    """Threads read the output and wait for the end; the main thread hears of everything, signals included."""

    def __init__(self, session: Session, ctrl_c: str) -> None:
        self._session = session
        self._ctrl_c = ctrl_c  # what the first one does: cancel, detach or ask
        self._asking = False
        self._explanation = Explanation(session)
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._job_id = ""
        self._whole = False
        self._stopped_by: int | None = None
        self._cancelling: list[threading.Thread] = []
        self._unread: threading.Thread | None = None  # cancels the job, as whoever read our output has gone

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM become events. One that was ignored from the start, as under nohup, stays ignored."""
        ours = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        before = [(n, signal.signal(n, self._on_signal)) for n in ours]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self._job_id and not self._events.empty():  # the second one, and still no answer to the enqueue
            self._session.warn("left before the daemon answered; `semtask ls` shows whether the job was stored")
            raise Ended(128 + number)
        self._events.put(_Signal(number))

    def run(self, job_id: str, streams: dict[str, int], *, whole: bool) -> int:
        """Follow the job to its end; `streams` maps its streams to our descriptors. Returns the exit code.

        `whole`: what it has written in attempts that are over by now is shown, too.
        """
        self._job_id = job_id
        self._whole = whole
        emit = self._session.emit if self._session.json else None
        self._sink = Sink(job_id, emit=emit, notice=self._session.notice, beside=max(streams.values()))
        for stream, fd in streams.items():
            self._in_thread(self._read_output, stream, fd, self._sink)
        self._in_thread(self._wait_for_end)
        open_streams = len(streams)
        job: JobView | None = None
        while job is None or open_streams:
            event = self._events.get()
            if isinstance(event, _Signal):
                self._interrupt(event.number)
            elif isinstance(event, _Answer):
                self._answered(event.text)
            elif isinstance(event, _Lost):
                self._give_up(event.error)
            elif isinstance(event, _End):
                job = event.job
            else:
                open_streams -= 1
                if event.error is not None:
                    self._untaken(event.error)
        return self._conclude(job)

    def _untaken(self, error: OSError) -> None:
        """A reader that has gone (`| head`) ends the job, as SIGPIPE would end the command alone.

        A full disk or a terminal that hung up does not: what the job writes is safe in its log.
        """
        if not isinstance(error, BrokenPipeError):
            name = render.short(self._job_id)
            raise SemtaskError(
                f"cannot write the output here: {error.strerror}; job {name} is not affected,"
                f" `semtask logs -f {name}` follows it, `semtask cancel {name}` stops it"
            )
        let_go_of_broken()
        self._unread = self._unread or self._in_thread(self._cancel_unread)

    def _conclude(self, job: JobView) -> int:
        if self._unread is not None:
            self._unread.join(_CANCEL_S)  # it may still have to say so
            return BROKEN_PIPE
        if self._session.json:
            self._session.emit(render.job_json(job))
        else:
            self._notice(render.sentence(job))
        if job.state == State.CANCELLED and self._stopped_by is not None:
            return 128 + self._stopped_by
        return exit_code(job)

    def _notice(self, text: str) -> None:
        if not self._session.quiet:
            with suppress(OSError):  # without a reader it is no news, and no reason not to go on
                self._sink.end_line()
                self._session.warn(text)

    def _interrupt(self, number: int) -> None:
        """SIGTERM comes from a program, which nobody could answer: only Ctrl-C may detach or ask."""
        first = number == signal.SIGINT and not self._cancelling and not self._asking
        if first and self._ctrl_c == "detach":
            self._detach()
        elif not (first and self._ctrl_c == "ask" and self._ask()):
            self._stop(number)

    def _stop(self, number: int) -> None:
        """Cancel and wait; when asked a second time kill; a third time leave."""
        name = render.short(self._job_id)
        if len(self._cancelling) > 1:
            for thread in self._cancelling:
                thread.join(_CANCEL_S)  # a quick third Ctrl-C must not undo the others
            self._leave(f"left {name} before its end; `semtask wait {name}` waits for it", number)
        elif self._cancelling:
            self._notice(f"killing {name}; again does not wait for its end")
            self._cancelling.append(self._in_thread(self._cancel, 0))
        else:
            self._stopped_by = number
            self._notice(f"cancelling {name} and waiting for its end; again kills it")
            self._cancelling.append(self._in_thread(self._cancel, None))

    def _detach(self) -> None:
        name = render.short(self._job_id)
        hint = f"`semtask logs -f {name}` follows it, `semtask cancel {name}` stops it"
        self._leave(f"detached from {name}, which goes on; {hint}", signal.SIGINT)

    def _leave(self, text: str, number: int) -> None:
        with suppress(OSError):  # as in _notice
            self._sink.end_line()
        self._session.warn(text)
        raise Ended(128 + number)

    def _ask(self) -> bool:
        """Whether somebody can be asked; the answer is an event."""
        terminal = open_terminal()
        if terminal is None:
            return False
        self._asking = True
        question = _QUESTION.format(name=render.short(self._job_id))
        thread = threading.Thread(target=lambda: self._events.put(_Answer(ask(terminal, question))), daemon=True)
        thread.start()
        return True

    def _answered(self, text: str) -> None:
        """Without an answer, at the end of the input, it goes on."""
        self._asking = False
        if self._cancelling:  # a second Ctrl-C was the answer
            return
        answer = text.strip().lower()
        if answer in {"s", "stop"}:
            self._stop(signal.SIGINT)
        elif answer in {"d", "detach"}:
            self._detach()
        elif answer not in {"", "c", "continue"} and not self._ask():
            self._stop(signal.SIGINT)

    def _give_up(self, error: Exception) -> None:
        if not isinstance(error, DaemonUnavailable):
            raise error
        name = render.short(self._job_id)
        raise DaemonUnavailable(
            f"{error.message}; job {name} is stored: `semtask up`, then `semtask logs -f {name}` follows it again"
        )

    # --- threads ----------------------------------------------------------------------------------------------------

    def _address(self) -> Any:
        return address_of(self._session.settings)

    def _in_thread(self, work: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(work, *args), daemon=True)
        thread.start()
        return thread

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        try:
            with Transport(self._address(), notice=lambda _: None) as transport:
                work(transport, *args)
        except OSError as error:
            self._events.put(_Output(error))
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            self._events.put(_Lost(error))

    def _cancel(self, transport: Transport, grace_ms: int | None) -> None:
        grace = {} if grace_ms is None else {"grace_ms": grace_ms}
        send_patiently(transport.send, CANCEL(job_id=self._job_id, **grace))

    def _cancel_unread(self, transport: Transport) -> None:
        if send_patiently(transport.send, CANCEL(job_id=self._job_id)).cancelled:  # else it has ended by itself
            self._notice(f"cancelled {render.short(self._job_id)}, as nobody reads its output any more")

    def _read_output(self, transport: Transport, stream: str, fd: int, sink: Sink) -> None:
        reader = LogReader(self._job_id, stream, now_ms, follow=True, whole=self._whole)
        for item in follow(reader.read(), transport.send):
            if isinstance(item, Piece):
                sink.write(stream, fd, item)
            elif isinstance(item, AttemptFollows) and stream == "stdout":
                self._tell_next_attempt(item.job, item.ended)
        self._events.put(_Output(None))

    def _tell_next_attempt(self, job: JobView, ended: int) -> None:
        self._notice(f"{render.short(self._job_id)}: {render.next_attempt(job, ended, now_ms())}")

    def _wait_for_end(self, transport: Transport) -> None:
        (job,) = wait_for_ends(transport.send, [self._job_id], self._explain).jobs
        if job.end_cause == EndCause.SPAWN_FAILED:
            job = send_patiently(transport.send, GET_JOB(job_id=self._job_id, include=["payload"]))
        self._events.put(_End(job))

    def _explain(self, jobs: list[JobView]) -> None:
        with suppress(OSError):  # nobody takes it, as the threads that write output will notice
            self._explanation.give(jobs)
