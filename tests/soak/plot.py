"""The samples of a soak as one picture: small multiples over time, with the faults as vertical lines."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.soak.run import Result

MIB = 1024.0
# title, unit, [(metric of the home, label, divisor)]
PANELS: tuple[tuple[str, tuple[tuple[str, str, float], ...]], ...] = (
    ("daemon: descriptors", (("daemon_descriptors", "descriptors", 1),)),
    ("daemon: threads", (("daemon_threads", "threads", 1),)),
    ("daemon: memory, MiB", (("daemon_rss_kb", "RSS", MIB), ("daemon_pss_kb", "PSS", MIB))),
    ("CPU, cores", (("daemon_cpu_s", "daemon", 1), ("launcher_cpu_s", "launcher", 1))),
    (
        "launcher: descriptors and threads",
        (("launcher_descriptors", "descriptors", 1), ("launcher_threads", "threads", 1)),
    ),
    ("helpers: processes", (("shim_processes", "shims", 1), ("worker_processes", "workers", 1))),
    ("helpers: descriptors", (("shim_descriptors", "shims", 1), ("worker_descriptors", "workers", 1))),
    (
        "helpers: PSS, MiB",
        (("launcher_pss_kb", "launcher", MIB), ("shim_pss_kb", "shims", MIB), ("worker_pss_kb", "workers", MIB)),
    ),
    ("database, MiB", (("database_bytes", "database", MIB * MIB), ("wal_bytes", "WAL", MIB * MIB))),
    ("disk of the home, MiB", (("disk_bytes", "disk", MIB * MIB),)),
    ("rows", (("rows", "jobs in the database", 1),)),
    ("in flight", (("queued", "queued", 1), ("running", "running", 1), ("attempt_folders", "attempt folders", 1))),
)
MARKS = {
    "daemon": ("#c0392b", "-", 1.4, "kill -9 daemon"),
    "launcher": ("#8e44ad", ":", 1.0, "kill -9 launcher"),
    "shim": ("#34495e", ":", 0.8, "kill -9 shim"),
    "worker": ("#2980b9", ":", 0.8, "kill -9 worker"),
    "squeeze": ("#e67e22", "--", 0.9, "too few descriptors"),
    "slow clients": ("#16a085", "--", 0.9, "slow clients"),
}
COLUMNS = 3


def plot(result: Result, title: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(PANELS) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(16, 2.6 * rows + 1.4), sharex=True, layout="constrained")
    for axis, (name, lines) in zip(axes.flat, PANELS, strict=True):
        _panel(axis, name, lines, result)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    legend = [
        pyplot.Line2D([], [], color=color, linestyle=style, linewidth=width, label=label)
        for kind, (color, style, width, label) in MARKS.items()
        if any(what == kind for _, what in result.marks)
    ]
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axis: Any, name: str, lines: tuple[tuple[str, str, float], ...], result: Result) -> None:
    for at, what in result.marks:
        if what in MARKS:
            color, style, width, _ = MARKS[what]
            axis.axvline(at, color=color, linestyle=style, linewidth=width, alpha=0.55, zorder=0)
    for metric, label, divisor in lines:
        known = [(at, value / divisor) for at, told in result.homes if (value := told[metric]) is not None]
        if metric.endswith("_cpu_s"):
            known = _rates(known)
        axis.plot([at for at, _ in known], [value for _, value in known], label=label, linewidth=1.1)
    axis.set_title(name, fontsize=10, loc="left")
    axis.set_ylim(bottom=0)
    axis.margins(x=0.01)
    axis.grid(visible=True, axis="y", alpha=0.25)
    axis.tick_params(labelsize=8)
    if len(lines) > 1:
        axis.legend(fontsize=8, loc="best", framealpha=0.7)


def _rates(known: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Per second; a new process begins anew."""
    pairs = pairwise(known)
    return [(at, (now - then) / (at - before)) for (before, then), (at, now) in pairs if now >= then]
