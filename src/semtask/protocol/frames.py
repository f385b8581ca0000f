"""What the daemon and a worker say to each other: msgpack frames over a socketpair. Sans-IO.

A frame is a length (4 bytes, big endian) and a tagged message. The worker speaks first (Hello or Failed) once it has
been told what it is for (Setup).

    Setup     daemon -> worker   which app to import, where logs and artifacts go, limits
    Run       daemon -> worker   jobs to run; for a sync worker in this order, one after the other
    Stop      daemon -> worker   end this job; a sync worker is also sent SIGUSR1, which makes it read this immediately
    Recalled  daemon -> worker   these jobs were taken back before they began
    Hello     worker -> daemon   the app is imported; its tasks
    Failed    worker -> daemon   the app cannot be imported; the worker exits
    Ended     worker -> daemon   a job has ended; the only way to succeed
    Progress  worker -> daemon   how far a job is
    Blocked   worker -> daemon   a job waits for another one, or goes on

**Tokens.** Beside the socket there is an eventfd in semaphore mode. The daemon adds one for each job that it sends; a
sync worker must take one before it begins the next job. To recall jobs the daemon takes tokens itself, without asking:
the k tokens that it gets are those of the last k jobs, and no worker begins a job without one, be it stuck in C code.
The tokens of a Run are there before its frame is sent, and a Recalled is sent whole before any later token is there. So
a worker that has taken a token reads all frames that have come, and then begins the first call that was not recalled;
without a token it waits for frames and tokens alike. The eventfd is non-blocking. It serves no purpose for async calls,
which get no tokens.

Losing the socket means losing the daemon: nothing more is begun. An end of file is judged by the daemon only after
everything before it was read, so a result that was sent counts however the worker died.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import msgspec

PROTOCOL = 1
MAX_FRAME_BYTES = 128 * 1024 * 1024
WORKER_SOCKET_FD = 3
WORKER_TOKENS_FD = 4
WORKER_STREAM_FD = 5


class ProtocolError(Exception):
    """The other side sent what is no frame of this protocol."""


class _Frame(msgspec.Struct, kw_only=True, tag=True, omit_defaults=True):
    pass


# --- daemon -> worker ---


class Setup(_Frame):
    """`app` is `module:attribute`, imported from the working directory of the worker and its sys.path.

    Results up to `inline_result_bytes` travel in Ended, larger ones up to `max_result_bytes` as an artifact. An
    artifact of a task has at most `max_artifact_bytes`, those of a job have at most `max_job_artifact_bytes`, and they
    are at most `max_job_artifacts`.

    A worker asks to be replaced after `max_jobs`, or above `max_memory_bytes` of resident memory; 0 is no limit.
    `shim_pid` is its parent, to which orphans of a job come. The log of a claim is
    `<logs_dir>/<last two characters of job_id>/<job_id>.<claim_no>.log`, the stdout of executors.output.LogFiles.

    `mark_path` is a file of 16 bytes, 0 at first: two numbers, little endian. The first says which call its code runs
    at this moment: the count of the calls that it was sent, from 1; 0 is none. So a death tells which async job brought
    it. The second is the size that the worker's own log had when its last sync job began: what follows is that job's.

    `log_path` is the worker's own log: what is written to its descriptors 1 and 2 comes there.

    With `has_stream` descriptor 5 is a socket to the shim, which leads output to the logs of jobs: see worker.stream.
    """

    protocol: int
    app: str
    worker: str
    shim_pid: int
    logs_dir: str
    artifacts_dir: str
    mark_path: str
    log_path: str
    inline_result_bytes: int
    max_result_bytes: int
    max_artifact_bytes: int
    max_job_artifact_bytes: int
    max_job_artifacts: int
    max_jobs: int
    max_memory_bytes: int
    has_stream: bool = False


class Call(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One claimed job. `payload` is the JSON text of its arguments; `attempt` counts executions from 1. A job with a
    `source` other than that of the task ends without being run, as `permanent`: another project enqueued it.
    """

    job_id: str
    claim_no: int
    task: str
    payload: str
    attempt: int
    max_attempts: int
    queue: str = "default"
    timeout_ms: int | None = None
    deadline: int | None = None
    traceparent: str | None = None
    tag: str | None = None
    subject_key: str | None = None
    source: str | None = None


class Run(_Frame):
    calls: list[Call]


class Stop(_Frame):
    """`reason` is a model.state.StopReason. After `grace_ms` the worker is killed."""

    job_id: str
    claim_no: int
    reason: str
    grace_ms: int


class Recalled(_Frame):
    jobs: list[tuple[str, int]]


# --- worker -> daemon ---


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task as its app registers it. `parameters` is the JSON schema of the payload, `defaults` what the SDK sends
    for options of the task (names as in dev.enqueue.v1). `concurrency`: how many of its jobs may run simultaneously.
    `source`: the file or the project that defines it, see tasks.source.
    """

    name: str
    is_async: bool
    parameters: dict[str, Any]
    returns: dict[str, Any] | None = None
    doc: str | None = None
    defaults: dict[str, Any] = {}
    concurrency: int | None = None
    source: str | None = None


class Hello(_Frame):
    """`refused` are tasks that cannot be offered, by name, and why: such as an annotation without a JSON form."""

    protocol: int
    version: str
    python: str
    pid: int
    tasks: list[TaskInfo]
    refused: dict[str, str] = {}


class Failed(_Frame):
    """`error` is one line for people; `traceback` is for those who ask."""

    error: str
    traceback: str = ""


class ExceptionInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An exception of a task. `message` is its str(), or says that it has none; `traceback` is that of Python."""

    type: str
    message: str
    traceback: str = ""
    cause: ExceptionInfo | None = None


class ArtifactInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that a job keeps. `path` is relative to the folder of artifacts; `sha256` in hexadecimal digits."""

    name: str
    size: int
    sha256: str
    path: str
    is_result: bool = False


class ProgressInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    done: float
    total: float | None = None
    text: str | None = None


End: TypeAlias = Literal[
    "done",  # `result` or an artifact with is_result
    "failed",  # an exception: HANDLER
    "permanent",  # Permanent was raised, or the result cannot be stored
    "bad_payload",  # the arguments do not fit the function
    "retry",  # Retry was raised
    "snooze",  # Snooze was raised: run again in `delay_ms`, at no cost
    "cancel",  # Cancel was raised
    "stopped",  # it ended because it was told to stop
]


class Ended(_Frame):
    """How a job ended. `ran_us` is its duration.

    `leftovers`: the job left processes (sync), or there are processes while no job needs them (async). `recycle` says
    why the worker must be replaced. A worker that sets one of them begins nothing more; an async one does so only when
    it has no job left, so all that it was sent and has not ended was not begun. `retire` says why an async worker must
    be replaced while it has other jobs: it is to be sent no more, and what it was sent it brings to its end.
    """

    job_id: str
    claim_no: int
    end: End
    ran_us: int
    result: str | None = None
    exception: ExceptionInfo | None = None
    delay_ms: int | None = None
    artifacts: list[ArtifactInfo] = []
    progress: ProgressInfo | None = None
    log_bytes: int | None = None
    leftovers: bool = False
    recycle: str | None = None
    retire: str | None = None


class Progress(_Frame):
    job_id: str
    claim_no: int
    progress: ProgressInfo


class Blocked(_Frame):
    """`on` are the jobs waited for; empty: the job goes on."""

    job_id: str
    claim_no: int
    on: list[str] = []


ToWorker: TypeAlias = Setup | Run | Stop | Recalled
ToDaemon: TypeAlias = Hello | Failed | Ended | Progress | Blocked

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_daemon: msgspec.msgpack.Decoder[ToDaemon] = msgspec.msgpack.Decoder(ToDaemon)


def encode(message: ToWorker | ToDaemon) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Cuts a stream of bytes into frames. Raises ProtocolError for what is none."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def torn(self) -> bool:
        """Whether part of a frame waits for its rest."""
        return bool(self._buffer)

    def bodies(self) -> Iterator[bytes]:
        start, size = 0, len(self._buffer)
        try:
            while size - start >= 4:
                length = int.from_bytes(self._buffer[start : start + 4], "big")
                if length > MAX_FRAME_BYTES:
                    raise ProtocolError(f"a frame of {length} bytes is announced; the limit is {MAX_FRAME_BYTES}")
                if size - start - 4 < length:
                    return
                body = bytes(self._buffer[start + 4 : start + 4 + length])
                start += 4 + length
                yield body
        finally:
            del self._buffer[:start]


def to_worker(body: bytes) -> ToWorker:
    try:
        return _to_worker.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the daemon sent what this worker does not understand: {error}") from error


def to_daemon(body: bytes) -> ToDaemon:
    try:
        return _to_daemon.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the worker sent what is no frame: {error}") from error
