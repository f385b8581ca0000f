"""Which project a task belongs to. Tasks of two projects may have one name: their jobs must not be mixed up."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

_INSTALLED = re.compile(r".*/(?:site|dist)-packages/")
_LONGEST = 4096


def source_of(function: Callable[..., Any]) -> str | None:
    """The file that defines the function, its links resolved; below site-packages the part behind that, which is the
    same in every environment. None for what is defined in no file.
    """
    plain = inspect.unwrap(function)
    namespace = getattr(plain, "__globals__", None)
    if namespace is None:
        namespace = getattr(sys.modules.get(plain.__module__), "__dict__", {})
    file = namespace.get("__file__")
    if not isinstance(file, str):
        return None
    file = file.removesuffix("c") if file.endswith(".pyc") else file
    path = os.fsencode(os.path.realpath(file)).decode(errors="backslashreplace")
    return _INSTALLED.sub("", path)[-_LONGEST:]
