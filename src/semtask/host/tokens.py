"""The named tokens of a home, in `<home>/tokens.json`: the hash of each, what it may do, and for how long.

A token is 256 random bits, so its plain SHA-256 gives nothing away: there is nothing to guess that a slow or salted
hash would protect, as there is with passwords that people think up.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from semtask.config.text import decoded
from semtask.errors import ConfigError, Conflict, NotFound
from semtask.host.replaced_file import locked, replace
from semtask.model.scope import Scope

_PREFIX = "smt_"  # by which scanners of repositories know one
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Times are epoch ms; without `expires_at` it is good until it is removed."""

    sha256: str
    scopes: list[Scope]
    created_at: int
    expires_at: int | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: dict[str, Token]


def path_of(home: Path) -> Path:
    return home / "tokens.json"


def digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


def read_tokens(home: Path) -> dict[str, Token]:
    """The tokens by name; none if there is no file. Raises ConfigError for a file that others could read or write."""
    path = path_of(home)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read the tokens in {path}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ConfigError(
                f"{path} must be a file of yours with mode 0600; find out who changed it before you fix it"
            )
        text = file.read()
    try:
        return msgspec.json.decode(decoded(text), type=_File).tokens if text else {}
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} is no list of tokens ({error}); remove it, and add your tokens again") from error


def add_token(
    home: Path,
    name: str,
    scopes: Iterable[Scope],
    *,
    now_ms: int,
    expires_at: int | None = None,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> str:
    """A new token, which nothing but this answer tells. Raises Conflict if there is one of this name, ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a token; take 1 to 64 letters, digits, _ and -")
    secret = draw(random_bytes)
    with _changing(home) as tokens:
        if name in tokens:
            raise Conflict(f"there is a token {name!r} already; `semtask token rotate {name}` renews it")
        tokens[name] = Token(
            sha256=digest(secret.encode()), scopes=sorted(set(scopes)), created_at=now_ms, expires_at=expires_at
        )
    return secret


def rotate_token(
    home: Path,
    name: str,
    *,
    now_ms: int,
    expires_at: int | None = None,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> str:
    """Another token in the place of the one of this name, with its scopes. Raises NotFound and ConfigError."""
    if not path_of(home).exists():
        raise NotFound(f"there is no token {name!r}", details={"token": name})
    secret = draw(random_bytes)
    with _changing(home) as tokens:
        if name not in tokens:
            raise NotFound(f"there is no token {name!r}", details={"token": name})
        tokens[name] = msgspec.structs.replace(
            tokens[name], sha256=digest(secret.encode()), created_at=now_ms, expires_at=expires_at
        )
    return secret


def remove_token(home: Path, name: str) -> None:
    """From now on it opens nothing. Raises NotFound and ConfigError."""
    if not path_of(home).exists():  # a look at what is not there makes no home
        raise NotFound(f"there is no token {name!r}", details={"token": name})
    with _changing(home) as tokens:
        if tokens.pop(name, None) is None:
            raise NotFound(f"there is no token {name!r}", details={"token": name})


def draw(random_bytes: Callable[[int], bytes]) -> str:
    """A new token."""
    import base64

    return _PREFIX + base64.urlsafe_b64encode(random_bytes(32)).rstrip(b"=").decode()


@contextmanager
def _changing(home: Path) -> Iterator[dict[str, Token]]:
    path = path_of(home)
    with locked(path):
        tokens = read_tokens(home)
        before = dict(tokens)
        yield tokens
        if tokens != before:
            replace(path, msgspec.json.format(msgspec.json.encode(_File(tokens))).decode() + "\n")
