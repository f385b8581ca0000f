"""Which commands may run: the rules of the user's policy file, and what follows from them for a command.

Pure: programs and folders are looked up by the caller (`host.command_policy`) and passed in.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OF_THE_LOADER = "LD_"  # has other code run in whatever program is started


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy as its file says it. `allow` and `deny` are beginnings of command lines; None allows all.

    `path` is where programs that the rules name without a folder are looked for, whatever the PATH of a job says.
    """

    directories: tuple[str, ...] | None = None
    allow: tuple[tuple[str, ...], ...] | None = None
    deny: tuple[tuple[str, ...], ...] = ()
    path: str = DEFAULT_PATH


class Program(NamedTuple):
    """A file that can be executed: where it was found, what that is without symlinks, and its device and inode."""

    found: str
    file: str
    identity: tuple[int, int]


class Rule(NamedTuple):
    """`program` is what the first word means now; None if there is no such program."""

    words: tuple[str, ...]
    program: Program | None


class Rules(NamedTuple):
    """A policy with everything in it looked up; `directories` are without symlinks."""

    directories: tuple[str, ...] | None
    allow: tuple[Rule, ...] | None
    deny: tuple[Rule, ...]


class Command(NamedTuple):
    """A command with its program looked up as its start would do it; `working_dir` is without symlinks."""

    argv: Sequence[str]
    program: Program | None
    working_dir: str
    env: Mapping[str, str]


class Refusal(NamedTuple):
    """`rule` is the line of the policy, as one would look for it in the file. Neither tells arguments of the command:
    they may be secrets."""

    rule: str
    why: str


def about(policy: Policy, argv: Sequence[str]) -> Policy:
    """The policy with those of its rules alone that can be about this command line: programs are slow to look up."""
    allow = policy.allow
    return msgspec.structs.replace(
        policy,
        allow=None if allow is None else tuple(words for words in allow if _may_allow(words, argv)),
        deny=tuple(words for words in policy.deny if _begins_with(argv, words)),
    )


def refusal(rules: Rules, command: Command) -> Refusal | None:
    """Why the command may not run; None if it may. `deny` wins over `allow`."""
    return _denied(rules.deny, command) or _not_allowed(rules.allow, command) or _misplaced(rules.directories, command)


def _denied(deny: Iterable[Rule], command: Command) -> Refusal | None:
    for rule in deny:
        if _begins_with(command.argv, rule.words) and _may_mean(rule, command):
            return Refusal(f"deny = [{_shown(rule.words)}]", f"`{shlex.join(rule.words)}` is denied")
    return None


def _may_mean(rule: Rule, command: Command) -> bool:
    """Whether a rule that denies is about this program: by any of its names, or because it is the same file."""
    name, program = rule.words[0], command.program
    if program is not None and rule.program is not None and program.identity == rule.program.identity:
        return True
    places = [command.argv[0], *((program.found, program.file) if program is not None else ())]
    if "/" in name:
        return name in places
    return name in map(_name, places)


def _not_allowed(allow: Sequence[Rule] | None, command: Command) -> Refusal | None:
    if allow is None:
        return None
    if command.program is None:
        return Refusal("allow", f"there is no program {command.argv[0]!r}, hence none that it allows")
    if allowing(allow, command) is None:
        return Refusal("allow", f"it has no beginning of this command, whose program is {command.program.file}")
    for variable in sorted(command.env):
        if variable.startswith(_OF_THE_LOADER):
            why = f"the variable {variable} could have other code run in an allowed program"
            return Refusal("allow", why)
    return None


def allowing(allow: Iterable[Rule], command: Command) -> Rule | None:
    """The rule by which the command may run, unless something else speaks against it."""
    return next((rule for rule in allow if _may_allow(rule.words, command.argv) and _means(rule, command)), None)


def _means(rule: Rule, command: Command) -> bool:
    """Whether a rule that allows is about the file of this program."""
    return (
        rule.program is not None and command.program is not None and rule.program.identity == command.program.identity
    )


def _may_allow(words: Sequence[str], argv: Sequence[str]) -> bool:
    """By its words. The name counts because some files are many programs (busybox), and go by it."""
    return _begins_with(argv, words) and _name(words[0]) == _name(argv[0])


def _misplaced(directories: Sequence[str] | None, command: Command) -> Refusal | None:
    if directories is None or any(_is_inside(command.working_dir, folder) for folder in directories):
        return None
    return Refusal("directories", f"the working directory {command.working_dir} is in none of them")


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _begins_with(argv: Sequence[str], words: Sequence[str]) -> bool:
    """Of the arguments: what the first words mean is no matter of their spelling."""
    return tuple(argv[1 : len(words)]) == tuple(words[1:])


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _shown(words: Sequence[str]) -> str:
    return msgspec.json.encode(words).decode()
