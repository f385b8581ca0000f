"""The frames between daemon and worker, from protocol/frames.py."""

import inspect
from typing import get_args

import msgspec

from generator.markdown import code, gaps, paragraphs, table
from semtask.protocol import frames


def all_frames() -> str:
    sides = [("daemon to worker", get_args(frames.ToWorker)), ("worker to daemon", get_args(frames.ToDaemon))]
    said = _summaries()
    rows = []
    for side, kinds in sides:
        for kind in kinds:
            if kind.__name__ not in said:
                gaps.append(f"protocol/frames.py: its docstring says nothing about {kind.__name__}")
            rows.append((code(kind.__name__), side, said.get(kind.__name__, "")))
    overview = table(["frame", "from", "meaning"], rows)
    return "\n\n".join([overview, *(_frame(kind) for _, kinds in sides for kind in kinds), *map(_frame, _parts())])


def _summaries() -> dict[str, str]:
    """What the table in the docstring of the module says about each frame."""
    rows = (line.split(None, 4) for line in (frames.__doc__ or "").splitlines() if " -> " in line)
    return {row[0]: row[4] for row in rows}


def _frame(kind: type[msgspec.Struct]) -> str:
    required = set(kind.__struct_fields__[: len(kind.__struct_fields__) - len(kind.__struct_defaults__)])
    types = inspect.get_annotations(kind)
    fields = [code(f"{name}{'' if name in required else '?'}: {types[name]}") for name in kind.__struct_fields__]
    own = paragraphs(kind.__dict__.get("__doc__"))
    return "\n\n".join(filter(None, [f"### {kind.__name__}", own, ", ".join(fields)]))


def _parts() -> list[type[msgspec.Struct]]:
    """The structures inside of frames."""
    return [frames.Call, frames.TaskInfo, frames.ExceptionInfo, frames.ArtifactInfo, frames.ProgressInfo]
