"""An app: a Python module that registers tasks, and where and with what it is run."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class AppState(StrEnum):
    STARTING = "starting"  # its first worker imports it
    READY = "ready"
    FAILED = "failed"  # it cannot be imported, or offers what another app offers


class App(msgspec.Struct, frozen=True, kw_only=True):
    """`name` tells the apps of a daemon apart. `module` is `package.module:attribute`, imported in `directory` by the
    interpreter `python` (both absolute), which has semtask and all that the app needs.
    """

    name: str
    module: str
    directory: str
    python: str
