"""Testing code that enqueues jobs. The pytest fixtures `semantica` and `semantica_daemon` are made of this.

`inline(folder)` and `private_daemon()` are the same without pytest, and for fixtures of other scopes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semtask.sdk.connection import answered_by
from semtask.testing.daemon import SemanticaDaemon, private_daemon
from semtask.testing.errors import JobNotEnded
from semtask.testing.inline import InlineSemantica

__all__ = ["InlineSemantica", "JobNotEnded", "SemanticaDaemon", "inline", "private_daemon"]


@contextmanager
def inline(folder: Path) -> Iterator[InlineSemantica]:
    """Run semtask in this process, with its database in an empty folder, for as long as this is entered."""
    semantica = InlineSemantica(folder)
    try:
        with answered_by(semantica):
            yield semantica
    finally:
        semantica.close()
