"""The errors, from errors.py and the HTTP door."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path

from generator import glossary
from generator.markdown import code, compare, paragraphs, sentence, table
from semtask import errors

_BASES = {errors.SemtaskError, errors.RpcError}


def rpc_errors() -> str:
    compare(glossary.WHAT_TO_DO, list(_all()), "docs/generator/glossary.py, WHAT_TO_DO")
    rows = [(c.code, code(c.kind), *_row(c)) for c in _all() if issubclass(c, errors.RpcError)]
    return table(["code", "kind", "class", "meaning", "what to do"], rows)


def other_errors() -> str:
    rows = [_row(c) for c in _all() if not issubclass(c, errors.RpcError)]
    return table(["class", "meaning", "what to do"], rows)


def http_statuses() -> str:
    api = Path(errors.__file__).with_name("api")
    names = {n for file in api.glob("*.py") for n in re.findall(r"HTTPStatus\.([A-Z_]+)", file.read_text())}
    compare(glossary.HTTP_STATUSES, {HTTPStatus[n].value for n in names}, "docs/generator/glossary.py, HTTP_STATUSES")
    return table(["status", "meaning"], [(n, sentence(what)) for n, what in glossary.HTTP_STATUSES.items()])


def _all() -> Iterable[type[errors.SemtaskError]]:
    found = (value for value in vars(errors).values() if isinstance(value, type))
    return (kind for kind in found if issubclass(kind, errors.SemtaskError) and kind not in _BASES)


def _row(kind: type[errors.SemtaskError]) -> tuple[str, str, str]:
    return code(kind.__name__), paragraphs(kind.__doc__), glossary.WHAT_TO_DO.get(kind, "")
