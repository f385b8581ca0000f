"""What a task raises to say how it wants to go on. None of them is an error of semtask."""

from __future__ import annotations

from typing import Any


def _copied(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """As pickle and copy make one: an exception's own way calls the class with the message alone."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class Retry(Exception):
    """As an option of a task: how often and when a failed job is tried again. Raised: try this job again.

    `attempts` are the executions allowed (max_attempts of the API). The n-th retry waits base * factor**n seconds, at
    most `cap`. Raised, it counts as a failure like any exception; `delay` (seconds) then says when, in place of the
    formula.
    """

    def __init__(
        self,
        attempts: int = 1,
        *,
        base: float | None = None,
        factor: float = 2.0,
        cap: float = 3600.0,
        delay: float | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(reason)
        self.attempts = attempts
        self.base = base
        self.factor = factor
        self.cap = cap
        self.delay = delay

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, (type(self), self.args, self.__dict__)

    def __repr__(self) -> str:
        said = {"base": self.base, "factor": self.factor, "cap": self.cap, "delay": self.delay, "reason": str(self)}
        usual = {"base": None, "factor": 2.0, "cap": 3600.0, "delay": None, "reason": ""}
        others = [f"{name}={value!r}" for name, value in said.items() if value != usual[name]]
        return f"Retry({', '.join([repr(self.attempts), *others])})"


class Permanent(Exception):
    """Raised: this job has failed for good, whatever its attempts."""


class Cancel(Exception):
    """Raised: this job is not wanted any more; it ends CANCELLED."""


class Snooze(Exception):
    """Raised: run this job again in `seconds`. It costs no attempt of its budget."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        super().__init__(reason)
        self.seconds = seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, (type(self), self.args, self.__dict__)

    def __repr__(self) -> str:
        reason = f", {str(self)!r}" if str(self) else ""
        return f"Snooze({self.seconds!r}{reason})"


class Interrupted(BaseException):
    """Raised inside a task that is being stopped. A BaseException, so that `except Exception` does not swallow it.

    `reason` is a model.state.StopReason: timeout, deadline, cancel, superseded, shutdown.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the job is being stopped: {reason}")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, (type(self), self.args, self.__dict__)

    def __repr__(self) -> str:
        return f"Interrupted({self.reason!r})"
