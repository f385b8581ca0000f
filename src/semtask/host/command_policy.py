"""The policy file for commands: read again when it changes, and the programs and folders that it is about.

A file that cannot be trusted or understood is worth no less than the strictest one: nothing may run until it is fixed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from semtask.config.text import decoded
from semtask.errors import ConfigError, suggestion
from semtask.host.file_version import FileVersion, version_of
from semtask.model.command_policy import Command, Policy, Program, Refusal, Rule, Rules, allowing, refusal

_MAX_BYTES = 1 << 20


class Judged(NamedTuple):
    """What a policy makes of a command. `program` and `working_dir` are what is to be started, and where."""

    refusal: Refusal | None
    program: Program | None
    working_dir: str


class PolicyFile:
    """The policy in `path`. A file that is not there restricts nothing, unless it `must` be there."""

    def __init__(self, path: Path, *, must: bool = False) -> None:
        self.path = path
        self._must = must
        self._known = False
        self._version: FileVersion | None = None
        self._policy: Policy | None = None
        self._error: ConfigError | None = None

    def read(self) -> Policy | None:
        """The policy in force; None restricts nothing. Raises ConfigError for one that cannot be used."""
        if self._known and self._version is None and self._error is None and _is_absent(self.path):
            return None  # as before: this is asked for each command, so it has to be quick
        version = version_of(self.path)
        # What is wrong with it may be a folder's mode, which its own version does not tell.
        # And what is not there may be a link that leads nowhere.
        if not self._known or version is None or version != self._version or self._error is not None:
            self._known, self._version = True, version
            self._policy, self._error = None, None
            try:
                self._policy = self._parse()
            except ConfigError as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._policy

    @property
    def problem(self) -> str | None:
        """Why no command may run at all: the file cannot be used."""
        try:
            self.read()
        except ConfigError as error:
            return error.message
        return None

    def _parse(self) -> Policy | None:
        text = _trusted_text(self.path)
        if text is not None:
            return _policy(self.path, text)
        if self._must:
            raise ConfigError(f"the policy for commands, {self.path}, does not exist")
        return None


def _is_absent(path: Path) -> bool:
    """Whether there is certainly nothing: no file that cannot be seen, and no link that leads nowhere."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def rules_of(policy: Policy) -> Rules:
    """The policy with what it names looked up now."""
    folders = policy.directories
    return Rules(
        directories=None if folders is None else tuple(map(_followed, folders)),
        allow=None if policy.allow is None else tuple(_rule(words, policy.path) for words in policy.allow),
        deny=tuple(_rule(words, policy.path) for words in policy.deny),
    )


def judge(rules: Rules, argv: Sequence[str], env: Mapping[str, str], working_dir: str) -> Judged:
    """Look the program and the folder of a command up as its start would, and apply the rules."""
    folder = _followed(working_dir)
    program = find_program(argv[0], env.get("PATH", os.defpath), folder)
    command = Command(argv, program, folder, env)
    rule = allowing(rules.allow or (), command)
    # The same file, in the place of the policy: in that of the job another one can take its place until it is started.
    return Judged(refusal(rules, command), program if rule is None else rule.program, folder)


def find_program(name: str, search_path: str, folder: str) -> Program | None:
    """What execvp(3) would start for `name` in `folder`; None if there is nothing to execute."""
    places = (name,) if "/" in name else (os.path.join(place, name) for place in search_path.split(":"))
    for place in places:
        found = os.path.join(folder, place)
        try:
            file = os.path.realpath(found)
            status = os.stat(file)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode) and os.access(file, os.X_OK, effective_ids=True):
            return Program(found, file, (status.st_dev, status.st_ino))
    return None


def _followed(folder: str) -> str:
    """Without symlinks. As it is, if one of them becomes something else meanwhile: no command is started elsewhere than
    in the very folder that was judged."""
    try:
        return os.path.realpath(folder)
    except OSError:
        return folder


def _rule(words: tuple[str, ...], search_path: str) -> Rule:
    return Rule(words, find_program(words[0], search_path, "/"))


def _trusted_text(path: Path) -> str | None:
    """The text of the file; None if there is none. Raises ConfigError if others can change it."""
    try:
        file = Path(os.path.realpath(path))
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(f"{path}, the policy for commands, is a link that leads nowhere") from None
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the policy for commands in {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}, the policy for commands, is no file")
        _require_ours(str(path), status)
        for folder in {path.parent, file.parent}:
            _require_ours(f"{folder}, the folder of the policy for commands,", os.stat(folder))
        data = os.read(fd, _MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the policy for commands in {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if not data or len(data) > _MAX_BYTES:
        what = f"has more than {_MAX_BYTES} bytes" if data else "is empty; remove it if commands shall be free"
        raise ConfigError(f"{path}, the policy for commands, {what}")
    try:
        return decoded(data)
    except ValueError as error:
        raise ConfigError(f"{path}, the policy for commands, cannot be read: {error}") from error


def _require_ours(what: str, status: os.stat_result) -> None:
    """Root may change everything anyway; in a sticky folder nobody can replace what is not theirs."""
    if status.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(f"{what} belongs to user id {status.st_uid}, not to you; look who changed it")
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & 0o022 and not sticky:
        raise ConfigError(f"{what} can be changed by others; look whether it is as you want it, then chmod go-w it")


def _policy(path: Path, text: str) -> Policy:
    import tomllib  # only where there is a file to read

    try:
        values = tomllib.loads(text)
        for key in values:
            known = Policy.__struct_fields__
            _require(key in known, key, f"is no key of a policy{suggestion(key, known)}")
        return _checked(msgspec.convert(values, Policy))
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}, the policy for commands, cannot be used: {error}") from error


def _checked(policy: Policy) -> Policy:
    """The policy with absolute paths. Raises ValueError for what can mean nothing."""
    directories = policy.directories
    for place in policy.path.split(":"):
        _require(os.path.isabs(place), "path", f"has {place!r}, which is no absolute folder")
    return Policy(
        directories=None if directories is None else tuple(_absolute("directories", one) for one in directories),
        allow=None if policy.allow is None else tuple(_checked_words("allow", words) for words in policy.allow),
        deny=tuple(_checked_words("deny", words) for words in policy.deny),
        path=policy.path,
    )


def _checked_words(key: str, words: tuple[str, ...]) -> tuple[str, ...]:
    _require(bool(words and words[0]), key, "has a rule without a program")
    _require(not any("\0" in word for word in words), key, "has a NUL, which no command can have")
    return (_absolute(key, words[0]), *words[1:]) if "/" in words[0] else words


def _absolute(key: str, path: str) -> str:
    expanded = os.path.expanduser(path)
    _require("\0" not in path, key, "has a NUL, which no path can have")
    _require(os.path.isabs(expanded), key, f"has {path!r}, which is no absolute path (a name alone is a program)")
    return expanded


def _require(condition: Any, key: str, what: str) -> None:
    if not condition:
        raise ValueError(f"`{key}` {what}")
