"""What `doctor` finds out about the sandbox levels of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from semtask.cli.doctor.patient import Finding, Patient, fail, ok
from semtask.host import isolation, linux, procfs
from semtask.model.sandbox import SandboxLevel

_PROBE_S = 10


def sandbox(patient: Patient) -> Iterator[Finding]:
    """One finding for each level."""
    pid = patient.pid
    confined = linux.has_no_new_privs() if pid is None else procfs.no_new_privs(pid) is True
    wanted = patient.settings.sandbox
    for level in SandboxLevel:
        if level is SandboxLevel.NONE:
            continue
        why = isolation.why_not(level, daemon_confined=confined)
        if why is None and level is SandboxLevel.BWRAP:
            why = _try_bubblewrap()
        if why is None:
            yield ok(f"{level.value} is available")
        elif level.value == wanted:
            yield fail(f"{level.value} is not available, so no command runs: {why}", "another SEMANTICA_SANDBOX")
        else:
            yield ok(f"{level.value} is not available, and jobs that ask for it fail: {why}")


def _try_bubblewrap() -> str | None:
    """Whether it is allowed to make namespaces shows only when it does."""
    program = isolation.bubblewrap()
    assert program is not None, "it was found just now"
    root = os.open("/", os.O_PATH)
    words = [program, "--unshare-all", "--die-with-parent", "--ro-bind-fd", str(root), "/", "--proc", "/proc"]
    try:
        said = subprocess.run(
            [*words, "--", "true"], pass_fds=[root], capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{program} does not come to an end"
    finally:
        os.close(root)
    return None if said.returncode == 0 else said.stderr.strip().removeprefix("bwrap: ") or "it does not say why"
