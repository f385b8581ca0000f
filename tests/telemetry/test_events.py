from __future__ import annotations

import logging
from typing import Any

import pytest

from semtask.telemetry.events import Committed, Events, RequestAnswered


def test_handlers_get_the_events_of_their_type_in_order() -> None:
    events = Events()
    seen: list[Any] = []
    events.attach(Committed, lambda event: seen.append(("first", event)))
    events.attach(Committed, lambda event: seen.append(("second", event)))
    events.attach(RequestAnswered, lambda event: seen.append(("other", event)))
    events.emit(Committed(0.5))
    assert seen == [("first", Committed(0.5)), ("second", Committed(0.5))]


def test_what_nobody_listens_to_is_dropped() -> None:
    Events().emit(Committed(0.5))


def test_a_broken_exporter_is_logged_once_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    calls: list[float] = []
    seen: list[float] = []

    def broken(event: Committed) -> None:
        calls.append(event.seconds)
        raise ValueError("exporter out of order")

    events.attach(Committed, broken)
    events.attach(Committed, lambda event: seen.append(event.seconds))
    with caplog.at_level(logging.ERROR):
        for seconds in (1.0, 2.0, 3.0):
            events.emit(Committed(seconds))
    assert calls == seen == [1.0, 2.0, 3.0]
    [record] = caplog.records
    assert "Committed" in record.getMessage()
    assert "exporter out of order" in str(record.exc_info)
