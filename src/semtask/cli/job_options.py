"""The options of a job on the command line.

Written by docs/generate.py from model/job.py, which is the place to change it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from semtask.cli.arguments import deadline, duration, duration_within, moment, number_within
from semtask.cli.complete import queue_names, tag_names

backoff = number_within(1, 1000)
retry_base = duration_within(0, 86400000)
retry_max = duration_within(0, 31536000000)
timeout = duration_within(1, 31536000000)
ttl = duration_within(1, 31536000000000)
grace = duration_within(0, 60000)

JOB_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "-Q",
        "--queue",
        shell_complete=queue_names,
        help="The queue it waits in; a queue need not be declared. Default: `default`.",
    ),
    click.option(
        "--priority",
        type=click.IntRange(-100, 100),
        help="Higher goes first, equal ones in the order in which they were enqueued; below 0 it waits while the "
        "machine is busy. Default: 0; -100 to 100.",
    ),
    click.option(
        "-t",
        "--tag",
        shell_complete=tag_names,
        help="A word by which jobs can be listed, cancelled and retried.",
    ),
    click.option(
        "--subject",
        "subject_key",
        metavar="KEY",
        help="What it is about: of the jobs of one name and subject, only one runs at a time.",
    ),
    click.option(
        "--idempotency-key",
        metavar="KEY",
        help="Enqueueing again with the same key returns the first job, as long as that is stored.",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0, 999),
        metavar="N",
        help="Retry it up to N times if it fails. Default: 0, or as the task says.",
    ),
    click.option(
        "--backoff",
        "backoff_factor",
        type=backoff,
        metavar="FACTOR",
        help="How much longer each pause is than the one before. Default: 2; 1 to 1000.",
    ),
    click.option(
        "--retry-base",
        "retry_base_delay_ms",
        type=retry_base,
        metavar="DURATION",
        help="The pause before the first retry. Default: the setting retry_base_delay_ms; at most 1d.",
    ),
    click.option(
        "--retry-max",
        "retry_max_delay_ms",
        type=retry_max,
        metavar="DURATION",
        help="The longest pause before a retry. Default: 1h.",
    ),
    click.option(
        "--retry-on-crash/--no-retry-on-crash",
        default=None,
        help="Retry it also if the process that ran it was lost; then it runs at most 3 times.",
    ),
    click.option(
        "--timeout",
        "timeout_ms",
        type=timeout,
        metavar="DURATION",
        help="The longest time that one attempt may take.",
    ),
    click.option(
        "--deadline",
        type=deadline,
        metavar="DURATION|TIME",
        help="When the job must have ended, all attempts and pauses included: 2h (from now), or 18:00.",
    ),
    click.option(
        "--ttl",
        "ttl_ms",
        type=ttl,
        metavar="DURATION",
        help="Skip it if it has not started this long after it became due.",
    ),
    click.option(
        "--grace",
        "grace_ms",
        type=grace,
        metavar="DURATION",
        help="The time from SIGTERM to SIGKILL when it is stopped. Default: 5s; at most 1m.",
    ),
    click.option(
        "--on-interrupt",
        type=click.Choice(["requeue", "fail"]),
        help="If the daemon stops or dies while it runs: run it again (requeue), or end it as FAILED (fail). "
        "Default: `fail` for a command, `requeue` for a task.",
    ),
    click.option(
        "--at",
        type=moment,
        metavar="TIME",
        help="Do not run it before this time: 18:00 or 2026-11-23T18:00.",
    ),
    click.option(
        "--in",
        "delay_ms",
        type=duration,
        metavar="DURATION",
        help="Do not run it before this much time has passed: 90s, 1h30m.",
    ),
    click.option(
        "--on-duplicate",
        type=click.Choice(["supersede", "supersede_running", "join", "reject", "after"]),
        help="What happens to the live jobs of its subject: the new one replaces those that wait (supersede), also"
        " stops the one that runs (supersede_running), joins one that waits (join), is refused (reject), or "
        "follows them (after). Default: `supersede`.",
    ),
    click.option(
        "--durability",
        type=click.Choice(["fsync", "os"]),
        help="`fsync` survives a power cut, `os` any crash of a process. Default: `fsync`.",
    ),
)
