"""A daemon on a machine that has no sandboxes: no Landlock that is new enough, and the bwrap that TEST_BWRAP names."""

from __future__ import annotations

import os
import sys

from semtask.cli.main import main
from semtask.host import isolation, landlock

if __name__ == "__main__":
    landlock.abi = lambda: 5  # type: ignore[assignment]
    isolation.bubblewrap = lambda: os.environ.get("TEST_BWRAP")
    sys.exit(main())
