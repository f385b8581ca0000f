"""The settings and the environment variables, from config/settings.py."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from generator import glossary
from generator.markdown import code, compare, gaps, sentence, table
from semtask.config.environment import OTHER_ENV
from semtask.config.settings import Settings, documented, schema


def settings() -> str:
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    computed = [name for name, _, _ in documented() if defaults[name] in {dataclasses.MISSING, None}]
    compare(glossary.DEFAULTS, computed, "docs/generator/glossary.py, DEFAULTS")
    values = schema()["properties"]
    rows = []
    for name, variable, meaning in documented():
        if not meaning:
            gaps.append(f"config/settings.py: nothing explains {name}")
        default = glossary.DEFAULTS.get(name) or code(_written(defaults[name]))
        rows.append((code(name), code(variable), default, _values(values[name]), sentence(meaning)))
    return table(["in a file", "environment", "default", "values", "meaning"], rows)


def variables() -> str:
    compare(glossary.ENVIRONMENT, OTHER_ENV, "docs/generator/glossary.py, ENVIRONMENT")
    return table(["environment", "meaning"], [(code(n), sentence(what)) for n, what in glossary.ENVIRONMENT.items()])


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _values(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"] if isinstance(value, str))
    if schema["type"] in {"integer", "number"}:
        return f"{schema['minimum']:,} to {schema['maximum']:,}"
    if schema["type"] == "object":
        keys = schema["additionalProperties"]["properties"].items()
        return ", ".join(f"{code(key)} ({values['description']})" for key, values in keys)
    return {"string": "a path", "array": "a list; in the environment with commas"}[schema["type"]]
