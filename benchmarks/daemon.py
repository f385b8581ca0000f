"""The daemon as its users meet it, beside the limit of this machine in the same run.

Figures move from machine to machine and from hour to hour: the ratios count.
"""

from __future__ import annotations

import http.client
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import apsw
from msgspec import Raw

from benchmarks.running import cpu_seconds, daemon, helpers_of, pss_kb, rss_kb, seconds
from semtask import Client
from semtask.protocol.enqueue import EnqueueParams

ROUNDS = 3
COMMANDS = 1000
SINGLES = 1000


def main() -> None:
    commands()
    enqueue_one()
    enqueue_many()
    idle()
    running_commands()
    log_flood()


def commands() -> None:
    """/bin/true as durable jobs with a full shim, as many at once as the defaults allow, against xargs -P2."""
    jobs = [EnqueueParams(job_type="true", payload=Raw(b'{"command":"/bin/true"}')) for _ in range(COMMANDS)]
    rates, limits = [], []
    with daemon(SEMANTICA_MAX_PROCESSES="4") as (client, home, _):
        client.configure_queue("default", concurrency=4)
        for _ in range(ROUNDS):
            limits.append(COMMANDS / seconds(_xargs))
            began = time.perf_counter()
            ids = [job.job_id for job in client.enqueue_many(jobs)]
            while client.wait(ids, timeout_ms=60_000).timed_out:
                pass
            rates.append(COMMANDS / (time.perf_counter() - began))
        done = client.stats().done_jobs
        attempts = sum(len(client.get_job(i, include=["attempts"]).attempts_list or ()) for i in ids)
        left = len(list((home / "attempts").glob("*-*")))
    rate, limit = statistics.median(rates), statistics.median(limits)
    print(f"commands             {rate:7.0f}/s   xargs -P2 {limit:7.0f}/s   ratio {rate / limit:.2f} (at least 0.25)")
    print(f"  {done} of {ROUNDS * COMMANDS} DONE, {attempts} attempts of the last {len(ids)}, {left} folders left")


def _xargs() -> None:
    numbers = "\n".join(map(str, range(COMMANDS)))
    subprocess.run(["xargs", "-P2", "-n1", "/bin/true"], input=numbers.encode(), check=True)


def enqueue_one() -> None:
    """One enqueue at a time with fsync, against a bare uvicorn echo plus one FULL commit of one row."""
    ours = []
    with daemon() as (client, _, _):
        client.pause_queue("default")
        for _ in range(SINGLES):
            ours.append(seconds(lambda: client.enqueue("true", {"command": "/bin/true"})))
    echo, commit = echo_seconds(), commit_seconds()
    mine, limit = statistics.median(ours), echo + commit
    print(
        f"enqueue, one by one  {1 / mine:7.0f}/s   echo {echo * 1e6:.0f} us + commit {commit * 1e6:.0f} us"
        f" = {1 / limit:.0f}/s   ratio {limit / mine:.2f} (at least 0.5)"
    )


def echo_seconds() -> float:
    """One request through http.client to a bare uvicorn on a unix socket, as ours is."""
    script = (
        "import sys, uvicorn\n"
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'2')]})\n"
        "    await send({'type': 'http.response.body', 'body': b'ok'})\n"
        "uvicorn.run(app, uds=sys.argv[1], log_level='error', lifespan='off', access_log=False)\n"
    )
    with tempfile.TemporaryDirectory(prefix="semtask-bench-") as folder:
        path = Path(folder) / "echo.sock"
        server = subprocess.Popen([sys.executable, "-c", script, str(path)])
        try:
            while not path.exists():
                time.sleep(0.02)
            connection = http.client.HTTPConnection("localhost", timeout=20)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            body = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"payload":{"command":"/bin/true"}}}'

            def call() -> None:
                connection.request("POST", "/", body, {"content-type": "application/json"})
                connection.getresponse().read()

            call()
            return statistics.median(seconds(call) for _ in range(SINGLES))
        finally:
            server.terminate()
            server.wait()


def commit_seconds() -> float:
    with tempfile.TemporaryDirectory(prefix="semtask-bench-") as folder:
        db = apsw.Connection(str(Path(folder) / "raw.db"))
        db.execute("pragma journal_mode = wal; pragma synchronous = full; create table t(a, b)").fetchall()
        body = "x" * 300

        def commit() -> None:
            db.execute("begin immediate; insert into t values (?, ?); commit", (1, body))

        result = statistics.median(seconds(commit) for _ in range(SINGLES))
        db.close()
        return result


def enqueue_many() -> None:
    """Batches of 100 over the socket, from two clients; the raw limit stands in benchmarks/store.py."""
    jobs = [EnqueueParams(job_type="true", payload=Raw(b'{"command":"/bin/true"}')) for _ in range(100)]
    batches = 100
    with daemon() as (client, home, _):
        client.pause_queue("default")

        def produce() -> None:
            with Client(home, autostart=False) as mine:
                for _ in range(batches):
                    mine.enqueue_many(jobs)

        rates = []
        for _ in range(ROUNDS):
            threads = [threading.Thread(target=produce) for _ in range(2)]
            began = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rates.append(2 * batches * 100 / (time.perf_counter() - began))
    print(f"enqueue_many by 100  {statistics.median(rates):7.0f} jobs/s over the socket, two clients in one process")


def idle() -> None:
    span = 10.0
    with daemon() as (_, _, pid):
        pids = [pid, *helpers_of(pid)]
        time.sleep(1.0)
        before = sum(map(cpu_seconds, pids))
        time.sleep(span)
        used = (sum(map(cpu_seconds, pids)) - before) / span
        rss, pss = sum(map(rss_kb, pids)), sum(map(pss_kb, pids))
    print(f"idle                 {used:.2%} of a core (under 0.3 %), with the launcher")
    print(f"                     RSS {rss / 1024:.1f} MB (under 70), PSS {pss / 1024:.1f} MB")


def running_commands() -> None:
    count = 50
    with daemon(SEMANTICA_MAX_PROCESSES=str(count)) as (client, _, pid):
        client.configure_queue("default", concurrency=count)
        before = sum(map(pss_kb, [pid, *helpers_of(pid)]))
        client.enqueue_many([{"job_type": "s", "payload": {"command": "/bin/sleep", "args": ["60"]}}] * count)
        while client.stats().running_jobs < count:
            time.sleep(0.05)
        time.sleep(1)
        after = sum(map(pss_kb, [pid, *helpers_of(pid)]))
    print(f"running command      {(after - before) / count / 1024:.2f} MB each, sleep(1) included (at most 1.5)")


def log_flood() -> None:
    """A job that writes 1 GB while somebody follows its log and does not read."""
    with daemon() as (client, home, pid):
        before = sum(map(pss_kb, [pid, *helpers_of(pid)]))
        job = client.enqueue(
            "flood", {"command": "sh", "args": ["-c", "head -c 1000000000 /dev/zero | tr '\\0' x; sleep 1"]}
        )
        follower = subprocess.Popen(
            [sys.executable, "-m", "semtask", "--home", str(home), "logs", "-f", job.job_id], stdout=subprocess.PIPE
        )
        worst = 0
        state = ""
        while state not in {"DONE", "FAILED"}:
            view = client.get_job(job.job_id)
            state = view.state
            ours = [p for p in helpers_of(pid) if Path(f"/proc/{p}/comm").exists() and _is_helper(p)]
            worst = max(worst, sum(map(pss_kb, [pid, *ours])))
            time.sleep(0.05)
        follower.kill()
        follower.communicate()
        blocks = Path(str(view.log_path)).stat().st_blocks * 512
    print(
        f"log of 1 GB          {(worst - before) / 1024:.1f} MB more in daemon and helpers (under 10),"
        f" {blocks / 2**20:.0f} MiB of disk left of it, {state}"
    )


def _is_helper(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("semtask")


if __name__ == "__main__":
    main()
