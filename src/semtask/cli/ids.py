"""The words that stand for jobs: an id, the end of one, `last`, `last:N`, `@subject`, and `-` for ids on stdin."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from semtask.cli.session import Session
from semtask.client.messages import QUERY_JOBS
from semtask.errors import NotFound

if TYPE_CHECKING:
    from semtask.protocol.jobs import QueriedJobs

_FULL_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_SUFFIX = re.compile(r"[0-9a-f]{4,32}", re.ASCII)
_LAST = re.compile(r"last(?::([1-9][0-9]{0,5}))?", re.ASCII)
_PAGE = 200


def job_ids(session: Session, words: Iterable[str]) -> list[str]:
    """Full ids for what was typed, each one once."""
    found: list[str] = []
    for word in words:
        if word == "-":
            found += job_ids(session, sys.stdin.read().split())
        else:
            found.append(_job_id(session, word))
    return list(dict.fromkeys(found))


def _job_id(session: Session, word: str) -> str:
    if word.startswith("@"):
        return _newest_of_subject(session, word[1:])
    text = word.lower()
    if _FULL_ID.fullmatch(text):
        return text
    if match := _LAST.fullmatch(text):
        return _nth_newest(session, int(match[1] or 1))
    suffix = text.replace("-", "")
    if not _SUFFIX.fullmatch(suffix):
        raise click.UsageError(
            f"{word!r} is no job id; give an id, its last 4 or more characters, `last`, `last:2`, `@subject` or `-`"
        )
    return _by_suffix(session, word, suffix)


def _by_suffix(session: Session, word: str, suffix: str) -> str:
    matches = session.stored.send(QUERY_JOBS(filter={"id_suffix": suffix}, limit=5)).items
    if not matches:
        raise NotFound(f"there is no job whose id ends in {word}")
    if len(matches) > 1:
        ids = ", ".join(job.job_id for job in matches[:4])
        raise click.UsageError(f"{word!r} fits more than one job ({ids}{', ...' if len(matches) > 4 else ''})")
    return str(matches[0].job_id)


def _nth_newest(session: Session, number: int) -> str:
    """1 is the newest."""
    left, cursor = number, None
    while True:
        page = _page(session, {"limit": min(left, _PAGE)}, cursor)
        left -= len(page.items)
        if left == 0:
            return str(page.items[-1].job_id)
        cursor = page.next_cursor
        if cursor is None:
            there = number - left
            if not there:
                raise NotFound("there is no job yet; `semtask run -- COMMAND` makes one")
            jobs = "is 1 job" if there == 1 else f"are {there} jobs"
            raise NotFound(f"last:{number} is too far back, there {jobs}")


def _newest_of_subject(session: Session, subject: str) -> str:
    """The filter knows beginnings of subjects; one that merely begins like this one is another subject."""
    if not subject:
        raise click.UsageError("'@' needs a subject: @KEY")
    cursor = None
    while True:
        page = _page(session, {"filter": {"subject_key_prefix": subject}, "limit": _PAGE}, cursor)
        for job in page.items:
            if job.subject_key == subject:
                return str(job.job_id)
        cursor = page.next_cursor
        if cursor is None:
            raise NotFound(f"there is no job with the subject {subject!r}")


def _page(session: Session, params: dict[str, Any], cursor: str | None) -> QueriedJobs:
    return session.stored.send(QUERY_JOBS(**params, **({"cursor": cursor} if cursor else {})))
