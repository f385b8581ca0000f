"""Arguments and results of tasks as JSON, by the annotations of the function. Never pickle.

The payload is one JSON object by parameter name, positional-only parameters too. `*paths` is a list under `paths`,
`**options` an object under `options`; what was not given is not in it, so that the defaults of the function that runs
count. A parameter without annotation takes and gets plain JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from types import GenericAlias
from typing import Any, Union, Unpack, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from semtask.tasks import json_schema, json_types
from semtask.tasks.forms import Form, Unfit, encode

_VARIABLE = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


class EncodeError(TypeError):
    """An argument or a result that is no JSON, or not of its annotated type."""


class BadPayload(ValueError):
    """A stored payload, or result, that does not fit the function."""


class Signature:
    """What a task takes and returns. Nothing of the function's annotations is looked at before it is needed.

    The first use raises UnsupportedType for an annotation that cannot be resolved, or that has no JSON form.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function = function
        self._name = name

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The payload of a call. Raises TypeError for a call that Python would refuse, and EncodeError."""
        given = self._bind(args, kwargs)
        forms = self._forms
        plain: dict[str, Any] = {}
        name = ""
        try:
            for name, value in given.items():
                plain[name] = forms[name].write(value)
            if self._required <= plain.keys():
                return encode({name: plain[name] for name in self._names if name in plain} if kwargs else plain)
        except Exception as error:  # also what a class of the user raises
            self._require_call(args, kwargs)
            name = self._blamed(plain, name)
            raise EncodeError(f"argument '{name}' of {self._name}: {_reason(error, name)}") from error
        self._require_call(args, kwargs)
        raise AssertionError("Python would refuse the call")

    def decode_arguments(self, payload: str | bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs), ready to call. Raises BadPayload."""
        try:
            arguments = self._arguments_decoder.decode(payload)
        except Exception as error:  # also what a class of the user raises
            raise BadPayload(self._explain(payload, error)) from error
        if self._only_keywords:
            return (), {name: value for name in self._names if (value := getattr(arguments, name)) is not UNSET}
        return self._spread(arguments)

    def encode_result(self, value: Any) -> bytes:
        """A result as JSON. Raises EncodeError."""
        try:
            return encode(self._returns.write(value))
        except Exception as error:  # also what a class of the user raises
            reason = _reason(error, "result")
            if inspect.iscoroutine(value):
                value.close()
                reason = (
                    "it returned a coroutine, which nobody awaits: Python does not take it for async, as a decorator "
                    "of it is not; make the decorator's function `async def`"
                )
            raise EncodeError(f"the result of {self._name}: {reason}") from error

    def decode_result(self, data: str | bytes) -> Any:
        """Raises BadPayload, where the function has changed since."""
        try:
            return self._result_decoder.decode(data)
        except Exception as error:
            raise BadPayload(f"the result does not fit {self._name}, which may have changed: {error}") from error

    def parameters_schema(self) -> dict[str, Any]:
        """The JSON schema of the payload: one object without references to the outside."""
        schema = json_schema.schema(self._arguments, self._where)
        properties = schema.setdefault("properties", {})
        for name, parameter in self._parameters.items():
            if parameter.default is not parameter.empty and (default := self._default_of(name, parameter)) is not UNSET:
                properties[name] = {**properties[name], "default": default}
        schema.setdefault("required", [])
        return schema | {"title": self._name}

    def _default_of(self, name: str, parameter: inspect.Parameter) -> Any:
        """A default as plain JSON; UNSET where it is none."""
        try:
            return msgspec.json.decode(encode(self._forms[name].write(parameter.default)))
        except Exception:  # noqa: BLE001 - a default need not be JSON, or of its type: it is never sent
            return UNSET

    def returns_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the result; None without an annotation."""
        return json_schema.schema(self._returns.read_as, self._where) if "return" in self._annotated else None

    # --- what the function says -------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"the task {self._name}"

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return dict(self._signature.parameters)

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return json_types.hints_of(self._function, self._where)

    @cached_property
    def _names(self) -> list[str]:
        return list(self._parameters)

    @cached_property
    def _positional(self) -> list[str]:
        return [name for name, parameter in self._parameters.items() if parameter.kind in _POSITIONAL]

    @cached_property
    def _only_keywords(self) -> bool:
        """Whether every parameter can be passed by its name."""
        by_name = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
        return all(parameter.kind in by_name for parameter in self._parameters.values())

    @cached_property
    def _annotated(self) -> set[str]:
        """What says more than Any."""
        return {name for name, hint in self._hints.items() if hint is not Any}

    @cached_property
    def _required(self) -> set[str]:
        return {n for n, p in self._parameters.items() if p.default is p.empty and p.kind not in _VARIABLE}

    @cached_property
    def _forms(self) -> dict[str, Form]:
        """One for each parameter."""
        return {name: self._form_of(name, parameter) for name, parameter in self._parameters.items()}

    def _form_of(self, name: str, parameter: inspect.Parameter) -> Form:
        kind = self._hints.get(name, Any)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            kind = GenericAlias(list, (kind,))
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kind = get_args(kind)[0] if get_origin(kind) is Unpack else GenericAlias(dict, (str, kind))
        return json_types.form_of(kind, f"parameter '{name}' of {self._where}")

    @cached_property
    def _arguments(self) -> type[msgspec.Struct]:
        """A Struct with one field for each parameter."""
        fields: list[Any] = []
        for name, form in self._forms.items():
            kind = form.read_as
            if name in self._required:
                fields.append((name, kind))
            else:
                fields.append((name, kind if kind is Any else Union[kind, UnsetType], UNSET))  # noqa: UP007
        return json_types.struct_of(fields, self._where)

    @cached_property
    def _returns(self) -> Form:
        return json_types.form_of(self._hints.get("return", Any), f"the result of {self._where}")

    @cached_property
    def _arguments_decoder(self) -> msgspec.json.Decoder[Any]:
        return json_types.decoder(self._arguments)

    @cached_property
    def _result_decoder(self) -> msgspec.json.Decoder[Any]:
        return json_types.decoder(self._returns.read_as)

    # --- calls ------------------------------------------------------------------------------------------------------

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name. Whether any are missing, or unknown, is not looked at here."""
        if self._only_keywords and len(args) <= len(self._positional):
            given = dict(zip(self._positional, args, strict=False))
            given.update(kwargs)
            if len(given) == len(args) + len(kwargs):
                return given
        bound = self._require_call(args, kwargs)
        return {
            name: list(value) if self._parameters[name].kind is inspect.Parameter.VAR_POSITIONAL else value
            for name, value in bound.arguments.items()
        }

    def _require_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """Raises TypeError, as a call would."""
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}: {error}") from None

    @staticmethod
    def _blamed(plain: dict[str, Any], name: str) -> str:
        """The argument that does not fit: the one that was written last, unless all of them were."""
        for written, value in plain.items():
            try:
                encode(value)
            except Exception:  # noqa: BLE001 - it is looked for, not handled
                return written
        return name

    def _spread(self, arguments: msgspec.Struct) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        variable = next((n for n, p in self._parameters.items() if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
        rest = [] if variable is None else getattr(arguments, variable)
        for name, parameter in self._parameters.items():
            value = getattr(arguments, name)
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (rest and parameter.kind in _POSITIONAL):
                args.append(parameter.default if value is UNSET else value)
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(rest or ())
            elif value is not UNSET and parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif value is not UNSET:
                kwargs[name] = value
        return tuple(args), kwargs

    def _explain(self, payload: str | bytes, error: Exception) -> str:
        """Why a payload does not fit: all missing and unknown arguments, otherwise the place of the wrong value."""
        where = f"the arguments do not fit {self._name}{self._signature}"
        try:
            stored = msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return f"{where}: {error}"
        missing = [f"'{name}' is missing" for name in self._parameters if name in self._required - stored.keys()]
        unknown = [f"'{name}' is unknown" for name in stored if name not in self._parameters]
        if missing or unknown:
            return f"{where}: {', '.join(missing + unknown)}; they may come from another version of it"
        return f"{where}: {error}"


def _reason(error: Exception, name: str) -> str:
    """What is wrong with a value, and where in it."""
    if isinstance(error, RecursionError):
        return "it contains itself, or is nested too deeply"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"a str with a lone surrogate is no text, and cannot be sent: surrogates not allowed ({error.object!r:.80})"
        )
    if isinstance(error, Unfit):
        return f"{error.reason} (at {name}{error.place})" if error.place else error.reason
    return str(error) or type(error).__name__
