"""The error tree. One class per JSON-RPC code; client and server raise the same classes.

SemtaskError
├── RpcError                  has a JSON-RPC code and a stable `kind`
│   ├── ParseError            -32700  the body is no JSON
│   ├── InvalidRequest        -32600  JSON, but no JSON-RPC 2.0 request
│   ├── MethodNotFound        -32601
│   ├── InvalidParams         -32602  params is no object and no array, or has too many
│   ├── ValidationError        4000   a parameter is missing, unknown, of a wrong type or value, or not served yet
│   ├── NotFound               4001
│   ├── Conflict               4002   the wrong state, or a duplicate
│   ├── Throttled              4003   try again later
│   ├── Unauthorized           4004
│   ├── InternalError          5000
│   ├── DatabaseError          5001
│   └── SystemFailure          5002   the operating system refused
├── DaemonUnavailable         no daemon answers
└── StartupError              the daemon cannot start; has an exit code
    └── ConfigError           a setting is wrong

The docstring of a class is its default message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class SemtaskError(Exception):
    """Something went wrong in semtask."""

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (self.__doc__ or "").strip()
        super().__init__(self.message)


class RpcError(SemtaskError):
    """The daemon refused the request."""

    code: ClassVar[int] = 5000
    kind: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(
        self,
        message: str | None = None,
        *,
        details: dict[str, Any] | None = None,
        retry_after_ms: int | None = None,
        trace_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.details = details or {}
        self.retry_after_ms = retry_after_ms
        self.trace_id = trace_id

    def to_wire(self) -> dict[str, Any]:
        """The `error` object of a JSON-RPC response."""
        data: dict[str, Any] = {"kind": self.kind, "details": self.details, "trace_id": self.trace_id}
        if self.retry_after_ms is not None:
            data["retry_after_ms"] = self.retry_after_ms
        return {"code": self.code, "message": self.message, "data": data}


class ParseError(RpcError):
    """The request body is not valid JSON."""

    code = -32700
    kind = "PARSE_ERROR"


class InvalidRequest(RpcError):
    """The request is not a JSON-RPC 2.0 request."""

    code = -32600
    kind = "INVALID_REQUEST"


class MethodNotFound(RpcError):
    """There is no such method. `rpc.discover` lists the methods of this daemon."""

    code = -32601
    kind = "METHOD_NOT_FOUND"


class InvalidParams(RpcError):
    """The parameters of a method are one JSON object, by name, or one array, in the order of the reference."""

    code = -32602
    kind = "INVALID_PARAMS"


class ValidationError(RpcError):
    """A parameter is not valid."""

    code = 4000
    kind = "VALIDATION_ERROR"


class NotFound(RpcError):
    """There is no such thing."""

    code = 4001
    kind = "NOT_FOUND"


class Conflict(RpcError):
    """The request does not fit the present state; nothing was changed."""

    code = 4002
    kind = "CONFLICT"


class Throttled(RpcError):
    """The daemon cannot take this now. Try again later."""

    code = 4003
    kind = "THROTTLED"


class Unauthorized(RpcError):
    """You may not do this."""

    code = 4004
    kind = "UNAUTHORIZED"


class InternalError(RpcError):
    """The daemon failed on this request. Its log has the traceback under the trace id."""

    code = 5000
    kind = "INTERNAL_ERROR"


class DatabaseError(RpcError):
    """The database failed."""

    code = 5001
    kind = "DB_ERROR"


class SystemFailure(RpcError):
    """The operating system refused."""

    code = 5002
    kind = "SYSTEM_ERROR"


BY_CODE: dict[int, type[RpcError]] = {
    cls.code: cls
    for cls in (
        ParseError,
        InvalidRequest,
        MethodNotFound,
        InvalidParams,
        ValidationError,
        NotFound,
        Conflict,
        Throttled,
        Unauthorized,
        InternalError,
        DatabaseError,
        SystemFailure,
    )
}


def from_wire(error: dict[str, Any]) -> RpcError:
    """The exception for the `error` object of a JSON-RPC response; an unknown code becomes RpcError."""
    data = error.get("data") or {}
    cls = BY_CODE.get(error.get("code", 0), RpcError)
    return cls(
        str(error.get("message") or ""),
        details=data.get("details") or {},
        retry_after_ms=data.get("retry_after_ms"),
        trace_id=data.get("trace_id"),
    )


class DaemonUnavailable(SemtaskError):
    """No semtask daemon answers. Start one with `semtask up`."""


EXIT_DISK_FAILED = 74  # of a daemon that could not read or write its database any more
EXIT_OTHER_DAEMON = 100  # of a process that needs a home which a daemon owns already


class StartupError(SemtaskError):
    """The daemon cannot start."""

    def __init__(self, message: str | None = None, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ConfigError(StartupError):
    """A setting is not valid."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, exit_code=2)


def suggestion(name: str, known: Iterable[str], *, alike: float = 0.6) -> str:
    """' (did you mean ...?)' for a message, or '': the name that is most alike, if it is so by this much (0 to 1)."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=alike)
    return f" (did you mean {close[0]!r}?)" if close else ""
