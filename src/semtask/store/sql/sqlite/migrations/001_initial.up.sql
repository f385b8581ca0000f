-- The row of a job holds everything about it but its ended attempts.
-- `seq` is given out by the daemon (meta.next_seq) and never reused: it orders the queue and pages the listings.
-- Words of the model are kept as integers: store/codes.py gives State.QUEUED and its like their codes, and the view
-- jobs_readable shows the words.
-- The CHECKs spell lists out with OR: for IN with more than two values SQLite builds a table in each statement, which
-- takes as long as the rest of an insert.
CREATE TABLE jobs (
    seq                  INTEGER PRIMARY KEY,
    job_id               BLOB    NOT NULL CHECK (length(job_id) = 16),
    queue                TEXT    NOT NULL CHECK (length(queue) BETWEEN 1 AND 64),
    job_type             TEXT    NOT NULL CHECK (length(job_type) BETWEEN 1 AND 128),
    execution_mode       INTEGER NOT NULL CHECK (execution_mode ExecutionMode.ANY),
    state                INTEGER NOT NULL CHECK (state State.ANY),
    priority             INTEGER NOT NULL CHECK (priority BETWEEN -100 AND 100),
    claim_no             INTEGER NOT NULL DEFAULT 0 CHECK (claim_no >= 0),
    attempts             INTEGER NOT NULL DEFAULT 0 CHECK (attempts BETWEEN 0 AND claim_no),
    failures             INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    crashes              INTEGER NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    interruptions        INTEGER NOT NULL DEFAULT 0 CHECK (interruptions >= 0),
    created_at           INTEGER NOT NULL,
    run_at               INTEGER,
    started_at           INTEGER,
    finished_at          INTEGER,
    stop_reason          INTEGER CHECK (stop_reason StopReason.ANY),
    stop_grace_ms        INTEGER CHECK (stop_grace_ms >= 0),
    kill_failed_at       INTEGER,
    end_cause            INTEGER CHECK (end_cause EndCause.ANY),
    exit_code            INTEGER,
    signal               INTEGER,
    max_attempts         INTEGER NOT NULL CHECK (max_attempts >= 0),
    backoff_factor       REAL    NOT NULL CHECK (backoff_factor > 0),
    retry_base_delay_ms  INTEGER NOT NULL CHECK (retry_base_delay_ms >= 0),
    retry_max_delay_ms   INTEGER NOT NULL CHECK (retry_max_delay_ms >= 0),
    timeout_ms           INTEGER CHECK (timeout_ms > 0),
    grace_ms             INTEGER NOT NULL CHECK (grace_ms BETWEEN 0 AND 60000),
    deadline             INTEGER,
    ttl_ms               INTEGER CHECK (ttl_ms >= 0),
    -- When waiting ends by itself, as model/schedule.py says: the deadline, or the ttl of a job that was never claimed.
    expires_at           INTEGER GENERATED ALWAYS AS (
        CASE
            WHEN state = State.QUEUED AND claim_no = 0 AND ttl_ms IS NOT NULL
                THEN min(max(created_at, coalesce(run_at, 0)) + ttl_ms, coalesce(deadline, 9223372036854775807))
            WHEN state IN (State.SCHEDULED, State.QUEUED) THEN deadline
        END
    ) VIRTUAL,
    on_interrupt         INTEGER NOT NULL CHECK (on_interrupt OnInterrupt.ANY),
    retry_on_crash       INTEGER NOT NULL CHECK (retry_on_crash IN (0, 1)),
    subject_key          TEXT CHECK (length(subject_key) BETWEEN 1 AND 512),
    generation           INTEGER CHECK (generation > 0),
    superseded_by        BLOB CHECK (length(superseded_by) = 16),
    -- A better job of its subject waits in the same queue: this one is not looked at before that one has left.
    behind               INTEGER NOT NULL DEFAULT 0 CHECK (behind IN (0, 1)),
    -- No app offers its task, or no more jobs of it may run: not looked at before that has changed.
    aside                INTEGER NOT NULL DEFAULT 0 CHECK (aside IN (0, 1)),
    tag                  TEXT,
    chain_group_id       TEXT,
    parent_job_id        BLOB CHECK (length(parent_job_id) = 16),
    retry_of             BLOB CHECK (length(retry_of) = 16),
    trace_context        TEXT,
    idempotency_key      TEXT,
    source               TEXT,
    content_hash         BLOB CHECK (content_hash IS NOT NULL OR idempotency_key IS NULL),
    node_id              TEXT,
    -- Of a command the ClaimFacts as JSON; of a task, whose worker runs many, the number of them in `claims`.
    claim                ANY,
    process              TEXT,
    conditions           TEXT,
    progress             TEXT,
    artifacts            TEXT,
    error                TEXT,
    exception            TEXT,
    result               TEXT,
    payload              TEXT    NOT NULL,
    -- A finished job has an end and the time of it; no other job has.
    CHECK ((finished_at IS NOT NULL) = (state <> State.SCHEDULED AND state <> State.QUEUED AND state <> State.RUNNING)),
    CHECK ((end_cause IS NULL) = (finished_at IS NULL)),
    -- Only what runs can be stopped; what was stopped shows why.
    CHECK (stop_reason IS NULL OR state NOT IN (State.SCHEDULED, State.QUEUED)),
    CHECK ((stop_reason IS NULL) = (stop_grace_ms IS NULL)),
    -- A claim says since when, on which node, and what recovery has to know.
    CHECK (state <> State.RUNNING OR (claim_no > 0 AND started_at IS NOT NULL AND node_id IS NOT NULL AND claim IS NOT NULL)),
    CHECK (state NOT IN (State.SKIPPED_TTL, State.SKIPPED_DEADLINE) OR stop_reason IS NULL),
    -- A superseded job never waits again.
    CHECK (superseded_by IS NULL OR state NOT IN (State.SCHEDULED, State.QUEUED)),
    CHECK ((subject_key IS NULL) = (generation IS NULL)),
    CHECK (behind = 0 OR (subject_key IS NOT NULL AND state = State.QUEUED)),
    CHECK (aside = 0 OR (execution_mode = ExecutionMode.IN_PROCESS AND state = State.QUEUED))
) STRICT;

CREATE UNIQUE INDEX jobs_id ON jobs (job_id);
-- Claims: best first within a queue, at a cost that does not grow with the queue, nor with a lane whose head may not
-- run yet, nor with what is set aside. `expires_at` is there so that jobs whose time is over are passed without reading
-- their rows.
CREATE INDEX jobs_ready ON jobs (execution_mode, queue, priority DESC, seq, expires_at)
    WHERE state = State.QUEUED AND behind = 0 AND aside = 0;
-- What is set aside, best first within a task.
CREATE INDEX jobs_aside ON jobs (job_type, priority DESC, seq) WHERE aside = 1;
-- The best job of a subject that waits in a queue.
CREATE INDEX jobs_lane ON jobs (job_type, subject_key, execution_mode, queue, priority DESC, seq)
    WHERE subject_key IS NOT NULL AND state = State.QUEUED;
-- What has waited too long, and when the next one has.
CREATE INDEX jobs_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL;
-- Promotion, and the time of the next one.
CREATE INDEX jobs_due ON jobs (run_at) WHERE state = State.SCHEDULED AND run_at IS NOT NULL;
-- Listings by state, newest or oldest first; also recovery, which reads what runs.
CREATE INDEX jobs_state ON jobs (state, seq);
CREATE INDEX jobs_queue ON jobs (queue, seq);
CREATE INDEX jobs_type ON jobs (job_type, seq);
-- With the state, so that cancelling a tag does not visit the finished jobs of it.
CREATE INDEX jobs_tag ON jobs (tag, seq, state) WHERE tag IS NOT NULL;
CREATE INDEX jobs_group ON jobs (chain_group_id, seq, state) WHERE chain_group_id IS NOT NULL;
-- A subject is a lane. Only live rows, or the random keys would halve the rate of a store with history. A live row is
-- told by its end, which no claim changes: so a claim leaves this index alone.
CREATE INDEX jobs_subject ON jobs (job_type, subject_key, seq) WHERE subject_key IS NOT NULL AND finished_at IS NULL;
-- At most one job of a subject runs, whatever a statement gets wrong.
CREATE UNIQUE INDEX jobs_subject_running ON jobs (job_type, subject_key)
    WHERE subject_key IS NOT NULL AND state = State.RUNNING;
-- What may be deleted, oldest end first.
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
-- What a live job points to stays; a job that was retried is not retried again with the rest.
CREATE INDEX jobs_parent ON jobs (parent_job_id) WHERE parent_job_id IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_retry ON jobs (retry_of) WHERE retry_of IS NOT NULL;
CREATE UNIQUE INDEX jobs_idempotency_key ON jobs (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- For people with a shell of SQLite: ids as they are shown elsewhere, and the words of the model.
CREATE VIEW jobs_readable AS
SELECT
    seq,
    printf('%s-%s-%s-%s-%s', substr(lower(hex(job_id)), 1, 8), substr(lower(hex(job_id)), 9, 4),
        substr(lower(hex(job_id)), 13, 4), substr(lower(hex(job_id)), 17, 4), substr(lower(hex(job_id)), 21)) AS job_id,
    queue, job_type, ExecutionMode.word(execution_mode) AS execution_mode, State.word(state) AS state, priority,
    claim_no, attempts, failures, crashes, interruptions, created_at, run_at, started_at, finished_at,
    StopReason.word(stop_reason) AS stop_reason, EndCause.word(end_cause) AS end_cause, exit_code, signal, max_attempts,
    timeout_ms, deadline, ttl_ms, expires_at, OnInterrupt.word(on_interrupt) AS on_interrupt, subject_key, generation,
    tag, chain_group_id, idempotency_key, source, progress, error, result, payload
FROM jobs;

-- The attempts that have ended and failed, were stopped, or ran a command.
CREATE TABLE attempts (
    seq         INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
    claim_no    INTEGER NOT NULL CHECK (claim_no > 0),
    started_at  INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    end_cause   TEXT    NOT NULL,
    exit_code   INTEGER,
    signal      INTEGER,
    error       TEXT,
    stop_reason TEXT,
    pid         INTEGER,
    log_bytes   INTEGER,
    sandbox     TEXT,
    PRIMARY KEY (seq, claim_no)
) STRICT, WITHOUT ROWID;

-- The facts of the claims of a worker. They go when nothing runs by them.
CREATE TABLE claims (
    id    INTEGER PRIMARY KEY,
    facts TEXT    NOT NULL UNIQUE
) STRICT;

-- A queue that was used or configured. One count per state, kept by every transaction that changes a job.
CREATE TABLE queues (
    name             TEXT PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 64),
    paused           INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    concurrency      INTEGER CHECK (concurrency > 0),
    queue_class      TEXT    NOT NULL DEFAULT 'normal' CHECK (
        queue_class = 'interactive' OR queue_class = 'normal' OR queue_class = 'background'
    ),
    sandbox          TEXT    NOT NULL DEFAULT 'none' CHECK (
        sandbox = 'none' OR sandbox = 'limits' OR sandbox = 'landlock' OR sandbox = 'bwrap'
    ),
    scheduled        INTEGER NOT NULL DEFAULT 0,
    queued           INTEGER NOT NULL DEFAULT 0,
    running          INTEGER NOT NULL DEFAULT 0,
    done             INTEGER NOT NULL DEFAULT 0,
    failed           INTEGER NOT NULL DEFAULT 0,
    cancelled        INTEGER NOT NULL DEFAULT 0,
    superseded       INTEGER NOT NULL DEFAULT 0,
    skipped_ttl      INTEGER NOT NULL DEFAULT 0,
    skipped_deadline INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- The last generation given to a subject, and how many jobs of it are stored: kept, because no index has the subjects of
-- finished jobs.
CREATE TABLE subjects (
    job_type    TEXT    NOT NULL,
    subject_key TEXT    NOT NULL,
    generation  INTEGER NOT NULL CHECK (generation > 0),
    jobs        INTEGER NOT NULL CHECK (jobs >= 0),
    PRIMARY KEY (job_type, subject_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX subjects_unused ON subjects (job_type, subject_key) WHERE jobs = 0;

-- What the engine counts over all its lives.
CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row. `daemon_epoch` fences a daemon that has been replaced; `next_seq` is the high-water mark of jobs.seq.
CREATE TABLE meta (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    daemon_epoch INTEGER NOT NULL,
    next_seq     INTEGER NOT NULL
) STRICT;
INSERT INTO meta (id, daemon_epoch, next_seq) VALUES (1, 0, 1);
