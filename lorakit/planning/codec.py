"""Frozen dataclasses to plain JSON values and back, by their type hints; nothing unknown is ever dropped."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Union

from lorakit.quoting import shown

# of a field that is written unless it has its default value: what reads a plan without it reads the plan as it was
OTHERWISE = "otherwise"
UNLESS_DEFAULT: Mapping[str, Any] = {"written": OTHERWISE}


def to_plain(value: Any) -> Any:
    """Return a value made of dicts, lists, numbers, strings, booleans and None alone."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if _is_written(field) and not _is_left_out(field, getattr(value, field.name))
        }  # fmt: skip
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(map(to_plain, value))
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    return value


def from_plain(wanted: Any, plain: Any) -> Any:
    """Return the value of type `wanted` that `to_plain` made plain.

    Raises: ValueError naming the field that does not fit.
    """
    return _reader(wanted)(plain)


@cache
def _reader(wanted: Any) -> Callable[[Any], Any]:
    """Return what reads plain values of a type: its hints are looked at once, for however many values."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return partial(_dataclass, wanted)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is _AnyValue:
        return _any_value
    if origin in (Union, types.UnionType):
        inner = _reader(next(argument for argument in arguments if argument is not type(None)))
        return partial(_optional, inner) if type(None) in arguments else inner
    if wanted is object:
        return _same
    if origin is Mapping:
        return partial(_mapping, _reader(arguments[1]))
    if origin is frozenset:
        return partial(_set, _reader(arguments[0]))
    if origin is tuple and arguments[-1] is Ellipsis:
        return partial(_list, _reader(arguments[0]))
    if origin is tuple:
        return partial(_tuple, tuple(map(_reader, arguments)))
    return partial(_number if wanted is float else _scalar, wanted)


def _same(plain: Any) -> Any:
    return plain


def _any_value(plain: Any) -> Any:
    if isinstance(plain, dict):
        raise ValueError(f"an option holds no object, found {shown(plain)}")
    return tuple(map(_any_value, plain)) if isinstance(plain, list) else plain


def _optional(inner: Callable[[Any], Any], plain: Any) -> Any:
    return None if plain is None else inner(plain)


def _mapping(inner: Callable[[Any], Any], plain: Any) -> Any:
    if not isinstance(plain, dict):
        raise ValueError(f"expected an object, found {shown(plain)}")
    return {name: inner(item) for name, item in plain.items()}


def _list(inner: Callable[[Any], Any], plain: Any) -> Any:
    if not isinstance(plain, list):
        raise ValueError(f"expected a list, found {shown(plain)}")
    return tuple(map(inner, plain))


def _set(inner: Callable[[Any], Any], plain: Any) -> Any:
    return frozenset(_list(inner, plain))


def _tuple(inner: tuple[Callable[[Any], Any], ...], plain: Any) -> Any:
    if not isinstance(plain, list):
        raise ValueError(f"expected a list, found {shown(plain)}")
    if len(plain) != len(inner):
        raise ValueError(f"expected {len(inner)} items, found {len(plain)}")
    return tuple(read(item) for read, item in zip(inner, plain, strict=True))


def _number(wanted: type, plain: Any) -> Any:
    if type(plain) is not int:
        return _scalar(wanted, plain)
    try:
        return float(plain)
    except OverflowError:
        raise ValueError(f"no float is near {shown(plain)}") from None


def _scalar(wanted: type, plain: Any) -> Any:
    if type(plain) is not wanted:
        raise ValueError(f"expected {wanted.__name__}, found {shown(plain)}")
    return plain


def _dataclass(wanted: type, plain: Any) -> Any:
    if not isinstance(plain, dict):
        raise ValueError(f"expected an object for {wanted.__name__}, found {shown(plain)}")
    readers = _readers(wanted)
    values = {}
    for name, value in plain.items():
        if name not in readers:
            raise ValueError(f"{wanted.__name__} has no field {shown(name)}")
        try:
            values[name] = readers[name](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return wanted(**values)


@cache
def _readers(wanted: type) -> dict[str, Callable[[Any], Any]]:
    return {name: _reader(hint) for name, hint in _hints(wanted).items()}


def _hints(wanted: type) -> dict[str, Any]:
    written = {field.name: field.type for field in dataclasses.fields(wanted) if _is_written(field)}
    # of these alone: what is never written may be of a type that only a type checker imports
    holder = type(wanted.__name__, (), {"__annotations__": written, "__module__": wanted.__module__})
    return typing.get_type_hints(holder, localns={"Value": _AnyValue})


def _is_written(field: dataclasses.Field[Any]) -> bool:
    """Return whether a field may go to JSON: all do, unless their metadata says `written=False`."""
    return bool(field.metadata.get("written", True))


def _is_left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    """Return whether a field need not go to JSON: those that came later, where they say nothing."""
    return field.metadata.get("written") == OTHERWISE and bool(value == field.default)


class _AnyValue:
    """Stands for the recursive `Value` of a plugin's option, whose lists are tuples."""
