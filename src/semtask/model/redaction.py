"""Which values of an environment are not shown unless they are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "***"

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASS(WORD|WD|PHRASE|$|_)|KEY|CREDENTIAL|AUTH|COOKIE|PRIVATE|DSN|_PWD", re.IGNORECASE
)
# scheme://user:password@host, or a token in the place of the user
_SECRET_URL = re.compile(r"\w+://[^/\s@]+@")


def hide_secrets(env: Mapping[str, object]) -> dict[str, object]:
    """The environment with *** for each value whose name looks like that of a secret, or that is a URL with a login.

    It is a matter of names: a secret under a harmless name is shown.
    """
    return {name: HIDDEN if value and _is_secret(name, value) else value for name, value in env.items()}


def _is_secret(name: str, value: object) -> bool:
    return bool(_SECRET_NAME.search(name)) or _SECRET_URL.search(str(value)) is not None
