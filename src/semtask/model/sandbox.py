"""How far a command is kept apart from the rest of the machine. Standard library only: launcher and shims import it."""

from __future__ import annotations

from enum import StrEnum


class SandboxLevel(StrEnum):
    """From the weakest to the strongest; docs/how-to/sandbox-commands.md says what each one stops, and what not.

    If the level is not available on this machine, the job fails; it never runs with less than was asked for.
    """

    NONE = "none"
    LIMITS = "limits"  # no new privileges, and limits of the kernel for each process
    LANDLOCK = "landlock"  # besides: files, TCP, signals and abstract sockets, by the rules of Landlock
    BWRAP = "bwrap"  # besides: namespaces of its own, made by bubblewrap


_ORDER = list(SandboxLevel)

# The limits that a sandbox can set, each for every process by itself: the name, and the least that programs start with.
LEAST_LIMITS = {"memory_mb": 16, "cpu_seconds": 1, "open_files": 16, "file_mb": 1}


def strongest(*levels: SandboxLevel) -> SandboxLevel:
    return max(levels, key=_ORDER.index)


def confines(level: SandboxLevel) -> bool:
    """Whether it says which files a command can reach."""
    return level in {SandboxLevel.LANDLOCK, SandboxLevel.BWRAP}
