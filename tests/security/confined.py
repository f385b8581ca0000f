"""The command line, and so the daemon, of somebody who is in a sandbox: with no_new_privs."""

from __future__ import annotations

import sys

from semtask.cli.main import main
from semtask.host import linux

if __name__ == "__main__":
    linux.set_no_new_privs()
    sys.exit(main())
