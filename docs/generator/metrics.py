"""What GET /metrics answers, from the exporter itself."""

from collections.abc import Iterator

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from generator.markdown import code, gaps, table
from semtask.model.state import State
from semtask.telemetry import metrics as exporter
from semtask.telemetry.events import Levels

# One of each, so that every series with labels is there.
_LEVELS = Levels(
    jobs={"default": {State.QUEUED: 1}}, oldest_ready_s={"default": 1.0}, counters={}, db_size_bytes=0, db_wal_bytes=0
)


def metrics() -> str:
    return table(["metric", "type", "labels", "meaning"], _rows())


def _rows() -> Iterator[tuple[str, str, str, str]]:
    source = exporter.Metrics(version="", sqlite="")
    lasting = {name: counter for counter, (name, _) in exporter._KEPT.items()}
    # A series with labels has no sample before it is used: the client library knows them all the same.
    collectors = [c for c in source._registry._collector_to_names if isinstance(c, MetricWrapperBase)]
    declared = {c._name: c._labelnames for c in collectors}
    for family in text_string_to_metric_families(source.render(_LEVELS).decode()):
        if family.name.startswith("process_"):
            continue
        if not family.documentation:
            gaps.append(f"telemetry/metrics.py: nothing explains {family.name}")
        seen = {label for sample in family.samples for label in sample.labels} - {"le"}
        labels = ", ".join(code(label) for label in declared.get(family.name) or sorted(seen))
        name = family.name + ("_total" if family.type == "counter" else "")
        counter = lasting.get(family.name)
        kept = f" Goes on over restarts: `{counter}`." if counter else ""
        yield code(name), family.type, labels, family.documentation + kept
