"""What the generated pages say about words that have a meaning and no place for it in the code.

Every table here is compared with the code by `generate.py`: a word that is new, or gone, stops it.
"""

from semtask import errors
from semtask.model.outcome import FailureClass
from semtask.model.state import EndCause, Event, State, StopReason

STATES = {
    State.SCHEDULED: "waits for a time: its `schedule`, the pause before a retry, or what `raise Snooze` said",
    State.QUEUED: "may run; a slot, its subject, a pause, a busy machine or a missing app may keep it waiting",
    State.RUNNING: "claimed by the daemon; also while it is being stopped, until every process of it is gone",
    State.DONE: "succeeded: a command exited with 0, a task returned a result",
    State.FAILED: "did not succeed, and no attempt follows; `end_cause` says why",
    State.CANCELLED: "you cancelled it, or the task did `raise Cancel`",
    State.SUPERSEDED: "a newer job of its subject took its place",
    State.SKIPPED_TTL: "was not started within its `ttl_ms`, so it never ran",
    State.SKIPPED_DEADLINE: "its `deadline` passed while it waited",
}

EVENTS = {
    Event.BECOME_DUE: "its time has come",
    Event.CLAIM: "a slot is free and it is its turn",
    Event.SUCCEED: "the attempt succeeded",
    Event.FAIL: "the attempt failed, and no other one follows",
    Event.RETRY: "the attempt failed, and another one follows after a pause; or the task asked to run again later",
    Event.REQUEUE: "the daemon died or was stopped under it, and it is to run again",
    Event.GIVE_BACK: "it was claimed, and nothing of it was executed; or its worker was ended because of another job",
    Event.CANCEL: "you cancelled it, or the task asked for it",
    Event.SUPERSEDE: "a newer job of its subject takes its place",
    Event.EXPIRE: "its `ttl_ms` is over",
    Event.MISS_DEADLINE: "its `deadline` has passed",
}

STOP_REASONS = {
    StopReason.INTERRUPTED: (
        "the daemon died under it",
        "as `on_interrupt` says: QUEUED again, or FAILED with `interrupted`",
    ),
    StopReason.SHUTDOWN: (
        "the daemon was stopped and its grace is over",
        "as `interrupted`; but an attempt that ended by itself first keeps its own end",
    ),
    StopReason.TIMEOUT: (
        "the attempt ran longer than `timeout_ms`",
        "SCHEDULED for a retry if one is left, else FAILED with `timeout`",
    ),
    StopReason.LOG_LIMIT: (
        "its log is over `log_max_bytes`, and this file system cannot cut it",
        "FAILED with `log_limit`, no retry",
    ),
    StopReason.DEADLINE: ("its `deadline` passed", "FAILED with `deadline`, no retry"),
    StopReason.SUPERSEDED: (
        "a newer job of its subject came with `on_duplicate=supersede_running`",
        "SUPERSEDED",
    ),
    StopReason.CANCEL: ("you cancelled it", "CANCELLED"),
}

END_CAUSES = {
    EndCause.SUCCESS: "it succeeded; of an attempt also: the task asked to run again later",
    EndCause.EXCEPTION: "a Python task raised an exception; see `exception`",
    EndCause.EXIT_CODE: "the command exited with another code than 0; see `exit_code`",
    EndCause.SIGNAL: "a signal that was not ours ended the command; see `signal`",
    EndCause.OOM: "it needed more memory than a limit of ours allows (such limits are not served yet)",
    EndCause.TIMEOUT: "an attempt ran longer than `timeout_ms` and was ended",
    EndCause.DEADLINE: "the `deadline` passed, before it ran or while it ran",
    EndCause.TTL: "it was not started within `ttl_ms`",
    EndCause.CANCELLED: "it was cancelled, by you or by itself",
    EndCause.SUPERSEDED: "a newer job of its subject took its place",
    EndCause.WORKER_CRASH: "the worker of the task died, or the process that watched the command was lost",
    EndCause.INTERRUPTED: "the daemon was lost under it, or its worker to another job, and it may not run again",
    EndCause.QUARANTINED: "it crashed 3 times, or was interrupted more than 20 times; it is not tried again",
    EndCause.SPAWN_FAILED: "the program cannot be started: missing, not executable, arguments too long",
    EndCause.BAD_PAYLOAD: "the payload cannot be used: it does not fit the arguments of the task as it is now",
    EndCause.DEPENDENCY_FAILED: "a job it depends on failed (dependencies are not served yet)",
    EndCause.LOG_LIMIT: "its log could not be kept below `log_max_bytes`",
}

WAITING = {
    "scheduled": "its time has not come",
    "retry": "an attempt failed; the next one follows at `run_at`",
    "subject_busy": "another job of its subject runs",
    "policy": "the policy for commands cannot be used: no command is started until it is fixed",
    "throttled": "the machine is busy, and this is background work",
    "queue_paused": "its queue is paused: `semtask resume QUEUE`",
    "queue_full": "its queue runs as many jobs as it may: `semtask queues set QUEUE --concurrency N`",
    "machine_full": "`max_processes` commands and sync tasks run, or the machine had no room to start another process",
    "no_app": "it is a Python task that no app offers: `semtask up --app PACKAGE.MODULE:APP`",
    "app_starting": "an app is being imported for the first time; it may offer the task",
    "app_failed": "the app of the task cannot be imported, or offers what another app offers: `semtask apps`",
    "task_full": "as many jobs of its task run as the task allows with `concurrency`",
    "no_worker": "all workers of its app are busy; another one is being started",
    "behind_others": "its turn comes next, or others go before it",
    "stopping_daemon": "the daemon is stopping; it runs after the next start",
    "other_job": "it runs, and waits for another job; meanwhile it counts in no limit",
    "deadlock": "it waits for a job that waits for it, or for itself; cancel one of those that are named",
}

FAILURES = {
    FailureClass.PERMANENT: (
        "trying again cannot help: no such program, a bad payload, a result that is no JSON, `raise Permanent`",
        "FAILED immediately",
        "`failures`",
    ),
    FailureClass.HANDLER: (
        "the job itself failed: an exception, an exit code other than 0, a signal that was not ours, a timeout",
        "a retry after a pause, or when the task said with `raise Retry`, while `max_attempts` allows it",
        "`failures`",
    ),
    FailureClass.CRASH: (
        "the worker of the task died, or the process that watched the command was lost",
        "FAILED; with `retry_on_crash` a retry after a pause, and at the third crash FAILED with `quarantined`",
        "`crashes`",
    ),
    FailureClass.INTERRUPTED: (
        "the daemon died or was stopped under it",
        "with `on_interrupt=requeue` QUEUED again immediately, 20 times at most; with `fail` FAILED",
        "`interruptions`",
    ),
    FailureClass.INFRA: (
        "the machine had no room to start it: processes, descriptors, memory, disk",
        "given back; the daemon starts nothing for 1 s, doubling to 30 s",
        "none",
    ),
    FailureClass.NEVER_RAN: (
        "proved not to have been executed: the daemon or the worker died before, or a busy worker had no turn for it",
        "given back",
        "none",
    ),
    FailureClass.DISPLACED: (
        "the worker of the task was ended because of another job that it ran at the same time",
        "given back; with `on_interrupt=fail` FAILED with `interrupted`",
        "none",
    ),
    FailureClass.CANCEL: ("the task did `raise Cancel`", "CANCELLED", "none"),
    FailureClass.SNOOZE: (
        "the task did `raise Snooze`: it wants to run again later",
        "SCHEDULED for the time it said",
        "none",
    ),
}

WHAT_TO_DO: dict[type[errors.SemtaskError], str] = {
    errors.ParseError: "Send valid JSON in UTF-8.",
    errors.InvalidRequest: 'Send `{"jsonrpc": "2.0", "id": 1, "method": "...", "params": {...}}`.',
    errors.MethodNotFound: "Look at the name; the daemon may be older than its client: `semtask down`, `semtask up`.",
    errors.InvalidParams: "Send `params` as an object with the parameters by name.",
    errors.ValidationError: "The message names the parameter and what is expected; `details.parameter` has its name.",
    errors.NotFound: "The job may be past its retention; `semtask ls` lists what is stored.",
    errors.Conflict: "Look at the job that `details.job_id` names. Repeating the request changes nothing.",
    errors.Throttled: "Wait `retry_after_ms` and repeat.",
    errors.Unauthorized: "Be the user of the daemon; over TCP send the token in `<home>/run/token`.",
    errors.InternalError: "This is a bug. Report it with the lines of the daemon's log that have the trace id.",
    errors.DatabaseError: "Run `semtask doctor` and look at `semtask logs --daemon -n 50`.",
    errors.SystemFailure: "The message says what the operating system refused.",
    errors.DaemonUnavailable: "`semtask up` starts the daemon, `semtask doctor` says what is wrong with it.",
    errors.StartupError: "The message says why; `semtask doctor` looks at everything around it.",
    errors.ConfigError: "The message names the setting and where it was read.",
}

HTTP_STATUSES = {
    200: "a JSON-RPC answer, also one with an error",
    204: "a notification (a request without `id`) was executed",
    400: "this is not HTTP/1.1 as the daemon speaks it",
    401: "the token is missing, wrong, removed or expired",
    403: "another user, another Host, a web page, or `/metrics` without the scope `read`",
    404: "there is nothing at this path; the API is at `POST /rpc`",
    405: "only POST is allowed for the API, only GET for `/healthz` (also `/health`), `/readyz` and `/metrics`",
    408: "the request did not come in time",
    413: "the body is larger than `max_body_bytes`",
    415: "the content type is not `application/json` (or `application/json-rpc`), or the body is encoded",
    429: "this client sends more requests than `rate_limit_requests`, and the body of this one is larger than 64 KiB "
    "or of unknown length; smaller ones are answered with 200 and the error 4003",
    431: "the head of the request is larger than 16 KiB",
    503: "the daemon is stopping, or it has too many requests in work; the header `retry-after` says when to try again",
}

EXIT_CODES = {
    "USAGE": "the command line or a setting is wrong, or the daemon refused a value",
    "NO_DAEMON": "no daemon answers",
    "NOT_FOUND": "there is no such job, queue or database",
    "REFUSED": "the state does not allow it: the job has ended already, or not yet; a duplicate",
    "NOT_ALLOWED": "you may not: a wrong token, another user's daemon",
    "UNAVAILABLE": "daemon and command line are of different versions",
    "TRY_LATER": "the daemon takes nothing now: it is stopping, or the disk is full",
    "TIMED_OUT": "`wait --timeout` is over and the jobs have not ended",
    "INTERRUPTED": "Ctrl-C",
}

ENVIRONMENT = {
    "SEMANTICA_RPC_URL": "where clients find the daemon instead of the socket: `http://127.0.0.1:9527`",
    "SEMANTICA_TOKEN_FILE": "the file with the token that clients use, and whose scopes they have, at port and socket",
    "SEMANTICA_TOKEN": "the token itself, before that file: set for a job that was given access, while it runs",
    "SEMANTICA_OUTPUT": "what the command line prints: `table`, `json` or `quiet`",
    "SEMANTICA_DEBUG": "`1` shows the traceback of an error of the command line",
    "SEMANTICA_JOB_ID": "set for every command: the id of its job (a task asks `current_job()`)",
    "SEMANTICA_JOB_HOME": "set for every command and worker: the home of the daemon that runs it; leave it alone",
    "SEMANTICA_ATTEMPT": "set for every command and worker: a mark by which its processes are found; leave it alone",
}

DEFAULTS = {
    "apps": "none",
    "home": "`$XDG_DATA_HOME/semtask`, that is `~/.local/share/semtask`",
    "command_policy": "`commands.toml` in the home, if it is there",
    "db_path": "`meta.db` in the home",
    "max_processes": "2 x CPUs",
    "queue_concurrency": "the number of CPUs",
}

# Members of public classes that need no docstring of their own.
SDK = {
    **{f"State.{state}": meaning for state, meaning in STATES.items()},
    "CompletedCommand.job": "what the daemon knows about it, as of `JobHandle.info`",
    "CompletedCommand.exit_code": "its exit code",
    "CompletedCommand.signal": "the signal that ended it, if one did",
    "Embedded.pid": "the process of the daemon",
    "InlineSemantica.close": "end it; the fixture does so by itself",
    "SemanticaDaemon.pid": "the process of the daemon",
    "JobContext.job_id": "the id of the job",
    "JobContext.claim_no": "which claim of the job this is; it names the log",
    "JobContext.task": "the name of the task",
    "JobContext.max_attempts": "how many executions the job is allowed",
    "JobContext.queue": "its queue",
    "JobContext.timeout_ms": "how long this attempt may take, if that is limited",
    "JobContext.deadline": "when the job must have ended, if it must",
    "JobContext.traceparent": "the W3C trace that it belongs to",
    "JobContext.tag": "as enqueued",
    "JobContext.subject_key": "as enqueued",
    "JobContext.ended": "whether the code of the job has come to its end; a thread that it left can ask",
    "JobContext.artifacts": "the files that it has kept so far, by name",
    "JobContext.last_progress": "what it said last about its progress",
    "JobContext.stop_reason": "why the job is being stopped; `None` while it is not",
    "JobError.job_id": "the id of the job",
    "JobError.end_cause": "why it ended",
    "JobHandle.state": "the state of the job now",
    "JobHandle.deduplicated": "whether the enqueue found a job instead of making one",
    "JobHandle.id": "the id of the job",
    "JobSuperseded.superseded_by": "the id of the newer job",
}
