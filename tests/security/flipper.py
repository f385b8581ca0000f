"""Exchanges two names for each other without end. Run as a program; standard library only."""

from __future__ import annotations

import ctypes
import os
import sys
import time

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_PAUSE_S = 0.0005

if __name__ == "__main__":
    one, other = map(os.fsencode, sys.argv[1:])
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    while True:
        if renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE):
            raise OSError(ctypes.get_errno(), "the names cannot be exchanged")
        time.sleep(_PAUSE_S)
