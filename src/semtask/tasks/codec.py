"""Arguments and results of tasks as JSON, by the annotations of the function. Never pickle.

The payload is one JSON object by parameter name, positional-only parameters too. `*paths` is a list under `paths`,
`**options` an object under `options`; what was not given is not in it, so that the defaults of the function that runs
count. A parameter without annotation takes and gets plain JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from types import GenericAlias, NoneType
from typing import Any, NoReturn, Union, Unpack, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from semtask.tasks import json_types
from semtask.tasks.json_types import UnsupportedType

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
        try:
            plain = json_types.to_plain(given)
            arguments = json_types.convert(plain, self._arguments)
            payload = self._write(arguments)
        except Exception as error:  # noqa: BLE001 - also what a class of the user raises
            self._refuse_arguments(args, kwargs, given, error)
        if b"null" in payload and (place := json_types.place_of_non_finite(given)) is not None:
            name, _, rest = place.partition(".")
            raise EncodeError(f"argument '{name}' of {self._name}: JSON has no NaN or infinity{_at(rest)}")
        return payload

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
        if value is None and self._returns in {Any, NoneType}:
            return b"null"
        try:
            result = json_types.encode(json_types.convert(json_types.to_plain(value), self._returns))
        except Exception as error:  # also what a class of the user raises
            raise EncodeError(f"the result of {self._name}: {_reason(error, value)}") from error
        if b"null" in result and (place := json_types.place_of_non_finite(value)) is not None:
            raise EncodeError(f"the result of {self._name}: JSON has no NaN or infinity{_at(place)}")
        return result

    def decode_result(self, data: str | bytes) -> Any:
        """Raises BadPayload, where the function has changed since."""
        try:
            return self._result_decoder.decode(data)
        except Exception as error:
            raise BadPayload(f"the result does not fit {self._name}, which may have changed: {error}") from error

    def parameters_schema(self) -> dict[str, Any]:
        """The JSON schema of the payload: one object without references to the outside."""
        schema = json_types.schema(self._arguments, self._where)
        properties = schema.setdefault("properties", {})
        for name, parameter in self._parameters.items():
            if parameter.default is not parameter.empty and (default := _as_default(parameter.default)) is not UNSET:
                properties[name] = {**properties[name], "default": default}
        schema.setdefault("required", [])
        return schema | {"title": self._name}

    def returns_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the result; None without an annotation."""
        return None if self._returns is Any else json_types.schema(self._returns, self._where)

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
    def _arguments(self) -> type[msgspec.Struct]:
        """A Struct with one field for each parameter."""
        fields: list[Any] = []
        for name, parameter in self._parameters.items():
            kind = self._hints.get(name, Any)
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                kind = GenericAlias(list, (kind,))
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kind = get_args(kind)[0] if get_origin(kind) is Unpack else GenericAlias(dict, (str, kind))
            if parameter.default is parameter.empty and parameter.kind not in _VARIABLE:
                fields.append((name, kind))
            else:
                fields.append((name, kind if kind is Any else Union[kind, UnsetType], UNSET))  # noqa: UP007
        struct = json_types.struct_of(fields, self._where)
        for name, kind, *_ in fields:
            json_types.require_json(kind, f"parameter '{name}' of {self._where}")
        return struct

    @cached_property
    def _write(self) -> Callable[[Any], bytes]:
        """Equal arguments make equal payloads, sets too: an idempotency key stands for them."""
        return json_types.encode_sorted if json_types.has_sets(self._arguments) else json_types.encode

    @cached_property
    def _returns(self) -> Any:
        returns = self._hints.get("return", Any)
        json_types.require_json(returns, f"the result of {self._where}")
        return returns

    @cached_property
    def _arguments_decoder(self) -> msgspec.json.Decoder[Any]:
        return json_types.decoder(self._arguments)

    @cached_property
    def _result_decoder(self) -> msgspec.json.Decoder[Any]:
        return json_types.decoder(self._returns)

    # --- calls ------------------------------------------------------------------------------------------------------

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name. Whether any are missing, or unknown, is not looked at here."""
        if self._only_keywords and len(args) <= len(self._positional):
            given = dict(zip(self._positional, args, strict=False))
            given.update(kwargs)
            if len(given) == len(args) + len(kwargs):
                return given
        try:
            return dict(self._signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{self._name}: {error}") from None

    def _refuse_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], given: dict[str, Any], error: Exception
    ) -> NoReturn:
        """Raise the error that names the argument."""
        if isinstance(error, UnsupportedType):
            raise error
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as refused:
            raise TypeError(f"{self._name}: {refused}") from None
        name, reason = self._blame(given, error)
        raise EncodeError(f"argument '{name}' of {self._name}: {reason}") from error

    def _blame(self, given: dict[str, Any], error: Exception) -> tuple[str, str]:
        for name, value in given.items():
            field = json_types.struct_of([(name, self._arguments.__annotations__[name])], self._where)
            try:
                json_types.encode(json_types.convert(json_types.to_plain({name: value}), field))
            except Exception as culprit:  # noqa: BLE001 - it is told, whatever it is
                return name, _reason(culprit, value, name)
        return "?", str(error)  # what fails together fails alone

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
        """Why a payload does not fit: all that is missing or unknown at once, else the place of what is wrong."""
        where = f"the arguments do not fit {self._name}{self._signature}"
        try:
            stored = msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return f"{where}: {error}"
        required = [n for n, p in self._parameters.items() if p.default is p.empty and p.kind not in _VARIABLE]
        missing = [f"'{name}' is missing" for name in required if name not in stored]
        unknown = [f"'{name}' is unknown" for name in stored if name not in self._parameters]
        if missing or unknown:
            return f"{where}: {', '.join(missing + unknown)}; they may come from another version of it"
        return f"{where}: {error}"


def _reason(error: Exception, value: Any, name: str = "") -> str:
    """What is wrong with a value, without the name of the argument where that is all of the place."""
    if isinstance(error, RecursionError):
        return "it contains itself, or is nested too deeply"
    text = str(error)
    if text.startswith("Encoding objects of type"):
        return f"a {type(value).__qualname__}, or something in it, has no JSON form ({text})"
    if not isinstance(error, msgspec.ValidationError):
        return text or type(error).__name__
    what, _, place = text.replace("`", "").partition(" - at ")
    place = place.replace("$.", "").replace("$", "")
    return f"{what[:1].lower()}{what[1:]}{'' if place == name else _at(place)}"


def _at(place: str) -> str:
    return f" (at {place})" if place else ""


def _as_default(value: Any) -> Any:
    """A default as plain JSON; UNSET where it is none."""
    try:
        return msgspec.json.decode(json_types.encode(value))
    except Exception:  # noqa: BLE001 - a default need not be JSON: it is never sent
        return UNSET
