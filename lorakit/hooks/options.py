"""A plugin's options: the typed fields of its dataclass, and a call's options checked against them."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, NamedTuple, Union
from weakref import WeakKeyDictionary

from lorakit.errors import PluginError
from lorakit.language.statements import PluginCall, Value


class Option(NamedTuple):
    """One option of a plugin: its name, type, default (`dataclasses.MISSING` if it must be given) and meaning."""

    name: str
    type: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


class OptionError(ValueError):
    """A call's option is unknown, missing, of the wrong type or refused by the plugin; `option` names it."""

    def __init__(self, option: str | None, message: str) -> None:
        super().__init__(message)
        self.option = option


def options_of(plugin: type) -> tuple[Option, ...]:
    """Return the options that a plugin takes between its parentheses; `double` is a word of its own and no option."""
    if plugin not in _OPTIONS:
        hints = typing.get_type_hints(plugin)
        _OPTIONS[plugin] = tuple(
            Option(field.name, hints[field.name], _default(field), field.metadata.get("help", ""))
            for field in dataclasses.fields(plugin)
            if field.init and field.name != "double"
        )
    return _OPTIONS[plugin]


# reading the types of a plugin takes longer than checking a call of it
_OPTIONS: WeakKeyDictionary[type, tuple[Option, ...]] = WeakKeyDictionary()


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def supports_double(quantizer: type) -> bool:
    """Return whether a quantizer can quantize its scales once more."""
    return any(field.name == "double" for field in dataclasses.fields(quantizer))


def configure(plugin: type, call: PluginCall) -> Any:
    """Return the plugin configured as the call says.

    Raises: OptionError naming the option that does not fit.
    """
    known = {option.name: option for option in options_of(plugin)}
    arguments: dict[str, Any] = {}
    for name, value in call.options:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no options"
            raise OptionError(name, f"`{call.name}` has no option `{name}`; {takes}")
        arguments[name] = _convert(name, value, known[name].type)
    for option in known.values():
        if option.required and option.name not in arguments:
            raise OptionError(None, f"`{call.name}` needs the option `{option.name}` ({describe_type(option.type)})")
    if call.double:
        if not supports_double(plugin):
            raise OptionError(None, f"`{call.name}` has no double quantization; leave out `double`")
        arguments["double"] = True
    try:
        return plugin(**arguments)
    except ValueError as error:
        named = next((name for name, _ in call.options if name in str(error)), None)
        raise OptionError(named, str(error)) from error
    except Exception as error:
        raise PluginError(f"plugin `{call.name}` failed on its options: {error}") from error


def call_of(plugin: Any) -> PluginCall:
    """Return the call that configures a plugin as this one is."""
    given = ((option, getattr(plugin, option.name)) for option in options_of(type(plugin)))
    changed = tuple((option.name, value) for option, value in given if option.required or value != option.default)
    return PluginCall(plugin.name, changed, getattr(plugin, "double", False))


def describe_type(wanted: Any) -> str:
    """Return an option's type in words."""
    if wanted in _WORDS:
        return _WORDS[wanted]
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(argument) for argument in arguments if argument is not type(None))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a tuple, each {describe_type(arguments[0])}"
        return "(" + ", ".join(describe_type(argument) for argument in arguments) + ")"
    return str(wanted)


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
}


def _convert(name: str, value: Value, wanted: Any) -> Any:
    fits, converted = _fit(value, wanted)
    if not fits:
        raise OptionError(name, f"`{name}` takes {describe_type(wanted)}, not {show_value(value)}")
    return converted


def _fit(value: Value, wanted: Any) -> tuple[bool, Any]:
    """Return whether a value is of a type, and the value as that type holds it (16 and 16.0 are both either)."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return value in arguments, value
    if origin in (Union, types.UnionType):
        tries = (_fit(value, argument) for argument in arguments)
        return next((result for result in tries if result[0]), (False, value))
    if origin is tuple and isinstance(value, tuple):
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        parts = [_fit(item, argument) for item, argument in zip(value, arguments, strict=False)]
        return len(value) == len(arguments) and all(fits for fits, _ in parts), tuple(part for _, part in parts)
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return True, float(value)
        except OverflowError:
            return False, value
    if wanted is int and not isinstance(value, bool):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return (True, int(value)) if whole and isinstance(value, int | float) else (False, value)
    return isinstance(wanted, type) and type(value) is wanted, value


def show_value(value: Value) -> str:
    """Return a value as a spec writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(show_value, value)) + ")"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
