"""The life of a job in words and as a diagram, from model/state.py and model/outcome.py."""

from collections.abc import Collection, Mapping
from typing import Any, get_args, get_type_hints

from generator import glossary
from generator.markdown import code, compare, sentence, table
from semtask.model.outcome import FailureClass
from semtask.model.state import FINAL, RANK, TRANSITIONS, WAITING, EndCause, Event, State, StopReason
from semtask.protocol.jobs import Waiting


def diagram() -> str:
    lines = ["stateDiagram-v2", "    [*] --> QUEUED: enqueue", "    [*] --> SCHEDULED: enqueue for later"]
    arrows: dict[tuple[State, State], list[str]] = {}
    for (before, event), after in TRANSITIONS.items():
        arrows.setdefault((before, after), []).append(event.value)
    lines += [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in arrows.items()]
    lines += [f"    {state} --> [*]" for state in State if state in FINAL]
    return "\n".join(["```mermaid", *lines, "```"])


def states() -> str:
    kind = {state: "waits" if state in WAITING else "final" if state in FINAL else "runs" for state in State}
    return _explained(glossary.STATES, list(State), "state", {state: [word] for state, word in kind.items()})


def events() -> str:
    compare(glossary.EVENTS, list(Event), "docs/generator/glossary.py, EVENTS")
    rows = [(code(b), code(e), code(a), sentence(glossary.EVENTS.get(e, ""))) for (b, e), a in TRANSITIONS.items()]
    return table(["from", "event", "to", "when"], rows)


def stop_reasons() -> str:
    compare(glossary.STOP_REASONS, list(StopReason), "docs/generator/glossary.py, STOP_REASONS")
    ranked = sorted(StopReason, key=lambda reason: RANK[reason])
    rows = [(RANK[r], code(r), *map(sentence, glossary.STOP_REASONS.get(r, ("", "")))) for r in ranked]
    return table(["rank", "stop_reason", "why", "what follows"], rows)


def end_causes() -> str:
    return _explained(glossary.END_CAUSES, list(EndCause), "end_cause")


def waiting_reasons() -> str:
    return _explained(glossary.WAITING, get_args(get_type_hints(Waiting)["reason"]), "reason")


def failure_classes() -> str:
    compare(glossary.FAILURES, list(FailureClass), "docs/generator/glossary.py, FAILURES")
    rows = [(code(c), sentence(what), sentence(then), count) for c, (what, then, count) in glossary.FAILURES.items()]
    return table(["class", "what happened", "what follows", "counted in"], rows)


def _explained(
    meanings: Mapping[Any, str], words: Collection[Any], name: str, more: Mapping[Any, list[str]] | None = None
) -> str:
    compare(meanings, words, f"docs/generator/glossary.py, the words of {name}")
    between = [""] if more else []
    rows = [(code(w), *(more or {}).get(w, []), sentence(meanings.get(w, ""))) for w in words]
    return table([name, *between, "meaning"], rows)
