"""`result` and `artifacts`: what jobs leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from semtask.cli import render
from semtask.cli.complete import job_words
from semtask.cli.exit_codes import exit_code
from semtask.cli.failure import Ended
from semtask.cli.follow import Explanation
from semtask.cli.ids import job_ids
from semtask.cli.session import Command, CommandGroup, Session, pass_session
from semtask.client.messages import GET_JOB, json_of
from semtask.client.waiting import wait_for_ends
from semtask.errors import Conflict, NotFound, SemtaskError, SystemFailure
from semtask.model.state import FINAL

if TYPE_CHECKING:
    from semtask.protocol.jobs import ArtifactView, JobView

_BLOCK = 1 << 20


class Damaged(SemtaskError):
    """A file is not the one that the job left."""


@click.command(cls=Command)
@click.argument("job", metavar="ID", shell_complete=job_words)
@click.option("-w", "--wait", is_flag=True, help="Wait until the job has ended.")
@click.option("--traceback", is_flag=True, help="Print the traceback of a task that failed.")
@pass_session
def result(session: Session, job: str, wait: bool, traceback: bool) -> None:
    """Print the result of a task as JSON, or say why there is none and exit as `run` would have.

    ID: an id, the end of one, `last`, `last:2`, or `@subject`. Exit code 5 if the job has not ended. Ctrl-C ends -w
    and not the job.
    """
    job_id = _one(session, job)
    if wait:
        wait_for_ends(session.stored.send, [job_id], Explanation(session).give)
    found = session.stored.send(GET_JOB(job_id=job_id, include=["result", "payload"]))
    if found.state not in FINAL:
        raise Conflict(f"job {render.short(job_id)} is {found.state}; `semtask result -w` waits for its end")
    if found.state != "DONE":
        _tell_failure(session, found, traceback)
        raise Ended(exit_code(found))
    file = next((artifact for artifact in found.artifacts or () if artifact.is_result), None)
    if file is None:
        _print_value(session, found.result)
    elif session.terminal:
        _print_value(session, json.loads(_contents(file)))
    else:
        _copy(file, sys.stdout.buffer)
        session.line("")


def _one(session: Session, word: str) -> str:
    ids = job_ids(session, [word])
    if len(ids) != 1:
        raise click.UsageError(f"one job is needed, and there are {len(ids)} ids on stdin")
    return ids[0]


def _print_value(session: Session, value: Any) -> None:
    """For people indented and harmless, for programs on one line."""
    if not session.terminal:
        session.line(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        return
    for line in json.dumps(value, ensure_ascii=False, indent=2).split("\n"):
        session.line(render.printable(line))


def _tell_failure(session: Session, job: JobView, traceback: bool) -> None:
    if session.json:
        session.emit(render.job_json(job))
        return
    session.warn(render.sentence(job))
    if traceback and job.exception:
        for line in render.exception_lines(job.exception):
            session.warn(line)


# --- artifacts -------------------------------------------------------------------------------------------------------


@click.group(cls=CommandGroup)
def artifacts() -> None:
    """List and fetch the files that a job left."""


@artifacts.command(name="ls", cls=Command)
@click.argument("job", metavar="ID", shell_complete=job_words)
@pass_session
def artifacts_ls(session: Session, job: str) -> None:
    """List the files of a job: name, size, SHA-256, path."""
    for artifact in _artifacts(session, _one(session, job)):
        if session.json:
            session.emit({"schema": "artifact.v1", **json_of(artifact)})
        elif session.quiet:
            session.line(artifact.name)
        else:
            size = render.size(artifact.size) if session.terminal else str(artifact.size)
            digest = artifact.sha256[:12] if session.terminal else artifact.sha256
            cells = (artifact.name, size, digest, artifact.path)
            session.line("\t".join(map(render.printable, cells)))


@artifacts.command(name="get", cls=Command)
@click.argument("job", metavar="ID", shell_complete=job_words)
@click.argument("name", required=False)
@click.option("-o", "--output", metavar="FILE", help="The file to write to. Default: stdout.")
@pass_session
def artifacts_get(session: Session, job: str, name: str | None, output: str | None) -> None:
    """Write a file of a job to stdout, byte for byte; its checksum is looked at. NAME: needed if there are several."""
    job_id = _one(session, job)
    artifact = _chosen(_artifacts(session, job_id), name, job_id)
    if output is None or output == "-":
        if session.terminal and output is None:
            raise click.UsageError(f"{artifact.name} would be written to this terminal; add -o FILE")
        _copy(artifact, sys.stdout.buffer)
        return
    with open(output, "wb") as target:
        _copy(artifact, target)
    session.notice(f"{render.size(artifact.size)} in {output}")


def _artifacts(session: Session, job_id: str) -> list[ArtifactView]:
    found = session.stored.send(GET_JOB(job_id=job_id, include=["result"]))
    return list(found.artifacts or ())


def _chosen(there: list[ArtifactView], name: str | None, job_id: str) -> ArtifactView:
    if not there:
        short = render.short(job_id)
        raise NotFound(f"job {short} has left no files; `semtask show {short}` says how it ended")
    fitting = [artifact for artifact in there if name is None or artifact.name == name]
    if not fitting:
        raise NotFound(f"job {render.short(job_id)} has no artifact {name!r}", details={"artifacts": job_id})
    if len(fitting) > 1:
        raise click.UsageError("name one of " + ", ".join(artifact.name for artifact in fitting))
    return fitting[0]


def _contents(artifact: ArtifactView) -> bytes:
    blocks: list[bytes] = []
    _read(artifact, blocks.append)
    return b"".join(blocks)


def _copy(artifact: ArtifactView, target: BinaryIO) -> None:
    _read(artifact, target.write)
    target.flush()


def _read(artifact: ArtifactView, take: Callable[[bytes], Any]) -> None:
    """Raises SystemFailure if the file is not there, and Damaged if it is another one than the job left."""
    digest = hashlib.sha256()
    try:
        # Neither a link nor a pipe that was put in its place.
        file = os.fdopen(os.open(artifact.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise SystemFailure(
            f"cannot read the artifact {artifact.path}: {error.strerror} (deleted, or on another machine?)"
        ) from error
    with file:
        while block := file.read(_BLOCK):
            digest.update(block)
            take(block)
    if digest.hexdigest() != artifact.sha256:
        raise Damaged(f"{artifact.path} was changed or damaged since the job wrote it: its checksum is another one")
